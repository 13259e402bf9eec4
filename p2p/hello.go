package p2p

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	msmux "github.com/multiformats/go-multistream"
)

// The hello exchange. Each side opens one stream per connection, sends
//
//	version(1)=1 flags(1) length(2, big endian) hello(length ≤ MaxHello)
//
// and reads the other's verdict on it:
//
//	code(1): 1 admitted, 2 refused  length(2) reason(length ≤ MaxReason)
//
// The connection is bound to both peer IDs by its handshake, so nothing in a
// hello needs a nonce.
const (
	helloVersion = 1
	flagClient   = 1 << 0

	verdictAdmitted = 1
	verdictRefused  = 2

	// lingerTimeout is how long a refused peer has to read the reason before
	// the connection is closed under it.
	lingerTimeout = 2 * time.Second
)

func helloID(network string) protocol.ID { return protocol.ID(helloPrefix + network) }

const helloPrefix = "/formd/hello/1/"

func writeHello(w io.Writer, hello []byte, client bool) error {
	if len(hello) > MaxHello {
		return fmt.Errorf("hello of %d bytes: %w", len(hello), ErrTooLarge)
	}
	var flags byte
	if client {
		flags |= flagClient
	}
	b := append([]byte{helloVersion, flags}, binary.BigEndian.AppendUint16(nil, uint16(len(hello)))...)
	_, err := w.Write(append(b, hello...))
	return err
}

// errCut: the stream ended within a hello.
var errCut = errors.New("hello is cut off")

func readHello(r io.Reader) (hello []byte, client bool, err error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, false, fmt.Errorf("%w: %w", errCut, err)
	}
	if head[0] != helloVersion {
		return nil, false, fmt.Errorf("hello version %d is not supported", head[0])
	}
	n := int(binary.BigEndian.Uint16(head[2:]))
	if n > MaxHello {
		return nil, false, fmt.Errorf("hello of %d bytes: %w", n, ErrTooLarge)
	}
	hello = make([]byte, n)
	if _, err := io.ReadFull(r, hello); err != nil {
		return nil, false, fmt.Errorf("%w: %w", errCut, err)
	}
	// Unknown flags are left alone: later versions may define them.
	return hello, head[1]&flagClient != 0, nil
}

func writeVerdict(w io.Writer, refusal error) error {
	code, reason := byte(verdictAdmitted), ""
	if refusal != nil {
		code, reason = verdictRefused, cleanReason(refusal.Error())
	}
	b := append([]byte{code}, binary.BigEndian.AppendUint16(nil, uint16(len(reason)))...)
	_, err := w.Write(append(b, reason...))
	return err
}

// readVerdict returns the reason of a refusal, or refused=false.
func readVerdict(r io.Reader) (reason string, refused bool, err error) {
	var head [3]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return "", false, fmt.Errorf("read verdict: %w", err)
	}
	n := int(binary.BigEndian.Uint16(head[1:]))
	if n > MaxReason {
		return "", false, fmt.Errorf("verdict's reason of %d bytes: %w", n, ErrTooLarge)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		return "", false, fmt.Errorf("read verdict: %w", err)
	}
	switch head[0] {
	case verdictAdmitted:
		return "", false, nil
	case verdictRefused:
		return cleanReason(string(b)), true, nil
	}
	return "", false, fmt.Errorf("verdict %d is not known", head[0])
}

// cleanReason makes text safe for a terminal and a log, and bounds it.
func cleanReason(s string) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, strings.ToValidUTF8(s, "?"))
	if len(s) > MaxReason {
		s = strings.ToValidUTF8(s[:MaxReason], "")
	}
	return s
}

// watch runs for the life of a connection's proof: it presents our hello, and
// closes the connection if it is not admitted by both sides in time.
func (n *Node) watch(c network.Conn) {
	pr := n.gate.add(c)
	if pr == nil {
		return
	}
	ctx, cancel := context.WithTimeout(n.ctx, n.tune.hello)
	defer cancel()
	if err := n.present(ctx, c, pr); err != nil && ctx.Err() == nil {
		n.gate.fail(c, err)
	}
	select {
	case <-pr.done:
	case <-ctx.Done():
		n.gate.fail(c, &RefusedError{Peer: c.RemotePeer(), Reason: "it did not prove itself in time"})
	}
	if !n.gate.mayOpen(c) {
		n.gateClose(c)
	}
}

// present sends our hello on a connection and reads the verdict.
func (n *Node) present(ctx context.Context, c network.Conn, pr *proof) error {
	p := c.RemotePeer()
	hello, err := n.cfg.Admission.Hello(p)
	if err != nil {
		return fmt.Errorf("own hello for %s: %w", p, err)
	}
	s, err := openOn(ctx, c, helloID(n.cfg.Network))
	if err != nil {
		var no msmux.ErrNotSupported[protocol.ID]
		if !errors.As(err, &no) {
			return fmt.Errorf("say hello to %s: %w", p, err)
		}
		if c.Stat().Direction == network.DirInbound {
			// It may be here only to learn which network this is (Discover).
			// It gets nothing else, and has until the deadline to leave.
			select {
			case <-ctx.Done():
			case <-pr.done: // it left
			}
		}
		return &RefusedError{Peer: p, Reason: "it does not take part in network " + n.cfg.Network}
	}
	defer func() {
		if err := s.Close(); err != nil {
			n.log.Debug("close hello stream", "peer", p, "err", err)
		}
	}()
	stop := context.AfterFunc(ctx, func() { s.Reset() })
	defer stop()
	if err := writeHello(s, hello, n.cfg.ClientOnly); err != nil {
		return fmt.Errorf("say hello to %s: %w", p, err)
	}
	reason, refused, err := readVerdict(s)
	if err != nil {
		return fmt.Errorf("hello to %s: %w", p, err)
	}
	if refused {
		n.log.Warn("refused by peer", "peer", p, "reason", reason)
		err := &RefusedError{Peer: p, Reason: reason, ByPeer: true}
		n.gate.refuse(c, err) // the peer closes the connection as soon as we close s
		return err
	}
	n.allow(c, false, false)
	return nil
}

// serveHello judges the hello of the peer that opened s.
func (n *Node) serveHello(s network.Stream) {
	c := s.Conn()
	p := c.RemotePeer()
	if n.gate.add(c) == nil {
		s.Reset()
		return
	}
	ctx, cancel := context.WithTimeout(n.ctx, n.tune.hello)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { s.Reset() })
	defer stop()
	if !n.gate.claimHello(c) {
		s.Reset()
		return
	}
	client, err := n.judge(ctx, s, c)
	if err == nil {
		// The order matters: the peer may open streams as soon as it reads
		// the verdict.
		n.allow(c, true, client)
		if err := writeVerdict(s, nil); err != nil {
			n.log.Debug("send verdict", "peer", p, "err", err)
		}
		if err := s.Close(); err != nil {
			n.log.Debug("close hello stream", "peer", p, "err", err)
		}
		return
	}
	if errors.Is(err, errCut) {
		// Nothing was judged: the connection is about to close, maybe because
		// the peer refused us, and that is the reason to report.
		n.log.Debug("no hello", "peer", p, "err", err)
		s.Reset()
		return
	}
	n.log.Info("peer not admitted", "peer", p, "addr", c.RemoteMultiaddr(), "reason", cleanReason(err.Error()))
	refused := &RefusedError{Peer: p, Reason: cleanReason(err.Error())}
	n.gate.refuse(c, refused)
	n.refuse(s, err)
	n.gate.fail(c, refused)
	n.gateClose(c)
}

// judge reads a hello and asks Admission. On success the connection is counted
// as one that holds the peer in.
func (n *Node) judge(ctx context.Context, s network.Stream, c network.Conn) (client bool, err error) {
	hello, client, err := readHello(s)
	if err != nil {
		return false, err
	}
	p := c.RemotePeer()
	if err := n.refusedFor(p); err != nil {
		return false, err
	}
	gp := n.gate.ref(p)
	defer n.gate.unref(p)
	gp.admit.Lock()
	defer gp.admit.Unlock()
	session, err := n.cfg.Admission.Admit(ctx, p, bytes.Clone(hello))
	if err != nil {
		return false, err
	}
	n.gate.hold(p, 1)
	return client || session, nil
}

// release undoes judge once the connection has closed.
func (n *Node) release(p peer.ID) {
	gp := n.gate.ref(p)
	defer n.gate.unref(p)
	gp.admit.Lock()
	defer gp.admit.Unlock()
	if n.gate.hold(p, -1) == 0 {
		n.cfg.Admission.Gone(p)
	}
}

// refuse sends the reason and gives the peer a moment to read it.
func (n *Node) refuse(s network.Stream, reason error) {
	if err := s.SetDeadline(time.Now().Add(lingerTimeout)); err != nil {
		n.log.Debug("refuse", "err", err)
	}
	err := writeVerdict(s, reason)
	if err == nil {
		err = s.CloseWrite()
	}
	if err == nil {
		// EOF or a reset means that the peer has read it, or left.
		_, err = io.Copy(io.Discard, io.LimitReader(s, 1))
	}
	if err != nil {
		n.log.Debug("refuse", "peer", s.Conn().RemotePeer(), "err", err)
	}
}

// allow records a direction of admission and tells the node when a peer has
// become admitted.
func (n *Node) allow(c network.Conn, in, client bool) {
	up, live := n.gate.allow(c, in, client, time.Now())
	if !live && in {
		// Closed while it was judged: nobody else will release it.
		n.release(c.RemotePeer())
		return
	}
	if up {
		n.peerUp(c.RemotePeer())
	}
}

func (n *Node) gateClose(c network.Conn) {
	if err := c.CloseWithError(network.ConnGated); err != nil {
		n.log.Debug("close connection", "peer", c.RemotePeer(), "err", err)
	}
}
