package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"gvisor.dev/gvisor/pkg/tcpip"

	"github.com/formthefog/formation/wg"
)

const (
	// IdleAfter is for how long an agent waits for somebody to ask something.
	IdleAfter = 10 * time.Minute
	// requestTimeout bounds each line of a form, and dialTimeout the guest's answer.
	requestTimeout = 10 * time.Second
	dialTimeout    = 30 * time.Second
	// maxConns bounds what forms have open at once.
	maxConns = 512
)

// Serve answers forms on l, which it owns, and runs m, until ctx ends, somebody
// says stop, or nobody has asked for idle, if that is not 0. It returns nil then.
func Serve(ctx context.Context, m *Mesh, l net.Listener, idle time.Duration) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	s := &server{m: m, stop: stop, since: time.Now(), busy: make(chan struct{}, 1)}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return m.Run(ctx) })
	if idle > 0 {
		g.Go(func() error { s.watch(ctx, idle); return nil })
	}
	g.Go(func() error {
		<-ctx.Done()
		return l.Close()
	})
	g.Go(func() error { return s.accept(ctx, l) })
	err := g.Wait()
	s.open.Wait()
	return err
}

type server struct {
	m     *Mesh
	stop  func()
	since time.Time
	busy  chan struct{} // capacity 1: the number of connections has changed
	open  sync.WaitGroup

	mu    sync.Mutex
	conns int
}

func (s *server) accept(ctx context.Context, l net.Listener) error {
	for {
		c, err := l.Accept()
		if ctx.Err() != nil {
			if err == nil {
				return c.Close()
			}
			return nil
		}
		if err != nil {
			return fmt.Errorf("agent: accept: %w", err)
		}
		if !s.enter() {
			c.Close() // a form that gets no reply takes the stream
			continue
		}
		s.open.Go(func() {
			defer s.leave()
			defer c.Close()
			defer context.AfterFunc(ctx, func() { c.Close() })()
			if err := s.serve(ctx, c); err != nil && ctx.Err() == nil {
				s.m.cfg.Log.Info("mesh: a connection has failed", "err", err)
			}
		})
	}
}

func (s *server) enter() bool {
	if s.count(1) <= maxConns {
		return true
	}
	s.leave()
	return false
}

func (s *server) leave() { s.count(-1) }

func (s *server) count(by int) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.conns += by
	select {
	case s.busy <- struct{}{}:
	default:
	}
	return s.conns
}

func (s *server) idle() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.conns == 0
}

// watch stops the agent when it has had no connection for idle.
func (s *server) watch(ctx context.Context, idle time.Duration) {
	timer := time.NewTimer(idle)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.busy:
			if timer.Stop(); s.idle() {
				timer.Reset(idle)
			}
		case <-timer.C:
			s.stop()
		}
	}
}

func (s *server) serve(ctx context.Context, c net.Conn) error {
	var r request
	if err := s.read(c, &r); err != nil {
		return ignoreEOF(err)
	}
	switch {
	case r.Op == opStop:
		err := writeLine(c, reply{Version: Version})
		s.stop()
		return err
	case r.Version != Version:
		return writeLine(c, replyOf(fmt.Errorf("%w: it speaks %d", ErrVersion, Version)))
	case r.Op == opStatus:
		status, err := s.status()
		if err != nil {
			return writeLine(c, replyOf(err))
		}
		return writeLine(c, reply{Version: Version, Status: &status})
	case r.Op == opReach:
		return s.reach(ctx, c, r)
	}
	return writeLine(c, replyOf(fmt.Errorf("no such request: %.40q", r.Op)))
}

func (s *server) read(c net.Conn, r *request) error {
	if err := c.SetReadDeadline(time.Now().Add(requestTimeout)); err != nil {
		return err
	}
	if err := readLine(c, maxLine, r); err != nil {
		return err
	}
	return c.SetReadDeadline(time.Time{})
}

func ignoreEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// reach finds a peer and, when the form says so, connects to it.
func (s *server) reach(ctx context.Context, c net.Conn, r request) error {
	// The form waits as long as it likes, and hangs up. What it says meanwhile is
	// what it says after the reply: it has to wait for that.
	ctx, gone := context.WithTimeout(ctx, dialTimeout)
	defer gone()
	next := make(chan error, 1)
	var dial request
	go func() {
		err := readLine(c, maxLine, &dial)
		if err != nil {
			gone()
		}
		next <- err
	}()
	to, err := s.m.Reach(ctx, r.Target, r.Hasty)
	if err != nil {
		return errors.Join(writeLine(c, replyOf(err)), c.Close(), ignoreEOF(<-next))
	}
	defer to.Close()
	if err := writeLine(c, reply{Version: Version}); err != nil {
		return errors.Join(err, c.Close(), ignoreEOF(<-next))
	}
	if err := <-next; err != nil {
		return ignoreEOF(err) // the stream was quicker
	}
	if dial.Op != opDial || dial.Port == 0 {
		return writeLine(c, replyOf(errors.New("after reach comes dial, with a port")))
	}
	guest, err := to.Dial(ctx, dial.Port)
	if err != nil {
		return writeLine(c, replyOf(err))
	}
	if err := writeLine(c, reply{Version: Version}); err != nil {
		return errors.Join(err, guest.Close())
	}
	return Splice(c, guest)
}

// isRefused: the stack in this process has no error number for it.
func isRefused(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Err != nil && op.Err.Error() == (&tcpip.ErrConnectionRefused{}).String()
}

// Splice copies both ways, passing half-closes on, until both sides have ended, and
// closes both. A broken side ends both: the other direction would wait for ever.
func Splice(a, b net.Conn) error {
	defer b.Close()
	defer a.Close()
	errs := make(chan error, 1)
	go func() { errs <- oneWay(b, a) }()
	err := oneWay(a, b)
	if err != nil {
		a.Close()
		b.Close()
	}
	if other := <-errs; err == nil {
		err = other
	}
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

func oneWay(to, from net.Conn) error {
	if _, err := io.Copy(to, from); err != nil {
		return errors.Join(err, to.Close(), from.Close())
	}
	if half, ok := to.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}

func (s *server) status() (Status, error) {
	out := Status{
		PID: os.Getpid(), Since: s.since.UTC(), Owner: s.m.cfg.Owner, Device: s.m.cfg.Identity.Device,
		MeshKey: s.m.cfg.Key.PublicKey().String(), Address: s.m.address.String(), Connections: s.count(0) - 1, Peers: []PeerStatus{},
	}
	peers, err := s.m.Peers()
	if err != nil {
		out.Error = err.Error()
	}
	have, err := s.m.device.Peers()
	if err != nil {
		return out, err
	}
	silent := s.m.silentPeers(have)
	for _, p := range peers {
		ps := PeerStatus{Silent: silent[wg.Key(p.Key)], Instance: p.Instance, Name: p.Name, Slot: p.Slot, Node: p.Node, Address6: p.Address6.String()}
		if p.Address4.IsValid() {
			ps.Address = p.Address4.String()
		}
		for _, h := range have {
			if [32]byte(h.Key) != [32]byte(p.Key) {
				continue
			}
			ps.MeshKey, ps.Received, ps.Sent = h.Key.String(), h.Received, h.Sent
			if at := h.Handshake.UTC(); !h.Handshake.IsZero() {
				ps.Handshake = &at
			}
		}
		out.Peers = append(out.Peers, ps)
	}
	slices.SortStableFunc(out.Peers, func(a, b PeerStatus) int { return a.Slot - b.Slot })
	return out, nil
}
