package crdt

import (
	"errors"
	"fmt"
	"io"
	"net"
	"testing"

	"github.com/formthefog/formation/crdt/stmt"
)

// manyNodes is a state of n nodes with a register each.
func manyNodes(w *world, n int) *State {
	s := w.state()
	for i := range n {
		name := fmt.Sprint("n", i)
		w.admit(name, stmt.RoleNode)
		w.node(name, 1, 1, Node{Version: "1.0.0", Region: "eu-1", Total: Resources{CPUs: 8, Memory: 32 << 30, Disk: 1 << 40}})
	}
	applyAll(s, w.raws)
	return s
}

// A peer that missed one change in a hundred gets them for at most three times
// their bytes, both ways counted.
func TestCatchUpCost(t *testing.T) {
	w := newWorld(t)
	behind := manyNodes(w, 1000)
	ahead := w.state()
	applyAll(ahead, w.raws)
	changed := 0
	for i := range 20 {
		raw := w.node(fmt.Sprint("n", 50*i), 1, 2, Node{Version: "1.0.1", Region: "eu-1", Total: Resources{CPUs: 8, Memory: 32 << 30, Disk: 1 << 40}})
		changed += len(raw)
		applyAll(ahead, [][]byte{raw})
	}
	for _, initiator := range []bool{true, false} {
		a := w.state()
		applyAll(a, behind.index().statements())
		b := ahead
		if !initiator {
			a, b = b, a
		}
		moved := countBytes(t, a, b)
		if diff := diffIndex(a, b); diff != "" {
			t.Fatalf("not equal: %s", diff)
		}
		t.Logf("%d bytes moved for %d changed (%.2f)", moved, changed, float64(moved)/float64(changed))
		if moved > 3*changed {
			t.Errorf("%d bytes moved for %d changed", moved, changed)
		}
	}
}

// breaking is a connection that ends after so many bytes were read from it.
type breaking struct {
	net.Conn
	left int
}

func (c *breaking) Read(b []byte) (int, error) {
	if c.left <= 0 {
		return 0, errors.Join(errors.New("the line is down"), c.Close())
	}
	n, err := c.Conn.Read(b[:min(len(b), c.left)])
	c.left -= n
	return n, err
}

// A snapshot that is broken off leaves what has arrived, the next session goes on
// from there, and both together cost little more than the state.
func TestSnapshotResumes(t *testing.T) {
	w := newWorld(t)
	full := manyNodes(w, 500)
	own := w.node("own", 1, 1, Node{})
	admitted := w.admit("own", stmt.RoleNode)
	empty := w.state()
	applyAll(empty, [][]byte{admitted, own})
	size := 0
	for _, raw := range w.raws {
		size += len(raw)
	}
	ca, cb := net.Pipe()
	line := &breaking{ca, size / 2}
	done := make(chan error, 1)
	go func() {
		done <- (&aeSession{rw: cb, idx: full.index(), touch: func(int) {}, apply: func([][]byte) error { return nil }}).respond()
	}()
	s := &aeSession{rw: line, idx: empty.index(), touch: func(int) {}, apply: func(raws [][]byte) error { applyAll(empty, raws); return nil }}
	if _, err := s.initiate(); err == nil {
		t.Fatal("the line did not break")
	}
	if err := <-done; err == nil {
		t.Fatal("the responder takes a broken session for a whole one")
	}
	if n := len(empty.index().items); n < 300 || n > 700 {
		t.Fatalf("%d statements have arrived", n)
	}
	moved := s.moved + countBytes(t, empty, full)
	if diff := diffIndex(empty, full); diff != "" {
		t.Fatalf("not equal: %s", diff)
	}
	t.Logf("%d bytes moved for %d of statements (%.2f)", moved, size, float64(moved)/float64(size))
	if float64(moved) > 1.3*float64(size) {
		t.Errorf("%d bytes moved for %d of statements", moved, size)
	}
}

// Whoever breaks the protocol is told so before it has cost more than a bound.
func TestProtocolBreakers(t *testing.T) {
	w := newWorld(t)
	idx := manyNodes(w, 40).index()
	wrong := make([]byte, 32)
	hello := aeFrame{Count: 1000, Digest: wrong}
	batch := make([][]byte, 100)
	for i := range batch {
		batch[i] = make([]byte, 400)
	}
	all := func(bits int) []byte {
		b := make([]byte, (1<<bits+7)/8)
		for i := range b {
			b[i] = 0xff
		}
		return b
	}
	entries := make([]entry, 900)
	for _, tt := range []struct {
		name    string
		respond bool // the honest side responds
		say     []aeFrame
		then    aeFrame // and this without end
	}{
		{"buckets of too many bits", true, []aeFrame{hello, {Bits: maxAEBits + 1, Buckets: make([]byte, 1000)}}, aeFrame{}},
		{"buckets of negative bits", true, []aeFrame{hello, {Bits: -1, Buckets: wrong}}, aeFrame{}},
		{"too few buckets", true, []aeFrame{hello, {Bits: 3, Buckets: wrong}}, aeFrame{}},
		{"too many further bits", true, []aeFrame{hello, {Bits: 0, Buckets: wrong[:8]}, {Bits: 62, Buckets: wrong, More: true}}, aeFrame{}},
		{"endless buckets", true, []aeFrame{hello, {Bits: 0, Buckets: wrong[:8]}, {Bits: maxSubBits, Buckets: make([]byte, aeBatch), More: true}}, aeFrame{Buckets: make([]byte, aeBatch), More: true}},
		{"buckets without end and content", true, []aeFrame{hello, {Bits: 0, Buckets: wrong[:8]}, {Bits: 4, More: true}}, aeFrame{More: true}},
		{"endless wants", true, []aeFrame{hello, {Buckets: wrong[:8]}, {Buckets: wrong[:8]}}, aeFrame{Want: make([]shortID, 3000), More: true}},
		{"endless statements", true, []aeFrame{hello, {Buckets: wrong[:8]}, {Buckets: wrong[:8]}}, aeFrame{Raws: batch, More: true}},
		{"frames of nothing", true, []aeFrame{hello, {Buckets: wrong[:8]}, {Buckets: wrong[:8]}}, aeFrame{More: true}},
		{"a bitmap of another size", false, []aeFrame{{Count: 70, Digest: wrong}, {Differ: make([]byte, 7)}}, aeFrame{}},
		{"endless entries", false, []aeFrame{{Count: 70, Digest: wrong}, {Differ: all(3)}, {Differ: all(5), Entries: entries, More: true}}, aeFrame{Entries: entries, More: true}},
		{"statements that were not asked for", false, []aeFrame{{Count: 70, Digest: wrong}, {Differ: all(3)}, {Differ: all(5)}}, aeFrame{Raws: batch, More: true}},
		{"a snapshot without end", false, []aeFrame{{Count: 1 << 40, Digest: wrong}}, aeFrame{Raws: batch, More: true}},
		{"wants of who may not ask", false, []aeFrame{{Count: 70, Digest: wrong}, {Differ: all(3)}, {Differ: all(5)}}, aeFrame{Want: make([]shortID, 3000), More: true}},
		{"a snapshot of wants", false, []aeFrame{{Count: 1 << 40, Digest: wrong}}, aeFrame{Want: make([]shortID, 3000), More: true}},
		{"wants after a snapshot", true, []aeFrame{hello, {Snapshot: true}}, aeFrame{Want: make([]shortID, 3000), More: true}},
		{"a snapshot of nothing", false, []aeFrame{{Count: 1 << 40, Digest: wrong}}, aeFrame{More: true}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ca, cb := net.Pipe()
			go func() { // a peer that hears nothing
				_, _ = io.Copy(io.Discard, cb)
			}()
			go func() {
				s := &aeSession{rw: cb, touch: func(int) {}}
				for _, f := range tt.say {
					if s.send(f) != nil {
						return
					}
				}
				for s.send(tt.then) == nil {
				}
			}()
			s := &aeSession{rw: ca, idx: idx, touch: func(int) {}, apply: func([][]byte) error { return nil }}
			var err error
			if tt.respond {
				err = s.respond()
			} else {
				_, err = s.initiate()
			}
			ca.Close()
			if !errors.Is(err, errAEProtocol) {
				t.Errorf("%v", err)
			}
			if s.moved > 8*maxAESnapshot*400 {
				t.Errorf("%d bytes moved", s.moved)
			}
		})
	}
}
