package guest

import (
	"net"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/yamux"
)

// hostileGuest connects a host to a guest that greets it as an agent would and
// then does as it likes.
func hostileGuest(t *testing.T, then func(session *yamux.Session, control net.Conn)) *Conn {
	t.Helper()
	host, guest := net.Pipe()
	go func() {
		if _, err := guest.Write(preamble()); err != nil {
			return
		}
		if err := readPreamble(guest); err != nil {
			return
		}
		session, err := yamux.Server(guest, muxConfig())
		if err != nil {
			return
		}
		control, err := session.Accept()
		if err != nil {
			return
		}
		if err := writeJSON(control, toHost{Hello: &Info{Version: Version}}); err != nil {
			return
		}
		then(session, control)
	}()
	c, err := Connect(t.Context(), host)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Close()
		guest.Close()
	})
	return c
}

// TestGuestThatDoesNotListen: its control stream fills up, and still every
// message to it ends.
func TestGuestThatDoesNotListen(t *testing.T) {
	c := hostileGuest(t, func(*yamux.Session, net.Conn) {})
	c.patience = 50 * time.Millisecond
	key := strings.Repeat("k", 64<<10)
	sent := make(chan int, 1)
	go func() {
		n := 0
		for c.Authorize([]string{key}) == nil {
			n++
		}
		sent <- n
	}()
	select {
	case n := <-sent:
		if n == 0 {
			t.Error("not even one message fits")
		}
	case <-time.After(10 * time.Second):
		t.Fatal("a message waits for the guest for ever")
	}
	start := time.Now()
	if err := c.Power(Power{}); err == nil || time.Since(start) > time.Second {
		t.Errorf("after a torn message: %v in %s", err, time.Since(start))
	}
}
