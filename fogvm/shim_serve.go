package fogvm

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/formthefog/formation/fogvm/guest"
)

// dialTimeout bounds a connection attempt into the guest.
const dialTimeout = 10 * time.Second

// serve answers on the shim's socket until ctx ends. Whoever can open the
// socket (mode 0600, in a folder of mode 0700) may do everything.
func (s *shim) serve(ctx context.Context, l net.Listener) {
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	var conns sync.WaitGroup
	defer conns.Wait()
	var pause time.Duration
	for {
		c, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			// Out of descriptors, say. It passes, and until then nobody else can
			// stop this VM.
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			s.log.Error("accept", "error", err, "pause", pause)
			select {
			case <-time.After(pause):
			case <-ctx.Done():
			}
			continue
		}
		pause = 0
		conns.Go(func() {
			defer c.Close()
			stop := context.AfterFunc(ctx, func() { c.Close() })
			defer stop()
			s.answer(ctx, newLineConn(c))
		})
	}
}

func (s *shim) answer(ctx context.Context, c *lineConn) {
	var req shimRequest
	if err := c.readLine(&req); err != nil {
		return
	}
	switch req.Op {
	case opStatus:
		s.serveStatus(ctx, c)
	case opDial:
		s.serveRelay(c, func() (net.Conn, error) { return s.dial(ctx, req.Port) }, relay)
	case opDialUDP:
		s.serveRelay(c, func() (net.Conn, error) { return s.dialUDP(req.Port) }, relayDatagrams)
	case opExec:
		s.serveRelay(c, func() (net.Conn, error) { return s.exec(req.Exec) }, relayExec)
	case opStop:
		s.serveStop(ctx, c, req.Force)
	case opReboot:
		s.reply(c, s.reboot())
	case opAuthorize:
		s.reply(c, s.authorize(req.Keys))
	case opSecrets:
		s.reply(c, s.takeSecrets(req.Secrets))
	case opMesh:
		s.serveMesh(ctx, c)
	case opMeshNews:
		s.serveRelay(c, s.meshNews, relay)
	case opHold:
		s.reply(c, s.hold(req.Until))
	default:
		s.reply(c, fmt.Errorf("unknown operation %q", req.Op))
	}
}

// reply answers a request; false when the connection ends with that.
func (s *shim) reply(c *lineConn, err error) bool {
	var r shimReply
	if err != nil {
		r.Error = err.Error()
	}
	return c.writeLine(r) == nil && err == nil
}

func (s *shim) serveRelay(c *lineConn, open func() (net.Conn, error), relay func(a, b net.Conn)) {
	to, err := open()
	if !s.reply(c, err) {
		if to != nil {
			to.Close()
		}
		return
	}
	relay(c, to)
}

// relayExec differs from relay in that the client's end of input is a frame,
// so a client that closes is gone, and an exit frame ends everything.
func relayExec(client, command net.Conn) {
	go func() {
		relayOne(command, client)
		command.Close()
	}()
	relayOne(client, command)
	client.Close()
	command.Close()
}

func (s *shim) dial(ctx context.Context, port int) (net.Conn, error) {
	s.mu.Lock()
	n := s.net
	s.mu.Unlock()
	if n == nil {
		return nil, ErrNotRunning
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	return n.dial(ctx, port)
}

func (s *shim) dialUDP(port int) (net.Conn, error) {
	s.mu.Lock()
	n := s.net
	s.mu.Unlock()
	if n == nil {
		return nil, ErrNotRunning
	}
	return n.dialUDP(port)
}

func (s *shim) connected() (*guest.Conn, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.agent == nil {
		return nil, errors.New("the guest's agent is not up (yet)")
	}
	return s.agent, nil
}

func (s *shim) exec(req *guest.ExecRequest) (net.Conn, error) {
	if req == nil {
		return nil, errors.New("exec: no command")
	}
	agent, err := s.connected()
	if err != nil {
		return nil, err
	}
	return agent.Exec(*req)
}

func (s *shim) authorize(keys []string) error {
	s.mu.Lock()
	s.keys = keys // also for the next boot
	s.mu.Unlock()
	agent, err := s.connected()
	if err != nil {
		return nil // the keys are given to the agent when it comes up
	}
	return agent.Authorize(keys)
}

func (s *shim) reboot() error {
	agent, err := s.connected()
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.rebooted = true
	s.mu.Unlock()
	return agent.Power(guest.Power{Reboot: true, GraceSeconds: max(1, int(s.spec.StopTimeout.Seconds()/2))})
}

// serveStop asks for the end and holds the connection until it has come.
func (s *shim) serveStop(ctx context.Context, c *lineConn, force bool) {
	select {
	case s.stop <- force:
	default: // one is under way
	}
	if !s.reply(c, nil) {
		return
	}
	select {
	case <-s.ended:
	case <-ctx.Done():
	}
}

// serveStatus sends the status now and whenever it changes; a slow reader gets
// the latest, not every one.
func (s *shim) serveStatus(ctx context.Context, c *lineConn) {
	wake := make(chan struct{}, 1)
	s.mu.Lock()
	s.watchers[wake] = struct{}{}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.watchers, wake)
		s.mu.Unlock()
	}()
	if !s.reply(c, nil) {
		return
	}
	for {
		if err := c.writeLine(s.snapshot()); err != nil {
			return
		}
		select {
		case <-wake:
		case <-s.ended:
			// The final status was set before ended was closed.
			_ = c.writeLine(s.snapshot())
			return
		case <-ctx.Done():
			return
		}
	}
}
