package proc

import (
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/formthefog/formation/sim/regions"
)

// frame is one of IPv4 from one node to another, with a text.
func frame(to [6]byte, from int, text string) []byte {
	self := hardware(from)
	return slices.Concat(to[:], self[:], []byte{typeIPv4 >> 8, typeIPv4 & 0xff}, []byte(text))
}

// heard is a frame that has come to a node.
type heard struct {
	node int
	text string
	at   time.Duration
}

// wiredUp has f send over a wire of so many nodes, in virtual time, and returns what
// came in the five seconds after it, in order.
func wiredUp(t *testing.T, l *lines, nodes int, f func(w *wire, send func(from int, frame []byte))) (got []heard) {
	synctest.Test(t, func(t *testing.T) {
		var ends []io.ReadWriteCloser
		var mine []net.Conn
		for range nodes {
			a, b := net.Pipe()
			ends, mine = append(ends, a), append(mine, b)
		}
		began, mu, all := time.Now(), sync.Mutex{}, sync.WaitGroup{}
		for i, c := range mine {
			all.Go(func() {
				for b := make([]byte, maxFrame); ; {
					n, err := c.Read(b)
					if err != nil {
						return
					}
					mu.Lock()
					got = append(got, heard{i, string(b[linkHeader:n]), time.Since(began)})
					mu.Unlock()
				}
			})
		}
		w := newWire(l, ends)
		f(w, func(from int, frame []byte) {
			if _, err := mine[from].Write(frame); err != nil {
				t.Error(err)
			}
			synctest.Wait()
		})
		time.Sleep(5 * time.Second)
		if err := w.close(); err != nil {
			t.Error(err)
		}
		for _, c := range mine {
			_ = c.Close() // its other end is closed
		}
		all.Wait()
	})
	return got
}

// A frame comes to whom it is for, after what lies between the regions, and in order;
// one for all comes to all others; what is for nobody, or is none, comes to nobody.
func TestFramesTakeTime(t *testing.T) {
	l := &lines{seed: 1, at: []int{0, 17, 0}} // Amsterdam, Sydney, Amsterdam
	half := func(a, b int) time.Duration { return regions.RoundTrip(l.at[a], l.at[b]) / 2 }
	got := wiredUp(t, l, 3, func(_ *wire, send func(int, []byte)) {
		for _, text := range []string{"a", "b", "c", "d"} {
			send(0, frame(hardware(1), 0, text))
		}
		send(1, frame([6]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, 1, "all"))
		send(2, frame(hardware(7), 2, "nobody"))
		send(2, frame(hardware(2), 2, "myself"))
		send(2, []byte("no frame"))
	})
	var texts [3][]string
	for _, h := range got {
		texts[h.node] = append(texts[h.node], h.text)
		least := half(0, 1)
		if most := least + time.Duration(regions.Jitter*float64(least)); h.at < least || h.at > most {
			t.Errorf("%q came to n%d after %v, not between %v and %v", h.text, h.node, h.at, least, most)
		}
	}
	if want := [3][]string{{"all"}, {"a", "b", "c", "d"}, {"all"}}; !slices.EqualFunc(texts[:], want[:], slices.Equal) {
		t.Errorf("came: %v", texts)
	}
}

// What comes to a slow node takes so much longer while it is slow, and nothing else.
func TestSlowNode(t *testing.T) {
	got := wiredUp(t, &lines{}, 3, func(w *wire, send func(int, []byte)) {
		w.slow(1, 2*time.Second)
		send(0, frame(hardware(1), 0, "late"))
		send(0, frame(hardware(2), 0, "soon"))
		time.Sleep(time.Second)
		w.slow(1, 0)
		send(2, frame(hardware(1), 2, "overtakes"))
		send(0, frame(hardware(1), 0, "in order"))
	})
	want := []heard{{2, "soon", 0}, {1, "overtakes", time.Second}, {1, "late", 2 * time.Second}, {1, "in order", 2 * time.Second}}
	if !slices.Equal(got, want) {
		t.Errorf("came: %v, not %v", got, want)
	}
}

// Of many frames the share comes twice that is to, and the share other than it was; of
// what has no checksum none is other. What one node has no room for is lost.
func TestFramesAreRepeatedAndDamaged(t *testing.T) {
	const many = 2000
	count := func(kind byte, l *lines) (came, other int) {
		f := frame(hardware(1), 0, "0123456789")
		f[linkHeader-1] = kind
		for _, h := range wiredUp(t, l, 2, func(_ *wire, send func(int, []byte)) {
			for range many {
				send(0, f)
			}
		}) {
			came++
			if h.text != "0123456789" {
				other++
			}
		}
		return came, other
	}
	about := func(n int, share float64) bool { return float64(n) > 0.7*share*many && float64(n) < 1.3*share*many }
	if came, other := count(0, &lines{seed: 3, duplicate: 0.1, damage: 0.1}); !about(came-many, 0.1) || !about(other, 0.11) {
		t.Errorf("of %d %d came, %d damaged", many, came, other)
	}
	if came, other := count(0x06, &lines{seed: 3, damage: 0.1}); came != many || other != 0 { // ARP
		t.Errorf("of %d without a checksum %d came, %d damaged", many, came, other)
	}
	got := wiredUp(t, &lines{}, 2, func(w *wire, send func(int, []byte)) {
		w.slow(1, time.Second)
		for range maxFrames + 10 {
			send(0, frame(hardware(1), 0, "x"))
		}
	})
	if len(got) != maxFrames {
		t.Errorf("%d came where there is room for %d", len(got), maxFrames)
	}
}

// Which plans want a wire.
func TestWhatWantsAWire(t *testing.T) {
	const text = "about: x\nnodes: 6\nNETWORK\nschedule: [{at: 1s, do: VERB}]\nexpect: {settle: 1m}\n"
	for _, c := range []struct {
		network, verb string
		want          bool
	}{
		{"network: {loss: 0.1}", "heal", false},
		{"network: {regions: true}", "heal", true},
		{"network: {duplicate: 0.1}", "heal", true},
		{"network: {damage: 0.1}", "heal", true},
		{"network: {}", "slow, node: up, by: 100ms, for: 1s", true},
	} {
		p := plan(t, strings.NewReplacer("NETWORK", c.network, "VERB", c.verb).Replace(text))
		if l := linesOf(p); (l != nil) != c.want || l != nil && (l.at != nil) != p.Network.Regions {
			t.Errorf("%s, %s: %+v", c.network, c.verb, l)
		}
	}
}
