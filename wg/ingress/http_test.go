package ingress

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func TestSites(t *testing.T) {
	f := run(t, replicas{"a": serveReplica(t, "a", says("a")), "b": serveReplica(t, "b", says("b"))}, nil)
	f.Set(Desired{Sites: map[string]Service{"a.example": of(80, "a"), "b.example": of(80, "b"), "none.example": of(80), "lost.example": of(80, "nobody")}})
	for _, tt := range []struct {
		method, host, path, body string
		status                   int
		want                     string
	}{
		{"GET", "a.example", "/", "", 200, "a: GET / "},
		{"GET", "b.example", "/x?y=%zz;&z", "", 200, "b: GET /x?y=%zz;&z "},
		{"GET", "A.Example:8080", "/", "", 200, "a: GET / "},
		{"GET", "a.example.", "/", "", 200, "a: GET / "},
		{"POST", "b.example", "/form", "n=1", 200, "b: POST /form n=1"},
		{"DELETE", "b.example", "/it", "", 200, "b: DELETE /it "},
		{"GET", "c.example", "/", "", 404, "no such site here\n"},
		{"GET", "127.0.0.1", "/", "", 404, "no such site here\n"},
		{"GET", "none.example", "/", "", 503, "no replica answers\n"},
		{"POST", "lost.example", "/", "x", 503, "no replica answers\n"},
	} {
		res, body, err := f.request(client(t), tt.method, tt.host, tt.path, tt.body)
		if err != nil {
			t.Fatalf("%s: %v", tt.host, err)
		}
		if res.StatusCode != tt.status || body != tt.want {
			t.Errorf("%s %s%s: %d %q, want %d %q", tt.method, tt.host, tt.path, res.StatusCode, body, tt.status, tt.want)
		}
	}
	f.Set(Desired{})
	if status, _ := f.get("a.example", "/"); status != 404 {
		t.Errorf("what is not served any more: %d", status)
	}
}

// TestHeaders: a replica hears who the client is from us alone, and nothing that
// was meant for us alone.
func TestHeaders(t *testing.T) {
	got := make(chan http.Header, 1)
	f := run(t, replicas{"a": serveReplica(t, "a", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := r.Header.Clone()
		h.Set("Host", r.Host)
		got <- h
		w.Header().Set("Connection", "X-Private")
		w.Header().Set("X-Private", "1")
		w.Header().Set("X-Own", "1")
	}))}, nil)
	f.serves("a.example", 80, "a")
	r, err := http.NewRequest("GET", "http://"+f.address+"/", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Host = "a.example"
	r.Header = http.Header{
		"X-Forwarded-For": {"6.6.6.6"}, "X-Forwarded-Host": {"evil"}, "X-Forwarded-Proto": {"https"}, "Forwarded": {"for=6.6.6.6"},
		"X-Real-Ip": {"6.6.6.6"}, "X_forwarded_for": {"6.6.6.6"}, "Connection": {"X-Hop"}, "X-Hop": {"1"}, "Keep-Alive": {"1"},
		"Proxy-Authorization": {"secret"}, "X-End": {"kept"}, "User-Agent": {"test"}, "Accept-Encoding": {"gzip"},
	}
	res, err := client(t).Do(r)
	if err != nil {
		t.Fatal(err)
	}
	_ = res.Body.Close()
	want := http.Header{
		"X-Forwarded-For": {"127.0.0.1"}, "X-Forwarded-Host": {"a.example"}, "X-Forwarded-Proto": {"http"}, "X-Real-Ip": {"127.0.0.1"},
		"X-End": {"kept"}, "User-Agent": {"test"}, "Accept-Encoding": {"gzip"}, "Host": {"a.example"},
	}
	if h := <-got; !maps.EqualFunc(h, want, slices.Equal) {
		t.Errorf("the replica got\n%v, want\n%v", h, want)
	}
	if res.Header.Get("X-Own") != "1" || res.Header.Get("X-Private") != "" {
		t.Errorf("the client got %v", res.Header)
	}
}

// TestKilledReplica: while clients ask for what may be repeated, a replica dies,
// and none of them sees it; nor when it comes back.
func TestKilledReplica(t *testing.T) {
	var slow atomic.Int32
	handler := func(id string) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			// The answer comes in two pieces: the replica may die between them.
			w.Header().Set("Content-Length", "8")
			_, _ = io.WriteString(w, id+"-")
			_ = http.NewResponseController(w).Flush()
			slow.Add(1)
			time.Sleep(2 * time.Millisecond)
			_, _ = io.WriteString(w, "answer")
		})
	}
	rs := replicas{"a": serveReplica(t, "a", handler("a")), "b": serveReplica(t, "b", handler("b")), "c": serveReplica(t, "c", handler("c"))}
	f := run(t, rs, nil)
	f.serves("x.example", 80, "a", "b", "c")
	var answers sync.Map
	var count atomic.Int64
	stop := make(chan struct{})
	var clients sync.WaitGroup
	for n := range 8 {
		method := []string{"GET", "PUT", "DELETE", "OPTIONS"}[n%4]
		clients.Go(func() {
			c := client(t)
			for {
				select {
				case <-stop:
					return
				default:
				}
				res, body, err := f.request(c, method, "x.example", "/", "")
				if err != nil || res.StatusCode != 200 || len(body) != 8 {
					t.Errorf("%s: %v, %v, %q", method, err, res, body)
					return
				}
				answers.Store(body[:1], true)
				count.Add(1)
			}
		})
	}
	after := func(n int64, what string) {
		from := count.Load()
		eventually(t, 30*time.Second, what, func() bool { return count.Load() > from+n || t.Failed() })
	}
	after(200, "answers")
	for _, id := range []string{"a", "b"} {
		rs[id].kill()
		after(200, "answers without "+id)
	}
	answers.Delete("a")
	rs["a"].revive()
	eventually(t, 20*time.Second, "a to be taken in again", func() bool {
		_, ok := answers.Load("a")
		return ok || t.Failed()
	})
	close(stop)
	clients.Wait()
	if f.Stats().Repeated == 0 {
		t.Error("nothing had to be repeated: the test shows nothing")
	}
	if f.Stats().Failed["http"] != 0 {
		t.Errorf("%d requests failed", f.Stats().Failed["http"])
	}
}

// TestNotRepeated: what has an effect goes out once, unless nothing of it did.
func TestNotRepeated(t *testing.T) {
	var came atomic.Int32
	breaks := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		came.Add(1)
		panic(http.ErrAbortHandler)
	})
	rs := replicas{"a": serveReplica(t, "a", breaks), "b": serveReplica(t, "b", breaks), "c": serveReplica(t, "c", breaks), "well": serveReplica(t, "well", says("well")), "dead": listenReplica(t, "dead")}
	rs["dead"].kill()
	f := run(t, rs, nil)
	for _, tt := range []struct {
		method, body string
		once         bool
	}{
		{"POST", "", true}, {"POST", "x", true}, {"PATCH", "x", true}, {"PUT", "x", true}, // a body that was sent
		{"GET", "", false}, {"PUT", "", false}, {"DELETE", "", false},
	} {
		f.serves("x.example", 80, "a", "b", "c")
		came.Store(0)
		res, _, err := f.request(client(t), tt.method, "x.example", "/", tt.body)
		if n := came.Load(); err != nil || res.StatusCode != 502 || tt.once && n != 1 || !tt.once && n < 3 {
			t.Errorf("%s %q: %v, %v, sent %d times", tt.method, tt.body, err, res, n)
		}
	}
	f.serves("x.example", 80, "dead", "well")
	for range 20 { // whichever is asked first
		f.Set(Desired{})
		f.serves("x.example", 80, "dead", "well")
		res, body, err := f.request(client(t), "POST", "x.example", "/", "once")
		if err != nil || res.StatusCode != 200 || body != "well: POST / once" {
			t.Fatalf("%v, %v, %q", err, res, body)
		}
	}
	if rs["dead"].dialled() == 0 {
		t.Error("the dead replica was never asked")
	}
}

// TestLeftOut: a replica that fails gets nothing until it accepts again, but for a
// question now and then.
func TestLeftOut(t *testing.T) {
	rs := replicas{"a": serveReplica(t, "a", says("a")), "b": serveReplica(t, "b", says("b"))}
	f := run(t, rs, nil)
	f.serves("x.example", 80, "a", "b")
	rs["a"].kill()
	eventually(t, 10*time.Second, "a's failure to be noticed", func() bool {
		f.get("x.example", "/")
		return rs["a"].dialled() > 0
	})
	before := rs["a"].dialled()
	for range 100 {
		if _, body := f.get("x.example", "/"); !strings.HasPrefix(body, "b:") {
			t.Fatal(body)
		}
	}
	if more := rs["a"].dialled() - before; more > 5 {
		t.Errorf("a dead replica was asked %d times for 100 requests", more)
	}
	rs["a"].revive()
	eventually(t, 20*time.Second, "a to answer again", func() bool {
		_, body := f.get("x.example", "/")
		return strings.HasPrefix(body, "a:")
	})
}

// TestBalance: requests go where the least is under way.
func TestBalance(t *testing.T) {
	var busy [3]atomic.Int32
	release := make(chan struct{})
	rs := replicas{}
	for i, id := range []string{"a", "b", "c"} {
		rs[id] = serveReplica(t, id, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			busy[i].Add(1)
			<-release
		}))
	}
	f := run(t, rs, nil)
	f.serves("x.example", 80, "a", "b", "c")
	var all sync.WaitGroup
	for n := range int32(30) {
		all.Go(func() { f.get("x.example", "/") })
		eventually(t, 10*time.Second, "the request to arrive", func() bool { return busy[0].Load()+busy[1].Load()+busy[2].Load() > n })
	}
	close(release)
	all.Wait()
	for i := range busy {
		if n := busy[i].Load(); n != 10 {
			t.Errorf("replica %d had %d of 30", i, n)
		}
	}
}

// TestDrain: a replica that is not listed any more gets nothing new and finishes
// what it has; one that is gone is cut, and what may be is repeated elsewhere.
func TestDrain(t *testing.T) {
	arrived, release := make(chan string, 10), make(chan struct{})
	slow := func(id string) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/slow" && id == "a" {
				arrived <- id
				<-release
			}
			_, _ = io.WriteString(w, id)
		})
	}
	defer close(release)
	rs := replicas{"a": serveReplica(t, "a", slow("a")), "b": serveReplica(t, "b", slow("b"))}
	ask := func(f *front, method string) chan string {
		out := make(chan string, 1)
		go func() {
			res, body, err := f.request(client(t), method, "x.example", "/slow", "")
			if err != nil {
				body = err.Error()
			} else if res.StatusCode != 200 {
				body = res.Status
			}
			out <- body
		}()
		if id := <-arrived; id != "a" {
			t.Fatalf("%s was asked", id)
		}
		return out
	}
	t.Run("listed no more", func(t *testing.T) {
		f := run(t, rs, nil)
		f.serves("x.example", 80, "a")
		out := ask(f, "POST")
		f.serves("x.example", 80, "b")
		if _, body := f.get("x.example", "/"); body != "b" {
			t.Errorf("a new request went to %s", body)
		}
		select {
		case body := <-out:
			t.Fatalf("the old request ended early: %s", body)
		default:
		}
		release <- struct{}{}
		if body := <-out; body != "a" {
			t.Errorf("the old request: %s", body)
		}
	})
	t.Run("not within its time", func(t *testing.T) {
		f := run(t, rs, func(c *Config) { c.Limits.Drain = 50 * time.Millisecond })
		f.serves("x.example", 80, "a")
		out := ask(f, "POST")
		f.serves("x.example", 80, "b")
		if body := <-out; body != "502 Bad Gateway" {
			t.Errorf("the old request: %s", body)
		}
	})
	t.Run("gone", func(t *testing.T) {
		f := run(t, rs, nil)
		f.serves("x.example", 80, "a")
		out := ask(f, "GET")
		f.Set(Desired{Sites: map[string]Service{"x.example": {Port: 80, Replicas: []Replica{{ID: "a", Gone: true}, {ID: "b"}}}}})
		if body := <-out; body != "b" {
			t.Errorf("the old request: %s", body)
		}
		if _, body := f.get("x.example", "/"); body != "b" {
			t.Errorf("a new request: %s", body)
		}
		f.serves("x.example", 80, "a") // and back
		for range len(arrived) {
		}
		if _, body := f.get("x.example", "/"); body != "a" {
			t.Errorf("after it came back: %s", body)
		}
	})
	t.Run("gone, and no other", func(t *testing.T) {
		f := run(t, rs, nil)
		f.serves("x.example", 80, "a")
		out := ask(f, "GET")
		f.Set(Desired{Sites: map[string]Service{"x.example": {Port: 80, Replicas: []Replica{{ID: "a", Gone: true}}}}})
		if body := <-out; body != "502 Bad Gateway" {
			t.Errorf("the request: %s", body)
		}
	})
}

// TestShutdown: what is under way ends, nothing new begins, and nothing is waited
// for longer than the grace.
func TestShutdown(t *testing.T) {
	arrived, release := make(chan struct{}, 2), make(chan struct{})
	rs := replicas{"a": serveReplica(t, "a", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		arrived <- struct{}{}
		select {
		case <-release:
		case <-r.Context().Done():
		}
		_, _ = io.WriteString(w, "done")
	}))}
	begin := func(grace time.Duration) (*front, chan error) {
		f := run(t, rs, func(c *Config) { c.Limits.Grace = grace })
		f.serves("x.example", 80, "a")
		out := make(chan error, 1)
		go func() {
			res, body, err := f.request(client(t), "POST", "x.example", "/", "")
			if err == nil && (res.StatusCode != 200 || body != "done") {
				err = errors.New(res.Status + " " + body)
			}
			out <- err
		}()
		<-arrived
		return f, out
	}
	f, out := begin(time.Hour)
	ended := make(chan error, 1)
	go func() { ended <- f.stop() }()
	eventually(t, 10*time.Second, "the listener to close", func() bool {
		c, err := net.Dial("tcp", f.address)
		if err == nil {
			_ = c.Close()
		}
		return err != nil
	})
	select {
	case err := <-ended:
		t.Fatalf("it ended with a request under way: %v", err)
	default:
	}
	close(release)
	if err := <-out; err != nil {
		t.Error(err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}

	release = make(chan struct{})
	f, out = begin(50 * time.Millisecond)
	if err := f.stop(); err != nil {
		t.Error(err)
	}
	if <-out == nil {
		t.Error("the request ended well")
	}
}

// TestLimits: connections of one client, headers, and clients that wait.
func TestLimits(t *testing.T) {
	rs := replicas{"a": serveReplica(t, "a", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n, _ := io.Copy(io.Discard, r.Body)
		fmt.Fprint(w, n)
		if r.URL.Path == "/big" {
			_, _ = w.Write(make([]byte, 64<<20))
		}
	}))}
	f := run(t, rs, func(c *Config) {
		c.Limits.ConnsOfOne, c.Limits.Header, c.Limits.Stall = 4, 300*time.Millisecond, 300*time.Millisecond
	})
	f.serves("x.example", 80, "a")
	open := func(text string) net.Conn {
		c, err := net.Dial("tcp", f.address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(c, text); err != nil {
			t.Fatal(err)
		}
		return c
	}
	ends := func(what string, c net.Conn) {
		t.Helper()
		_, err := io.Copy(io.Discard, c)
		var timeout net.Error
		if errors.As(err, &timeout) && timeout.Timeout() {
			t.Errorf("%s: it waits", what)
		}
		_ = c.Close()
	}
	ends("a header that does not end", open("GET / HTTP/1.1\r\nHost: x.example\r\n"))
	ends("a body that does not come", open("POST / HTTP/1.1\r\nHost: x.example\r\nContent-Length: 10\r\n\r\nabc"))
	stalled := open("GET /big HTTP/1.1\r\nHost: x.example\r\n\r\n")
	eventually(t, 20*time.Second, "the client that takes nothing to be cut", func() bool {
		_, err := stalled.Write([]byte("x")) // what has been cut says so
		return err != nil
	})
	_ = stalled.Close()

	r := open("GET / HTTP/1.1\r\nHost: x.example\r\nX: " + strings.Repeat("x", maxHeader+8<<10) + "\r\n\r\n")
	buf := make([]byte, 12)
	if _, err := io.ReadFull(r, buf); err != nil || string(buf) != "HTTP/1.1 431" {
		t.Errorf("a long header: %q, %v", buf, err)
	}
	_ = r.Close()
	eventually(t, 10*time.Second, "places to be free again", func() bool {
		f.guard.mu.Lock()
		defer f.guard.mu.Unlock()
		return f.guard.taken == 0
	})
	kept := client(t)
	var hold []net.Conn
	for range 4 {
		hold = append(hold, open("GET / HTTP/1.1\r\n"))
	}
	eventually(t, 10*time.Second, "a connection over the limit to be refused", func() bool {
		_, _, err := f.request(kept, "GET", "x.example", "/", "")
		return err != nil
	})
	if f.Stats().Refused["connections_of_one"] == 0 {
		t.Error("no refusal is counted")
	}
	for _, c := range hold {
		_ = c.Close()
	}
	eventually(t, 10*time.Second, "a connection when others have ended", func() bool {
		_, _, err := f.request(kept, "GET", "x.example", "/", "")
		return err == nil
	})
}
