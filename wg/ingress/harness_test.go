package ingress

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

// replica is a server that can be killed: then its connections break, and none
// opens.
type replica struct {
	id string
	l  net.Listener

	mu    sync.Mutex
	conns map[net.Conn]bool
	dead  bool
	dials int
}

// replicas is a Dialer to servers on loopback.
type replicas map[string]*replica

// Dial implements Dialer.
func (rs replicas) Dial(ctx context.Context, id, network string, port int) (net.Conn, error) {
	r := rs[id]
	if r == nil {
		return nil, fmt.Errorf("no replica %s", id)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.dials++
	if r.dead {
		return nil, fmt.Errorf("%s is dead", id)
	}
	if network == "udp" {
		return echoDatagrams(id), nil
	}
	c, err := (&net.Dialer{}).DialContext(ctx, "tcp", r.l.Addr().String())
	if err == nil {
		r.conns[c] = true
	}
	return c, err
}

// echoDatagrams is a stream to a replica that answers each with its own name and
// the datagram.
func echoDatagrams(id string) net.Conn {
	near, far := net.Pipe()
	go func() {
		defer far.Close()
		buf := make([]byte, MaxDatagram)
		for {
			n, err := ReadDatagram(far, buf)
			if err != nil {
				return
			}
			if WriteDatagram(far, append([]byte(id+" "), buf[:n]...)) != nil {
				return
			}
		}
	}()
	return near
}

func (r *replica) kill() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.dead = true
	for c := range r.conns {
		// As when a machine dies: nothing is said.
		if t, ok := c.(*net.TCPConn); ok {
			_ = t.SetLinger(0)
		}
		_ = c.Close()
	}
}

func (r *replica) revive() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.dead = false
}

func (r *replica) dialled() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.dials
}

// serveReplica is a replica that serves HTTP, of both versions without TLS.
func serveReplica(t testing.TB, id string, h http.Handler) *replica {
	t.Helper()
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	s := &http.Server{Handler: h, Protocols: &protocols}
	r := listenReplica(t, id)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Serve(r.l)
	}()
	t.Cleanup(func() {
		_ = s.Close()
		<-done
	})
	return r
}

func listenReplica(t testing.TB, id string) *replica {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return &replica{id: id, l: l, conns: map[net.Conn]bool{}}
}

// echoReplica is a replica that says its name, and then what it hears.
func echoReplica(t testing.TB, id string) *replica {
	t.Helper()
	r := listenReplica(t, id)
	go func() {
		for {
			c, err := r.l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				if _, err := io.WriteString(c, id+"\n"); err == nil {
					_, _ = io.Copy(c, c)
				}
			}()
		}
	}()
	return r
}

// front is an Ingress that runs.
type front struct {
	*Ingress
	t       testing.TB
	address string
	client  *http.Client
	stop    func() error // ends it
}

// run starts an Ingress over replicas, with HTTP on loopback.
func run(t testing.TB, rs replicas, change func(*Config)) *front {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := Config{Dialer: rs, HTTP: l, Host: "127.0.0.1", Logger: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))}
	if change != nil {
		change(&c)
	}
	g, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- g.Run(ctx) }()
	stop := sync.OnceValue(func() error {
		cancel()
		return <-ended
	})
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
	return &front{Ingress: g, t: t, address: l.Addr().String(), client: client(t), stop: stop}
}

// serves sets what is served under one name.
func (f *front) serves(name string, port int, ids ...string) {
	f.Set(Desired{Sites: map[string]Service{name: of(port, ids...)}})
}

func of(port int, ids ...string) Service {
	s := Service{Port: port}
	for _, id := range ids {
		s.Replicas = append(s.Replicas, Replica{ID: id})
	}
	return s
}

// sink is a site whose replica waits for a body; outlast needs it.
const sink = "sink.example"

func sinkReplica(t testing.TB) *replica {
	return serveReplica(t, "sink", http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body) // it ends as the ingress ends it
	}))
}

// outlast returns when a client that began after it was called has been cut for
// stalling: so long, at least, everybody else has been silent.
func (f *front) outlast() {
	f.t.Helper()
	c, err := net.Dial("tcp", f.address)
	if err != nil {
		f.t.Fatal(err)
	}
	defer func() { _ = c.Close() }() // of no use any more
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		f.t.Fatal(err)
	}
	if _, err := io.WriteString(c, "POST / HTTP/1.1\r\nHost: "+sink+"\r\nContent-Length: 10\r\n\r\nabc"); err != nil {
		f.t.Fatal(err)
	}
	var timeout net.Error
	if _, err := io.Copy(io.Discard, c); errors.As(err, &timeout) && timeout.Timeout() {
		f.t.Fatal("a client that stalls is not cut")
	}
}

// request sends one to the front, for a host.
func (f *front) request(client *http.Client, method, host, path, body string) (*http.Response, string, error) {
	r, err := http.NewRequestWithContext(f.t.Context(), method, "http://"+f.address+path, strings.NewReader(body))
	if err != nil {
		return nil, "", err
	}
	if body == "" {
		r.Body = nil
	}
	r.Host = host
	res, err := client.Do(r)
	if err != nil {
		return nil, "", err
	}
	b, err := io.ReadAll(res.Body)
	return res, string(b), errorsJoin(err, res.Body.Close())
}

func (f *front) get(host, path string) (int, string) {
	f.t.Helper()
	res, body, err := f.request(f.client, "GET", host, path, "")
	if err != nil {
		f.t.Fatal(err)
	}
	return res.StatusCode, body
}

// client keeps nothing of other tests.
func client(t testing.TB) *http.Client {
	tr := &http.Transport{}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 30 * time.Second}
}

func errorsJoin(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// says answers with a name, and says what it was asked.
func says(id string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		fmt.Fprintf(w, "%s: %s %s %s", id, r.Method, r.URL.RequestURI(), body)
	})
}

func eventually(t testing.TB, limit time.Duration, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(limit); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s", limit, what)
		}
	}
}

// dialTCP opens a connection to a port of this machine, and reads the first line.
func dialTCP(t testing.TB, address string) (net.Conn, *bufio.Reader, string) {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(c)
	line, err := r.ReadString('\n')
	if err != nil {
		return c, r, ""
	}
	return c, r, strings.TrimSpace(line)
}

// freePort is one that was free a moment ago, for TCP and UDP.
func freePort(t testing.TB) int {
	t.Helper()
	for range 50 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		port := l.Addr().(*net.TCPAddr).Port
		pc, err := net.ListenPacket("udp", l.Addr().String())
		_ = l.Close()
		if err == nil {
			_ = pc.Close()
			return port
		}
	}
	t.Fatal("no port is free for TCP and UDP")
	return 0
}

// dialTLS returns the certificate that a server shows.
func dialTLS(address, name string, roots *x509.CertPool) (*x509.Certificate, error) {
	c, err := tls.DialWithDialer(&net.Dialer{Timeout: 20 * time.Second}, "tcp", address, &tls.Config{ServerName: name, RootCAs: roots})
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return c.ConnectionState().PeerCertificates[0], nil
}
