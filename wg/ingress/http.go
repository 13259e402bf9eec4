package ingress

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	maxHeader = 32 << 10 // bytes of a request's header
	// repeatable is how long an answer may be that is taken whole before any of it
	// is passed on, so that another replica can give it.
	repeatable = 64 << 10
)

// target is the host that a request is for, in its context.
type target struct{}

// serveHTTP answers one request.
func (g *Ingress) serveHTTP(w http.ResponseWriter, r *http.Request) {
	if g.site(r.Host) == nil {
		g.stats.refuse(refusedSite)
		http.Error(w, "no such site here", http.StatusNotFound)
		return
	}
	select {
	case g.places <- struct{}{}:
		defer func() { <-g.places }()
	default:
		g.stats.refuse(refusedRequests)
		unavailable(w)
		return
	}
	noted := &statusWriter{ResponseWriter: w}
	whole := false // a proxy that breaks off panics
	defer func() { g.stats.answered(noted.status, whole) }()
	paced := &pacedWriter{ResponseWriter: noted, rc: http.NewResponseController(w), stall: g.cfg.Limits.Stall}
	if r.Body != nil && r.Body != http.NoBody {
		body := &pacedBody{ReadCloser: r.Body, rc: paced.rc, stall: g.cfg.Limits.Stall}
		defer body.end()
		r.Body = body
	}
	g.proxy.ServeHTTP(paced, r.WithContext(context.WithValue(r.Context(), target{}, r.Host)))
	whole = true
}

func unavailable(w http.ResponseWriter) {
	w.Header().Set("Retry-After", "1")
	http.Error(w, "no replica answers", http.StatusServiceUnavailable)
}

// newProxy is what carries requests to replicas.
func (g *Ingress) newProxy() http.Handler {
	return &httputil.ReverseProxy{
		Rewrite:    rewrite,
		Transport:  roundTripper{g},
		BufferPool: &buffers{},
		ErrorLog:   slog.NewLogLogger(g.log.Handler(), slog.LevelDebug),
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			if r.Context().Err() != nil {
				return // the client is gone
			}
			g.stats.fail(kindHTTP)
			g.log.Debug("request failed", "host", r.Host, "err", err)
			var undialled *dialError
			if errors.Is(err, errNone) || errors.As(err, &undialled) {
				unavailable(w)
				return
			}
			http.Error(w, "the replica did not answer", http.StatusBadGateway)
		},
	}
}

// buffers are what answers are copied through.
type buffers struct{ pool sync.Pool }

const bufferSize = 32 << 10

// Get implements httputil.BufferPool.
func (b *buffers) Get() []byte {
	if p, ok := b.pool.Get().(*[bufferSize]byte); ok {
		return p[:]
	}
	return make([]byte, bufferSize)
}

// Put implements httputil.BufferPool.
func (b *buffers) Put(p []byte) { b.pool.Put((*[bufferSize]byte)(p)) }

// rewrite makes the request that a replica gets. ReverseProxy has taken out what
// concerns one hop only, and what the client says of Forwarded and X-Forwarded.
func rewrite(p *httputil.ProxyRequest) {
	p.Out.URL.Scheme = "http"
	p.Out.URL.RawQuery = p.In.URL.RawQuery // whatever it is: nothing is decided by it here
	p.Out.Host = p.In.Host
	for name := range p.Out.Header {
		// Many programs read Under_Score as Under-Score: it would be a way around.
		if strings.ContainsFunc(name, func(c rune) bool { return c == '_' }) {
			delete(p.Out.Header, name)
		}
	}
	p.SetXForwarded()
	if ip, _, err := net.SplitHostPort(p.In.RemoteAddr); err == nil {
		p.Out.Header.Set("X-Real-Ip", ip)
	} else {
		p.Out.Header.Del("X-Real-Ip")
	}
}

// transport carries requests to backends: gRPC needs HTTP/2, all else has HTTP/1,
// which every program speaks.
func (g *Ingress) transport(http2 bool) http.RoundTripper {
	var protocols http.Protocols
	protocols.SetHTTP1(!http2)
	protocols.SetUnencryptedHTTP2(http2)
	return &http.Transport{
		Protocols: &protocols,
		DialContext: func(ctx context.Context, _, address string) (net.Conn, error) {
			name, _, err := net.SplitHostPort(address)
			if err != nil {
				return nil, err
			}
			g.mu.Lock()
			b := g.byName[name]
			g.mu.Unlock()
			if b == nil {
				return nil, &dialError{errCut}
			}
			return b.dial(ctx)
		},
		DisableCompression:     true,
		MaxIdleConnsPerHost:    64,
		IdleConnTimeout:        30 * time.Second,
		ResponseHeaderTimeout:  g.cfg.Limits.Answer,
		MaxResponseHeaderBytes: 256 << 10,
		ExpectContinueTimeout:  time.Second,
		ForceAttemptHTTP2:      http2,
	}
}

// roundTripper sends a request to a replica, and to another when that does no
// harm.
type roundTripper struct{ *Ingress }

// RoundTrip implements http.RoundTripper.
func (g roundTripper) RoundTrip(r *http.Request) (*http.Response, error) {
	host, ok := r.Context().Value(target{}).(string)
	if !ok {
		return nil, errNone
	}
	body := &onceBody{ReadCloser: r.Body}
	via := g.plain
	if r.ProtoMajor == 2 && strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc") {
		via = g.grpc
	}
	err := error(errNone)
	tried := map[*backend]bool{}
	for n := range attempts {
		var b *backend
		if s := g.site(host); s != nil { // its replicas may be others by now
			b = s.pick(tried)
		}
		if b == nil {
			break
		}
		tried[b] = true
		if n > 0 {
			g.stats.repeated.Add(1)
		}
		var res *http.Response
		if res, err = g.try(r, b, via, body); err == nil {
			return res, nil
		}
		if r.Context().Err() != nil || !mayRepeat(r, body, err) {
			break
		}
	}
	return nil, err
}

// mayRepeat says whether a request may be sent again: nothing of it was, or it
// does the same twice and there is nothing that cannot be sent twice.
func mayRepeat(r *http.Request, body *onceBody, err error) bool {
	var undialled *dialError
	if body.touched.Load() {
		return false
	}
	return errors.As(err, &undialled) || harmless(r)
}

// harmless says whether a request has the same effect when it comes twice.
func harmless(r *http.Request) bool {
	switch r.Method {
	case http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace, http.MethodPut, http.MethodDelete:
		return r.Header.Get("Upgrade") == ""
	}
	return false
}

// try sends a request to one replica. The backend is in use until the answer's
// body is closed.
func (g roundTripper) try(r *http.Request, b *backend, via http.RoundTripper, body *onceBody) (*http.Response, error) {
	b.begin()
	out, at := r.WithContext(r.Context()), *r.URL // what a transport changes is not its header
	at.Host, out.URL = b.name, &at
	if r.Body != nil {
		out.Body = body
	}
	res, err := via.RoundTrip(out)
	if err == nil && harmless(r) && r.Method != http.MethodHead && res.ContentLength > 0 && res.ContentLength <= repeatable {
		whole := make([]byte, res.ContentLength)
		_, err = io.ReadFull(res.Body, whole)
		err = errors.Join(err, res.Body.Close())
		res.Body = io.NopCloser(bytes.NewReader(whole))
	}
	if err != nil {
		b.end()
		if r.Context().Err() == nil && !body.broke.Load() {
			b.failed()
		}
		return nil, err
	}
	b.works()
	if both, ok := res.Body.(io.ReadWriteCloser); ok { // of an upgrade, which stays one
		res.Body = &usedStream{both, usedBody{both, b, atomic.Bool{}}}
	} else {
		res.Body = &usedBody{ReadCloser: res.Body, of: b}
	}
	return res, nil
}

// onceBody is a request's body, which can be sent once: it notes whether any of it
// was asked for. A transport's Close leaves it open, for the next attempt: the
// server that it is of closes it.
type onceBody struct {
	io.ReadCloser
	touched atomic.Bool
	broke   atomic.Bool // the client did not give it
}

// Read reads.
func (b *onceBody) Read(p []byte) (int, error) {
	b.touched.Store(true)
	n, err := b.ReadCloser.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		b.broke.Store(true)
	}
	return n, err
}

// Close does nothing.
func (b *onceBody) Close() error { return nil }

// usedBody is an answer's body; while it is open, its backend is in use.
type usedBody struct {
	io.ReadCloser
	of     *backend
	closed atomic.Bool
}

// Close closes the body once.
func (b *usedBody) Close() error {
	err := b.ReadCloser.Close()
	if b.closed.CompareAndSwap(false, true) {
		b.of.end()
	}
	return err
}

// usedStream is the connection of an upgrade.
type usedStream struct {
	io.ReadWriteCloser
	used usedBody
}

// Close closes the connection once.
func (s *usedStream) Close() error { return s.used.Close() }

// pacedBody is a request's body, of which some must come in time.
type pacedBody struct {
	io.ReadCloser
	rc    *http.ResponseController
	stall time.Duration

	mu    sync.Mutex
	ended bool // the handler has returned, while a transport may still read
}

func (b *pacedBody) deadline(t time.Time) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ended {
		return http.ErrBodyReadAfterClose
	}
	return b.rc.SetReadDeadline(t)
}

// end is for when the handler returns. The server reads what is left of the body,
// and has as long for it as for the next piece.
func (b *pacedBody) end() {
	// A connection that takes no deadline is broken.
	_ = b.deadline(time.Now().Add(b.stall))
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ended = true
}

// Read reads.
func (b *pacedBody) Read(p []byte) (int, error) {
	if err := b.deadline(time.Now().Add(b.stall)); err != nil {
		return 0, err
	}
	n, err := b.ReadCloser.Read(p)
	// Between two reads nobody waits for the client.
	if over := b.deadline(time.Time{}); err == nil {
		err = over
	}
	return n, err
}

// pacedWriter is an answer, of which the client must take some in time.
type pacedWriter struct {
	http.ResponseWriter
	rc    *http.ResponseController
	stall time.Duration
}

func (w *pacedWriter) pace(write func() error) error {
	if err := w.rc.SetWriteDeadline(time.Now().Add(w.stall)); err != nil {
		return err
	}
	err := write()
	if over := w.rc.SetWriteDeadline(time.Time{}); err == nil {
		err = over
	}
	return err
}

// Write writes.
func (w *pacedWriter) Write(p []byte) (n int, err error) {
	err = w.pace(func() (err error) {
		n, err = w.ResponseWriter.Write(p)
		return err
	})
	return n, err
}

// FlushError implements what http.ResponseController asks for.
func (w *pacedWriter) FlushError() error { return w.pace(w.rc.Flush) }

// Unwrap shows the writer below, for all else.
func (w *pacedWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
