package ingress

import (
	"bufio"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// text renders what is not zero.
func (s Stats) text() string {
	var out []string
	for _, of := range []struct {
		name  string
		words map[string]uint64
	}{{"requests", s.Requests}, {"failed", s.Failed}, {"refused", s.Refused}} {
		for _, w := range slices.Sorted(maps.Keys(of.words)) {
			if of.words[w] > 0 {
				out = append(out, fmt.Sprintf("%s %s %d", of.name, w, of.words[w]))
			}
		}
	}
	for _, kind := range slices.Sorted(maps.Keys(s.Open)) {
		if kind != kindHTTP && s.Open[kind] != 0 { // clients of the tests keep some
			out = append(out, fmt.Sprintf("open %s %d", kind, s.Open[kind]))
		}
	}
	return strings.Join(out, ", ")
}

// counts waits until the counts since before are as wanted.
func (f *front) counts(what string, before Stats, want string) {
	f.t.Helper()
	less := func(a, b map[string]uint64) map[string]uint64 {
		for w := range a {
			a[w] -= b[w]
		}
		return a
	}
	got := ""
	defer func() {
		if got != want {
			f.t.Logf("%s: %s", what, got)
		}
	}()
	eventually(f.t, 20*time.Second, what+": "+want, func() bool {
		now := f.Stats()
		now.Requests, now.Failed, now.Refused = less(now.Requests, before.Requests), less(now.Failed, before.Failed), less(now.Refused, before.Refused)
		got = now.text()
		return got == want
	})
}

// TestStats: each thing that happens is counted once, under the word that it has;
// what a client or a replica says makes no word.
func TestStats(t *testing.T) {
	hold := make(chan struct{})
	replica := serveReplica(t, "a", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/hints":
			w.WriteHeader(http.StatusEarlyHints)
			w.WriteHeader(http.StatusNoContent)
		case "/switch":
			c, rw, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			_, _ = rw.WriteString("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
			_ = rw.Flush() // the client sees whether it came
		case "/hold":
			<-hold
		case "/cut":
			w.Header().Set("Content-Length", "1000000")
			_, _ = w.Write([]byte("x"))
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		default:
			var status int
			if _, err := fmt.Sscanf(r.URL.Path, "/%d", &status); err != nil {
				t.Error(err)
				return
			}
			w.WriteHeader(status)
		}
	}))
	f := run(t, replicas{"a": replica, "e": echoReplica(t, "e")}, func(c *Config) {
		c.Limits.Requests, c.Limits.ConnsOfOne, c.Limits.FlowsOfOne, c.Limits.FlowIdle = 1, 8, 1, time.Hour
	})
	tcp, udp, dead := freePort(t), freePort(t), freePort(t)
	f.Set(Desired{
		Sites: map[string]Service{"x.example": of(80, "a"), "none.example": of(80)},
		Ports: map[Port]Service{{"tcp", tcp}: of(1, "e"), {"udp", udp}: of(1, "e"), {"tcp", dead}: of(1), {"udp", dead}: of(1)},
	})
	eventually(t, 20*time.Second, "the ports to be open", func() bool { return f.Stats().Ports == 4 })
	dial := func(network string, port int) net.Conn {
		c, err := net.Dial(network, fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	line := func(c net.Conn) {
		if _, err := bufio.NewReader(c).ReadString('\n'); err != nil {
			t.Error(err)
		}
	}
	say := func(c net.Conn) {
		if _, err := io.WriteString(c, "ping"); err != nil {
			t.Error(err)
		}
	}
	ask := func(method, host, path string, header ...string) net.Conn {
		_, port, err := net.SplitHostPort(f.address)
		if err != nil {
			t.Fatal(err)
		}
		number, err := strconv.Atoi(port)
		if err != nil {
			t.Fatal(err)
		}
		c := dial("tcp", number)
		if _, err := fmt.Fprintf(c, "%s %s HTTP/1.1\r\nHost: %s\r\n%s\r\n", method, path, host, strings.Join(header, "")); err != nil {
			t.Fatal(err)
		}
		return c
	}
	answer := func(c net.Conn) { // waits for what is more than a hint
		defer c.Close()
		for in, final := bufio.NewReader(c), false; !final; {
			said, err := in.ReadString('\n')
			if err != nil {
				t.Error(err)
				return
			}
			final = strings.HasPrefix(said, "HTTP/") && !strings.HasPrefix(said, "HTTP/1.1 103 ")
		}
	}
	var held net.Conn
	for _, tt := range []struct {
		what string
		do   func()
		want string
	}{
		{"a good one", func() { answer(ask("GET", "x.example", "/200")) }, "requests 2xx 1"},
		{"elsewhere", func() { answer(ask("GET", "x.example", "/302")) }, "requests 3xx 1"},
		{"not there", func() { answer(ask("POST", "x.example", "/404")) }, "requests 4xx 1"},
		{"its own error", func() { answer(ask("GET", "x.example", "/500")) }, "requests 5xx 1"},
		{"a class that is not", func() { answer(ask("GET", "x.example", "/999")) }, "requests 5xx 1"},
		{"hints first", func() { answer(ask("GET", "x.example", "/hints")) }, "requests 2xx 1"},
		{"another protocol", func() { answer(ask("GET", "x.example", "/switch", "Connection: Upgrade\r\nUpgrade: echo\r\n")) }, "requests 1xx 1"},
		{"broken off", func() { _, _ = io.Copy(io.Discard, ask("POST", "x.example", "/cut")) }, "requests broken 1"},
		{"no replica", func() { answer(ask("GET", "none.example", "/200")) }, "requests 5xx 1, failed http 1"},
		{"no site", func() { answer(ask("GET", "y.example", "/200")) }, "refused site 1"},
		{"no place", func() {
			held = ask("GET", "x.example", "/hold")
			eventually(t, 20*time.Second, "the place to be taken", func() bool { return len(f.places) == 1 })
			answer(ask("GET", "x.example", "/200"))
		}, "refused requests 1"},
		{"the client leaves", func() { _ = held.Close() }, "requests none 1"},
		{"a port", func() { held = dial("tcp", tcp); line(held) }, "open tcp 1"},
		{"which is left", func() { _ = held.Close() }, ""},
		{"a port without replicas", func() { _ = dial("tcp", dead) }, "failed tcp 1"},
		{"datagrams", func() { held = dial("udp", udp); say(held) }, "open udp 1"},
		{"of another", func() { say(dial("udp", udp)) }, "refused flows_of_one 1, open udp 1"},
		{"and without replicas", func() { say(dial("udp", dead)) }, "failed udp 1, open udp 1"},
	} {
		before := f.Stats()
		tt.do()
		f.counts(tt.what, before, tt.want)
	}
	close(hold)
}
