package ingress

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"
)

func TestWebSocket(t *testing.T) {
	var upgrade websocket.Upgrader
	echo := func(id string) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			c, err := upgrade.Upgrade(w, r, nil)
			if err != nil {
				return
			}
			defer c.Close()
			for {
				kind, p, err := c.ReadMessage()
				if err != nil || c.WriteMessage(kind, append([]byte(id+" "), p...)) != nil {
					return
				}
			}
		})
	}
	rs := replicas{"a": serveReplica(t, "a", echo("a")), "b": serveReplica(t, "b", echo("b")), "sink": sinkReplica(t)}
	f := run(t, rs, func(c *Config) { c.Limits.Stall = 50 * time.Millisecond; c.Limits.Grace = 50 * time.Millisecond })
	f.serves("x.example", 80, "a")
	dial := func() *websocket.Conn {
		c, res, err := websocket.DefaultDialer.Dial("ws://"+f.address+"/chat", http.Header{"Host": {"x.example"}})
		if err != nil {
			t.Fatalf("%v %v", err, res)
		}
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	says := func(c *websocket.Conn, text, want string) {
		t.Helper()
		if err := c.WriteMessage(websocket.TextMessage, []byte(text)); err != nil {
			t.Fatal(err)
		}
		if _, p, err := c.ReadMessage(); err != nil || string(p) != want {
			t.Errorf("%q: %q, %v", text, p, err)
		}
	}
	old := dial()
	says(old, "one", "a one")
	f.Set(Desired{Sites: map[string]Service{"x.example": of(80, "b"), sink: of(80, "sink")}}) // the old one goes on
	says(dial(), "two", "b two")
	f.outlast() // silence is no stall: nothing waits for it
	says(old, "three", "a three")
	if err := f.stop(); err != nil {
		t.Error(err)
	}
	if _, _, err := old.ReadMessage(); err == nil {
		t.Error("a WebSocket outlives the ingress")
	}
}

// TestHTTP2: with TLS and without, streams of one connection, and the trailers of
// gRPC, which the replica gets by HTTP/2.
func TestHTTP2(t *testing.T) {
	rs := replicas{"a": serveReplica(t, "a", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Content-Type") != "application/grpc" {
			fmt.Fprintf(w, "%s from %s by %s", r.Proto, r.Header.Get("X-Forwarded-For"), r.Header.Get("X-Forwarded-Proto"))
			return
		}
		if r.ProtoMajor != 2 || r.Header.Get("Te") != "trailers" {
			t.Errorf("gRPC came by %s with %v", r.Proto, r.Header)
		}
		w.Header().Set("Content-Type", "application/grpc")
		w.Header().Set("Trailer", "Grpc-Status")
		// Both ways at once, message by message.
		buf := make([]byte, 4)
		for {
			if _, err := io.ReadFull(r.Body, buf); err != nil {
				break
			}
			_, _ = w.Write(bytes.ToUpper(buf))
			_ = http.NewResponseController(w).Flush()
		}
		w.Header().Set("Grpc-Status", "0")
	}))}
	f := run(t, rs, nil)
	f.serves("x.example", 80, "a")
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true)
	tr := &http.Transport{Protocols: &protocols}
	t.Cleanup(tr.CloseIdleConnections)
	c := &http.Client{Transport: tr, Timeout: 30 * time.Second}
	res, body, err := f.request(c, "GET", "x.example", "/", "")
	if err != nil || res.ProtoMajor != 2 || body != "HTTP/1.1 from 127.0.0.1 by http" {
		t.Errorf("%v, %v, %q", err, res, body)
	}
	in, out := io.Pipe()
	r, err := http.NewRequest("POST", "http://"+f.address+"/svc/Method", in)
	if err != nil {
		t.Fatal(err)
	}
	r.Host, r.Header = "x.example", http.Header{"Content-Type": {"application/grpc"}, "Te": {"trailers"}}
	say := func(text string) {
		// A pipe that is broken is seen by who reads.
		go func() { _, _ = io.WriteString(out, text) }()
	}
	say("ping")
	if res, err = c.Do(r); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"ping", "pong"} {
		if text != "ping" {
			say(text)
		}
		buf := make([]byte, 4)
		if _, err := io.ReadFull(res.Body, buf); err != nil || string(buf) != strings.ToUpper(text) {
			t.Fatalf("%q, %v", buf, err)
		}
	}
	_ = out.Close()
	if _, err := io.ReadAll(res.Body); err != nil || res.Trailer.Get("Grpc-Status") != "0" {
		t.Errorf("%v, trailers %v", err, res.Trailer)
	}
}

// TestStreams: what a replica says comes through as it is said, in both versions,
// and silence between is no fault.
func TestStreams(t *testing.T) {
	next := make(chan struct{})
	rs := replicas{"a": serveReplica(t, "a", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for range 3 {
			<-next
			_, _ = io.WriteString(w, "tick\n")
			_ = http.NewResponseController(w).Flush()
		}
	})), "sink": sinkReplica(t)}
	f := run(t, rs, func(c *Config) { c.Limits.Stall = 50 * time.Millisecond })
	f.Set(Desired{Sites: map[string]Service{"x.example": of(80, "a"), sink: of(80, "sink")}})
	for _, http2 := range []bool{false, true} {
		var protocols http.Protocols
		protocols.SetHTTP1(!http2)
		protocols.SetUnencryptedHTTP2(http2)
		tr := &http.Transport{Protocols: &protocols}
		t.Cleanup(tr.CloseIdleConnections)
		r, err := http.NewRequest("GET", "http://"+f.address+"/", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Host = "x.example"
		go func() { next <- struct{}{} }()
		res, err := tr.RoundTrip(r)
		if err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 5)
		for n := range 3 {
			if n > 0 {
				f.outlast()
				next <- struct{}{}
			}
			if _, err := io.ReadFull(res.Body, buf); err != nil || string(buf) != "tick\n" {
				t.Fatalf("HTTP/2 %v, %d: %q, %v", http2, n, buf, err)
			}
		}
		_ = res.Body.Close()
	}
}
