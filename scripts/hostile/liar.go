package main

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p"
	pb "github.com/libp2p/go-libp2p-pubsub/pb"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"google.golang.org/protobuf/proto"

	"github.com/formthefog/formation/crdt/stmt"
)

// role is as whom an attack comes.
type role int

const (
	asMember    role = iota
	asStranger       // presents nothing
	asForger         // presents a member statement with a broken signature
	asImpostor       // presents another node's admission
	asBabbler        // presents what is no hello
	asRevoked        // was a member
	asClient         // an owner's session
	asThief          // another client's session
	asElsewhere      // a session for another node
	asLate           // a session that is over
	asEternal        // a session without end
	asDevice         // a session of a key that is no device of the owner
)

// admitted says whether one of the role is let in.
func (r role) admitted() bool { return r == asMember || r == asClient }

// liar is a bare libp2p host with this network's hello and no rule.
type liar struct {
	ticket stmt.Ticket
	net    stmt.NetworkID
	key    ed25519.PrivateKey
	owner  ed25519.PrivateKey // whom it speaks for, or who is in its pay
	self   stmt.Key
	hello  func(to peer.ID) ([]byte, error)
	host   host.Host
	prey   prey

	began time.Time

	mu     sync.Mutex
	gossip map[peer.ID]network.Stream
	serve  map[peer.ID]func(network.Stream) // answers what a node asks
}

func newLiar(t stmt.Ticket, as role, p prey) (*liar, error) {
	key := newKey()
	if as == asRevoked {
		seed, err := hex.DecodeString(p.revoked)
		if err != nil || len(seed) != ed25519.SeedSize {
			return nil, errors.New("the seed of the revoked key is not 32 bytes in hexadecimal")
		}
		key = ed25519.NewKeyFromSeed(seed)
	}
	l := &liar{ticket: t, net: t.Network(), key: key, owner: newKey(), self: stmt.KeyOf(key), prey: p, began: time.Now(), gossip: map[peer.ID]network.Stream{}, serve: map[peer.ID]func(network.Stream){}}
	if l.hello = l.helloTo(as); as < asClient {
		b, err := l.makeHello(as)
		if err != nil {
			return nil, err
		}
		l.hello = func(peer.ID) ([]byte, error) { return b, nil }
	}
	k, err := crypto.UnmarshalEd25519PrivateKey(key)
	if err != nil {
		return nil, err
	}
	l.host, err = libp2p.New(libp2p.Identity(k), libp2p.NoListenAddrs, libp2p.DisableMetrics(),
		libp2p.ResourceManager(&network.NullResourceManager{}))
	if err != nil {
		return nil, err
	}
	l.host.SetStreamHandler(l.proto("hello/1"), func(s network.Stream) {
		defer s.Close()
		var head [4]byte
		if _, err := io.ReadFull(s, head[:]); err != nil {
			return
		}
		if _, err := io.CopyN(io.Discard, s, int64(binary.BigEndian.Uint16(head[2:]))); err != nil {
			return
		}
		_, _ = s.Write([]byte{1, 0, 0}) // everybody is welcome; who has left does not hear it
	})
	return l, nil
}

func (l *liar) makeHello(as role) ([]byte, error) {
	key := l.self
	switch as {
	case asStranger:
		return stmt.EncodeHello(stmt.Hello{})
	case asBabbler:
		return []byte("\x9f\xff not a hello"), nil
	case asImpostor:
		key = stmt.KeyOf(newKey())
	}
	raw, err := l.ticket.Join(key, stmt.RoleNode, time.Now())
	if err != nil {
		return nil, err
	}
	if as == asForger {
		raw = flip(raw)
	}
	return stmt.EncodeHello(stmt.Hello{Member: raw})
}

// helloTo is the hello of those who come as clients: the owner's admission by the
// ticket, and a session.
func (l *liar) helloTo(as role) func(to peer.ID) ([]byte, error) {
	return func(to peer.ID) ([]byte, error) {
		server, err := stmt.KeyOfPeerID(string(to))
		if err != nil {
			return nil, err
		}
		member, err := l.ticket.Join(stmt.KeyOf(l.owner), stmt.RoleOwner, time.Now())
		if err != nil {
			return nil, err
		}
		s, by := stmt.SessionBody{Client: l.self, Server: server, Expires: time.Now().Add(time.Hour).Unix()}, l.owner
		switch as {
		case asThief:
			s.Client = stmt.KeyOf(newKey())
		case asElsewhere:
			s.Server = stmt.KeyOf(newKey())
		case asLate:
			s.Expires = time.Now().Add(-time.Hour).Unix()
		case asEternal:
			s.Expires = time.Now().AddDate(10, 0, 0).Unix()
		case asDevice:
			s.Owner, by = stmt.KeyOf(l.owner), newKey()
		}
		session, err := stmt.SignSession(by, l.net, s)
		if err != nil {
			return nil, err
		}
		return stmt.EncodeHello(stmt.Hello{Member: member, Session: session})
	}
}

func newKey() ed25519.PrivateKey {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		panic(err) // there is no randomness
	}
	return key
}

func (l *liar) proto(name string) protocol.ID {
	return protocol.ID("/formd/" + name + "/" + l.net.String())
}

// join connects and presents the hello. refusal is what the node said when it
// did not let us in.
func (l *liar) join(ctx context.Context, to peer.AddrInfo) (refusal string, err error) {
	if err := l.host.Connect(ctx, to); err != nil {
		return "", fmt.Errorf("connect: %w", err)
	}
	s, err := l.host.NewStream(ctx, to.ID, l.proto("hello/1"))
	if err != nil {
		return "", fmt.Errorf("hello: %w", err)
	}
	defer s.Close()
	defer context.AfterFunc(ctx, func() { _ = s.Reset() })()
	hello, err := l.hello(to.ID)
	if err != nil {
		return "", fmt.Errorf("hello: %w", err)
	}
	head := binary.BigEndian.AppendUint16([]byte{1, 0}, uint16(len(hello)))
	if _, err := s.Write(append(head, hello...)); err != nil {
		return "", fmt.Errorf("hello: %w", err)
	}
	var verdict [3]byte
	if _, err := io.ReadFull(s, verdict[:]); err != nil {
		return "", fmt.Errorf("verdict: %w", err)
	}
	reason := make([]byte, binary.BigEndian.Uint16(verdict[1:]))
	if _, err := io.ReadFull(s, reason); err != nil {
		return "", fmt.Errorf("verdict: %w", err)
	}
	if verdict[0] != 1 {
		return string(reason), nil
	}
	return "", nil
}

// wentAway says whether the node closes the connection.
func (l *liar) wentAway(ctx context.Context, p peer.ID) bool {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for l.host.Network().Connectedness(p) == network.Connected {
		select {
		case <-ctx.Done():
			return false
		case <-tick.C:
		}
	}
	return true
}

// stream opens a protocol of the network.
func (l *liar) stream(ctx context.Context, p peer.ID, name string) (network.Stream, error) {
	return l.open(ctx, p, l.proto(name))
}

func (l *liar) open(ctx context.Context, p peer.ID, pid protocol.ID) (network.Stream, error) {
	s, err := l.host.NewStream(network.WithNoDial(ctx, "who is cut off stays so"), p, pid)
	if err == nil {
		context.AfterFunc(ctx, func() { _ = s.Reset() })
	}
	return s, err
}

// say publishes a gossip message of these statements to one node.
func (l *liar) say(ctx context.Context, p peer.ID, raws ...[]byte) error {
	msg, err := stmt.Marshal(map[string][][]byte{"r": raws})
	if err != nil {
		return err
	}
	return l.publish(ctx, p, msg)
}

// publish sends any bytes as a gossip message to one node, on a stream of
// pubsub's protocol without pubsub.
func (l *liar) publish(ctx context.Context, p peer.ID, msg []byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.gossip[p]
	if s == nil {
		var err error
		if s, err = l.host.NewStream(network.WithNoDial(ctx, "who is cut off stays so"), p, "/meshsub/1.1.0"); err != nil {
			return err
		}
		context.AfterFunc(ctx, func() { _ = s.Reset() })
		l.gossip[p] = s
	}
	rpc := &pb.RPC{Publish: []*pb.Message{{Data: msg, Topic: proto.String("/formd/state/0/" + l.net.String())}}}
	raw, err := proto.Marshal(rpc)
	if err != nil {
		return err
	}
	_, err = s.Write(append(binary.AppendUvarint(nil, uint64(len(raw))), raw...))
	return err
}

// finish waits until a node has read all that was published to it.
func (l *liar) finish(ctx context.Context, p peer.ID) {
	l.mu.Lock()
	s := l.gossip[p]
	delete(l.gossip, p)
	l.mu.Unlock()
	if s == nil || s.CloseWrite() != nil {
		return
	}
	defer context.AfterFunc(ctx, func() { _ = s.Reset() })()
	// The node closes its side when it has come to the end of ours.
	_, _ = io.Copy(io.Discard, s)
}

// sign makes a statement of this liar's own.
func (l *liar) sign(s stmt.Statement) []byte { return signBy(l.key, l.net, s) }

func signBy(key ed25519.PrivateKey, net stmt.NetworkID, s stmt.Statement) []byte {
	if s.Network == (stmt.NetworkID{}) {
		s.Network = net
	}
	raw, err := stmt.Sign(key, s)
	if err != nil {
		panic(err) // a mistake in this program
	}
	return raw
}

// flip breaks the signature, which ends a statement.
func flip(raw []byte) []byte {
	raw = append([]byte{}, raw...)
	raw[len(raw)-1] ^= 1
	return raw
}
