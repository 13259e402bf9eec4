package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
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
			if s, ok := r.Context().Value(connKey{}).(*servedConn); ok {
				s.asked.Store(true)
			}
			if r.ContentLength != 0 { // handlers read what they take, and the server the rest
				r.Body = newTimedBody(w, r.Body)
			}
			h.ServeHTTP(w, r.WithContext(api.WithCaller(r.Context(), caller(r.Context()))))
		}),
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			if s, ok := c.(*servedConn); ok {
				return context.WithValue(ctx, connKey{}, s)
			}
			return ctx
		},
	}
}

// connKey is the stream that a request of a peer came by.
type connKey struct{}

// callingPeer is whose request ctx is; empty for none of a peer.
func callingPeer(ctx context.Context) peer.ID {
	if s, ok := ctx.Value(connKey{}).(*servedConn); ok {
		return s.from
	}
	return ""
}

// timedBody is a request's body, which must come at some pace: who sends it byte
// by byte would hold the handler for ever.
type timedBody struct {
	io.ReadCloser
	rc    *http.ResponseController
	began time.Time
	moved int64
	ended bool
}

// Pace of a body: so long at first, and a second more for so many bytes.
const (
	bodyTimeout = 10 * time.Second
	bodyPace    = 16 << 10
)

func newTimedBody(w http.ResponseWriter, body io.ReadCloser) *timedBody {
	b := &timedBody{ReadCloser: body, rc: http.NewResponseController(w), began: time.Now()}
	b.allow()
	return b
}

// allow moves the deadline. Where there is none to set, the body has no pace.
func (b *timedBody) allow() {
	_ = b.rc.SetReadDeadline(b.began.Add(bodyTimeout + time.Duration(b.moved/bodyPace)*time.Second))
}

// Read reads, and ends the deadline with the body: the answer may take its time.
func (b *timedBody) Read(p []byte) (int, error) {
	if b.ended {
		return b.ReadCloser.Read(p)
	}
	n, err := b.ReadCloser.Read(p)
	b.moved += int64(n)
	switch {
	case errors.Is(err, io.EOF):
		b.ended = true
		_ = b.rc.SetReadDeadline(time.Time{}) // as allow
	case n > 0:
		b.allow()
	}
	return n, err
}

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
