package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/formthefog/formation/cmd/internal/api"
	"github.com/formthefog/formation/cmd/internal/config"
)

// listenSocket opens the API's unix socket for its owner alone. A socket that a
// dead formd left behind is replaced, and nothing else is.
func listenSocket(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("api socket: %w", err)
	}
	if err := freeSocket(path); err != nil {
		return nil, err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("api socket: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, fmt.Errorf("api socket: %w", errors.Join(err, l.Close()))
	}
	return l, nil
}

// freeSocket removes the socket of a formd that has gone.
func freeSocket(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("api socket: %w", err)
	}
	if info.Mode().Type() != fs.ModeSocket {
		return api.Problemf(api.ExitFailed, "api socket: %s is there, and is no socket", path).
			WithHint("name a path that is free: --api unix:///PATH")
	}
	if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
		c.Close()
		return api.Problemf(api.ExitFailed, "another formd answers at %s", path).
			WithHint("give this one its own: --api unix:///PATH")
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("api socket: %w", err)
	}
	return nil
}

// portTries is how many ports after a default one are tried.
const portTries = 200

// gatewayPort is the default port of the gateway for packs, which this version
// does not have: whatever takes it now would be in its way.
const gatewayPort = 3003

// listenWeb opens a TCP address: off gives nil, empty the default or the next
// free port after it, which moved reports.
func listenWeb(addr, def string) (l net.Listener, moved bool, err error) {
	if addr == config.Off {
		return nil, false, nil
	}
	if addr != "" {
		l, err = net.Listen("tcp", addr)
		return l, false, err
	}
	host, text, err := net.SplitHostPort(def)
	if err != nil {
		return nil, false, err
	}
	first, err := strconv.Atoi(text)
	if err != nil {
		return nil, false, err
	}
	for p := first; p < first+portTries; p++ {
		if p == gatewayPort {
			continue
		}
		if l, err = net.Listen("tcp", net.JoinHostPort(host, strconv.Itoa(p))); err == nil {
			return l, p != first, nil
		}
	}
	return nil, false, err
}

// httpServer answers with h on behalf of whom caller names for a connection's
// context.
func httpServer(h http.Handler, caller func(ctx context.Context) api.Caller, log *slog.Logger) *http.Server {
	return &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			h.ServeHTTP(w, r.WithContext(api.WithCaller(r.Context(), caller(r.Context()))))
		}),
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			if s, ok := c.(*servedConn); ok {
				return context.WithValue(ctx, peerKey{}, s.from)
			}
			return ctx
		},
	}
}

type peerKey struct{}

// serveHTTP serves until ctx ends; then requests have a moment to finish.
func serveHTTP(ctx context.Context, s *http.Server, l net.Listener) error {
	base, cancel := context.WithCancel(ctx)
	s.BaseContext = func(net.Listener) context.Context { return base }
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		<-ctx.Done()
		cancel() // ends event streams
		grace, done := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
		defer done()
		if s.Shutdown(grace) != nil {
			_ = s.Close() // what is left is cut
		}
	}()
	err := s.Serve(l)
	if ctx.Err() == nil {
		cancel()
		return fmt.Errorf("serve %s: %w", l.Addr(), err)
	}
	<-stopped
	return nil
}

// readOnly lets reads of public state through, and only under a name of this
// machine: a web page of another origin must not reach it by a DNS trick.
func readOnly(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host := r.Host
		if name, _, err := net.SplitHostPort(host); err == nil {
			host = name
		}
		ip := net.ParseIP(host)
		switch {
		case r.Method != http.MethodGet && r.Method != http.MethodHead:
			w.Header().Set("Allow", "GET, HEAD")
			api.WriteProblem(w, api.MethodProblem("%s: this address is read-only", r.Method).
				WithHint("writes go to the unix socket, or over libp2p: form does both"))
		case host != "localhost" && ip == nil:
			api.WriteProblem(w, api.Problemf(api.ExitNotAllowed, "%q is no name of this address", host).
				WithHint("ask by its IP address, or as localhost"))
		default:
			h.ServeHTTP(w, r)
		}
	})
}

// peerListener turns the streams of a libp2p protocol into connections for an
// http.Server.
type peerListener struct {
	conns chan *servedConn
	done  chan struct{}
	once  sync.Once
}

func newPeerListener() *peerListener {
	return &peerListener{conns: make(chan *servedConn), done: make(chan struct{})}
}

// servedConn knows whom it is from, and tells when it is closed.
type servedConn struct {
	net.Conn
	from   peer.ID
	once   sync.Once
	closed chan struct{}
}

// Close closes the connection once.
func (c *servedConn) Close() error {
	err := net.ErrClosed
	c.once.Do(func() {
		err = c.Conn.Close()
		close(c.closed)
	})
	return err
}

// handle is a stream handler: it returns when the server is done with c.
func (l *peerListener) handle(ctx context.Context, from peer.ID, c net.Conn) {
	s := &servedConn{Conn: c, from: from, closed: make(chan struct{})}
	defer s.Close()
	select {
	case l.conns <- s:
	case <-l.done:
		return
	case <-ctx.Done():
		return
	}
	select {
	case <-s.closed:
	case <-ctx.Done():
	}
}

// Accept waits for the next stream.
func (l *peerListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

// Close ends Accept.
func (l *peerListener) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

// Addr names the listener in logs.
func (l *peerListener) Addr() net.Addr { return peerListenerAddr{} }

type peerListenerAddr struct{}

func (peerListenerAddr) Network() string { return "libp2p" }
func (peerListenerAddr) String() string  { return api.Proto }
