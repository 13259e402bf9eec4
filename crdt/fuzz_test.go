package crdt

import (
	"bytes"
	"errors"
	"io"
	"testing"
	"time"

	"github.com/formthefog/formation/crdt/stmt"
)

// seeds are one statement of every kind of state.
func seeds(f *testing.F) [][]byte {
	w := newWorld(f)
	w.admit("n1", stmt.RoleNode)
	w.admit("olga", stmt.RoleOwner)
	a := w.author("olga", nil)
	id, raws, err := a.Create(Spec{Name: "hello", Env: map[string]string{"A": "1"}})
	if err != nil {
		f.Fatal(err)
	}
	w.raws = append(w.raws, raws...)
	more, err := a.Set(id, func(s *Spec) { s.Replicas = 2 })
	if err != nil {
		f.Fatal(err)
	}
	w.raws = append(w.raws, more...)
	secret, err := a.SetSecret(id, someSecret("KEY", 1))
	if err != nil {
		f.Fatal(err)
	}
	w.raws = append(w.raws, secret...)
	w.node("n1", 1, 1, Node{Labels: map[string]string{"a": "b"}, Holds: []string{"x"}})
	w.claim("n1", 1, 2, Claim{Instance: id, Owner: pub("olga"), Phase: ClaimRunning}, false)
	raw, err := stmt.SignBase(keyOf("n1"), w.net, stmt.BaseBody{Name: "debian:12", CID: "bafy"}, 1, 1)
	w.must(raw, err)
	return w.raws
}

// Whatever body a member signs, the state does not panic, stays within itself,
// and a second state agrees with the first.
func FuzzApply(f *testing.F) {
	kinds := []stmt.Kind{stmt.KindMember, stmt.KindOwner, stmt.KindSpec, stmt.KindNode, stmt.KindClaim, stmt.KindBase, stmt.KindSecret}
	base := seeds(f)
	for _, raw := range base {
		st, err := stmt.Peek(raw, newWorld(f).net)
		if err != nil {
			f.Fatal(err)
		}
		for i, k := range kinds {
			if k == st.Kind {
				f.Add(uint8(i), st.Epoch, st.Seq, []byte(st.Body))
			}
		}
	}
	f.Fuzz(func(t *testing.T, kind uint8, epoch, seq uint64, body []byte) {
		w := newWorld(t)
		k := kinds[int(kind)%len(kinds)]
		who := map[stmt.Kind]string{stmt.KindMember: "root", stmt.KindOwner: "olga", stmt.KindSpec: "olga", stmt.KindSecret: "olga"}[k]
		if who == "" {
			who = "n1"
		}
		raw, err := stmt.Sign(keyOf(who), stmt.Statement{Kind: k, Network: w.net, Epoch: epoch, Seq: seq, Body: body})
		if err != nil {
			return
		}
		a, b := w.state(), w.state()
		applyAll(a, append(append([][]byte{}, base...), raw))
		applyAll(b, append([][]byte{raw}, base...))
		if render(a.View()) != render(b.View()) {
			t.Fatalf("order matters: %s", diffLines(render(a.View()), render(b.View())))
		}
	})
}

func FuzzLog(f *testing.F) {
	whole := []byte(logMagic)
	for _, raw := range seeds(f) {
		whole = appendFrame(whole, raw)
	}
	f.Add(whole)
	f.Add(whole[:len(whole)-3])
	f.Add([]byte(logMagic))
	f.Fuzz(func(t *testing.T, b []byte) {
		again := []byte(logMagic)
		good, cut, err := readFrames(bytes.NewReader(b), func(raw []byte) error {
			again = appendFrame(again, raw)
			return nil
		})
		if errors.Is(err, errForeignLog) || good == 0 && len(b) < len(logMagic) {
			return // refused whole, or not even a header
		}
		if err != nil || good > int64(len(b)) {
			t.Fatalf("good %d of %d, %v", good, len(b), err)
		}
		if good > 0 && !bytes.Equal(again, b[:good]) {
			t.Fatal("what was read is not what was there")
		}
		if cut == nil && good != int64(len(b)) {
			t.Fatalf("%d of %d bytes read, and nothing said", good, len(b))
		}
	})
}

func FuzzGossip(f *testing.F) {
	msg, err := encodeGossip(seeds(f))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(msg)
	f.Fuzz(func(t *testing.T, b []byte) {
		raws, err := decodeGossip(b)
		if err != nil {
			return
		}
		if again, err := encodeGossip(raws); err != nil || (len(again) > len(b)) {
			t.Fatalf("does not encode again: %v", err)
		}
	})
}

// hostile is a peer that says b and hears nothing.
type hostile struct{ r io.Reader }

func (h hostile) Read(b []byte) (int, error)  { return h.r.Read(b) }
func (h hostile) Write(b []byte) (int, error) { return len(b), nil }

// Whatever a peer sends, a session ends, on both sides, without a panic.
func FuzzAntiEntropy(f *testing.F) {
	raws := seeds(f)
	w := newWorld(f)
	full, empty := w.state(), w.state()
	applyAll(full, raws)
	for _, pair := range [][2]*State{{full, empty}, {empty, full}} {
		var said bytes.Buffer
		record := func(s *State, r io.Reader) error {
			ses := &aeSession{rw: struct {
				io.Reader
				io.Writer
			}{r, &said}, idx: s.index(), touch: func(int) {}, apply: func([][]byte) error { return nil }}
			_, err := ses.initiate()
			return err
		}
		if err := record(pair[0], &bytes.Buffer{}); !errors.Is(err, io.EOF) {
			f.Fatal(err)
		}
		f.Add(said.Bytes())
	}
	// What an honest peer says, in both roles: by buckets, and a snapshot.
	part := w.state()
	applyAll(part, raws[:len(raws)/2])
	for _, pair := range [][2]*State{{full, part}, {part, full}, {w.state(), full}} {
		for _, said := range transcript(f, pair[0], pair[1]) {
			f.Add(said)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		s := w.state()
		applyAll(s, raws[:2])
		for _, respond := range []bool{false, true} {
			ses := &aeSession{rw: hostile{bytes.NewReader(b)}, idx: s.index(), touch: func(int) {}, apply: func(raws [][]byte) error {
				for _, raw := range raws {
					if _, err := s.Apply(raw, time.Time{}); err != nil && !benign(err) {
						return err
					}
				}
				return nil
			}}
			if respond {
				_ = ses.respond() // any error is fine
			} else if _, err := ses.initiate(); err == nil && len(b) == 0 {
				t.Fatal("a silent peer is a good one")
			}
			if ses.moved > 2*len(b)+9*maxAESub+maxAEFrame {
				t.Fatalf("%d bytes moved for %d of the peer", ses.moved, len(b))
			}
		}
	})
}
