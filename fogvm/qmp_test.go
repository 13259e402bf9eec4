package fogvm

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/digitalocean/go-qemu/qmp"
)

// TestQMP: events between replies, an error, a late reply to a command that was
// given up, and the end of QEMU.
func TestQMP(t *testing.T) {
	ours, theirs := net.Pipe()
	heard := make(chan string, 4)
	q := newQMP(ours, func(e qmp.Event) { heard <- fmt.Sprint(e.Event, " ", e.Data["reason"]) })
	ran := make(chan error, 1)
	go func() { ran <- q.run() }()
	commands := make(chan string)
	go func() {
		defer close(commands)
		scanner := bufio.NewScanner(theirs)
		for scanner.Scan() {
			commands <- scanner.Text()
		}
	}()
	say := func(lines ...string) {
		for _, l := range lines {
			if _, err := theirs.Write([]byte(l + "\n")); err != nil {
				t.Error(err)
			}
		}
	}
	result := make(chan error, 1)
	ask := func(ctx context.Context, name string) { go func() { result <- q.execute(ctx, name) }() }

	ask(t.Context(), "qmp_capabilities")
	if got := <-commands; got != `{"execute":"qmp_capabilities","id":1}` {
		t.Errorf("sent %s", got)
	}
	say(`{"QMP":{"version":{},"capabilities":[]}}`, `{"event":"SHUTDOWN","data":{"guest":true,"reason":"guest-reset"},"timestamp":{"seconds":1,"microseconds":2}}`,
		`{"return":{},"id":1}`)
	if err := <-result; err != nil {
		t.Error(err)
	}
	if got := <-heard; got != "SHUTDOWN guest-reset" {
		t.Errorf("event %q", got)
	}

	short, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	ask(short, "slow")
	<-commands
	if err := <-result; !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("given up: %v", err)
	}
	ask(t.Context(), "bad")
	<-commands
	say(`{"return":{},"id":2}`, `{"error":{"class":"CommandNotFound","desc":"no"},"id":3}`)
	if err := <-result; err == nil || !strings.Contains(err.Error(), "CommandNotFound") {
		t.Errorf("error reply: %v", err)
	}

	ask(t.Context(), "last")
	<-commands
	theirs.Close()
	if err := <-result; !errors.Is(err, errQMPGone) {
		t.Errorf("QEMU gone: %v", err)
	}
	<-ran
	if err := q.execute(t.Context(), "after"); !errors.Is(err, errQMPGone) {
		t.Errorf("after the end: %v", err)
	}
}

// said is a connection on which a hostile QEMU, or guest in it, has said all it says.
type said struct {
	net.Conn
	r *bytes.Reader
}

func (s said) Read(b []byte) (int, error) { return s.r.Read(b) }

// FuzzQMP: whatever QEMU says, reading it ends, and so does every command that waits.
func FuzzQMP(f *testing.F) {
	f.Add([]byte("{\"QMP\":{}}\n{\"return\":{},\"id\":1}\n{\"event\":\"SHUTDOWN\",\"data\":{\"reason\":\"guest-reset\"},\"timestamp\":{\"seconds\":1}}\n"))
	f.Add([]byte("{\"error\":{\"class\":\"GenericError\",\"desc\":\"no\"},\"id\":1}\n{\"return\":{},\"id\":1}\n"))
	f.Add([]byte("[[[["))
	f.Fuzz(func(t *testing.T, b []byte) {
		heard := 0
		q := newQMP(said{r: bytes.NewReader(b)}, func(qmp.Event) { heard++ })
		waits := make(chan qmpReply, 1)
		q.waiting[1] = waits
		_ = q.run() // any error is fine
		<-waits     // an answer, or the end
		if len(waits) != 0 {
			t.Fatal("a command is answered twice")
		}
		if q.waiting != nil || heard > len(b)/len(`{"event":"x"}`)+1 {
			t.Fatalf("%d events in %d bytes, %d commands wait", heard, len(b), len(q.waiting))
		}
	})
}
