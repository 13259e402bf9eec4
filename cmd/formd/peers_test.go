package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/formthefog/formation/cmd/internal/api"
)

// refusedList notes whom a listener refuses, and why.
type refusedList struct {
	*refusals
	log *bytes.Buffer
}

func newRefusedList() *refusedList {
	var b bytes.Buffer
	return &refusedList{newRefusals(slog.New(slog.NewTextHandler(&b, nil)), time.Now), &b}
}

// served is an API server for streams, until the test ends. Call it in a bubble.
func served(t *testing.T, refused *refusedList) (open func(from peer.ID) net.Conn) {
	t.Helper()
	l := newPeerListener(refused.refuse)
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			api.WriteProblem(w, err)
			return
		}
		if r.URL.Path == "/endless" {
			for {
				if _, err := w.Write(make([]byte, 64<<10)); err != nil {
					return
				}
			}
		}
		if r.URL.Path == "/slow" {
			select {
			case <-time.After(5 * time.Minute):
			case <-r.Context().Done():
				return
			}
		}
		fmt.Fprintf(w, "%d bytes of %s", len(b), string(callingPeer(r.Context())))
	})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		ended <- serveHTTP(ctx, httpServer(h, func(context.Context) api.Caller { return api.Caller{} }, slog.New(slog.DiscardHandler)), l)
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return func(from peer.ID) net.Conn {
		ours, theirs := net.Pipe()
		t.Cleanup(func() { ours.Close() })
		go l.handle(ctx, from, theirs)
		return ours
	}
}

// ended reads until the server closes the stream, and says what came and when.
func ended(t *testing.T, c net.Conn) (text string, after time.Duration) {
	t.Helper()
	began := time.Now()
	b, err := io.ReadAll(c)
	if err != nil {
		t.Errorf("the stream ends with %v", err)
	}
	return string(b), time.Since(began)
}

// trickle sends a byte a second until the stream ends.
func trickle(c net.Conn) {
	for {
		if _, err := c.Write([]byte("x")); err != nil {
			return
		}
		time.Sleep(time.Second)
	}
}

// Who is slow to ask is cut off and named; who asks in time may wait long for the
// answer.
func TestSlowRequestsEnd(t *testing.T) {
	for name, tt := range map[string]struct {
		first  string
		then   func(net.Conn)
		after  time.Duration // at most
		reason string
		answer string
	}{
		"nothing":       {"", nil, headerTimeout, refusedTime, ""},
		"slow headers":  {"GET / HTTP/1.1\r\nX: ", trickle, headerTimeout, refusedTime, ""},
		"no HTTP":       {"\x16\x03\x01\x02\r\n\r\n", nil, 0, refusedShape, "400 Bad Request"},
		"large headers": {"GET / HTTP/1.1\r\nX: ", func(c net.Conn) { _, _ = c.Write(bytes.Repeat([]byte("x"), 100<<10)) }, time.Second, refusedShape, "431"},
		"slow body":     {"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4096\r\n\r\n", trickle, bodyTimeout, "", "408 Request Timeout"},
		"no body":       {"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 4096\r\n\r\n", nil, bodyTimeout, "", "408 Request Timeout"},
		"slow answer":   {"GET /slow HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", nil, 5 * time.Minute, "", "0 bytes of slow answer"},
		"a whole one":   {"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 3\r\n\r\nabc", nil, 0, "", "3 bytes of a whole one"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				refused := newRefusedList()
				c := served(t, refused)(peer.ID(name))
				if _, err := io.WriteString(c, tt.first); err != nil {
					t.Fatal(err)
				}
				var sending sync.WaitGroup
				if tt.then != nil {
					sending.Go(func() { tt.then(c) })
				}
				answer, after := ended(t, c)
				if !strings.Contains(answer, tt.answer) || after > tt.after+time.Second {
					t.Errorf("after %v: %q", after, answer)
				}
				c.Close()
				sending.Wait()
				synctest.Wait()
				if by := refused.counts(); tt.reason != "" && by[tt.reason] != 1 || tt.reason == "" && len(by) != 0 {
					t.Errorf("refused %v", by)
				}
				if tt.reason != "" && !strings.Contains(refused.log.String(), "reason="+tt.reason) {
					t.Errorf("the log says %q", refused.log)
				}
			})
		})
	}
}

// Who takes nothing of a long answer ends it.
func TestWhoTakesNothingIsCutOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := served(t, newRefusedList())("p")
		if _, err := io.WriteString(c, "GET /endless HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Read(make([]byte, 10)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(takeTime + time.Second)
		synctest.Wait()
		if n, err := io.Copy(io.Discard, c); err != nil || n > 1<<20 {
			t.Errorf("%d bytes more, %v", n, err)
		}
	})
}

// One peer has its share of streams, and many that hold theirs keep nobody out.
func TestStreamsOfTheAPIAreShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		refused := newRefusedList()
		open := served(t, refused)
		var first net.Conn
		for i := range maxCalls / maxCallsOfOne {
			for range maxCallsOfOne + 1 {
				c := open(peer.ID(fmt.Sprintf("greedy %d", i)))
				if first == nil {
					first = c
					synctest.Wait() // it is the oldest
				}
			}
		}
		synctest.Wait()
		if n := refused.counts()[refusedRate]; n != maxCalls/maxCallsOfOne {
			t.Errorf("%d refused", n)
		}
		c := open("modest")
		if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		if answer, after := ended(t, c); !strings.Contains(answer, "0 bytes of modest") || after != 0 {
			t.Errorf("after %v: %q", after, answer)
		}
		if _, after := ended(t, first); after != 0 {
			t.Errorf("the oldest stream of the greediest lasts %v more", after)
		}
	})
}

// A peer is named once a minute for one reason, and so many peers at most.
func TestRefusalsAreToldNowAndThen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRefusedList()
		for range 100 {
			r.refuse("p", refusedRate, errManyCalls)
		}
		r.refuse("p", refusedTime, errNoRequest)
		for i := range 2 * mostNamed {
			r.refuse(peer.ID(fmt.Sprint(i)), refusedRate, errManyCalls)
		}
		if by := r.counts(); by[refusedRate] != 100+2*mostNamed || by[refusedTime] != 1 {
			t.Errorf("counted %v", by)
		}
		if n := strings.Count(r.log.String(), "\n"); n != mostNamed {
			t.Errorf("%d lines", n)
		}
		time.Sleep(nameAgain)
		r.log.Reset()
		if r.refuse("p", refusedRate, errManyCalls); strings.Count(r.log.String(), "\n") != 1 {
			t.Errorf("a minute later: %q", r.log)
		}
	})
}
