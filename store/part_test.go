package store

import (
	"bytes"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
)

// emptyPart opens the part of an image that origin has, in a store of its own.
func emptyPart(t testing.TB, origin, s *Store, e Entry) *part {
	t.Helper()
	tr, err := readTree(e, origin.node)
	if err != nil {
		t.Fatal(err)
	}
	p, err := s.openPart(e, tr)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// The hash goroutine and the one that finishes may meet at the last leaf in any
// order: the sum is of every leaf.
func TestSumBesideHashing(t *testing.T) {
	origin, s := openStore(t, t.TempDir()), openStore(t, t.TempDir())
	data := noise(150, 4<<10)
	e := addBytes(t, origin, data, "layer")
	p := emptyPart(t, origin, s, e)
	t.Cleanup(func() {
		if err := p.close(); err != nil {
			t.Error(err)
		}
	})
	if _, err := p.put(0, data); err != nil {
		t.Fatal(err)
	}
	for range 1500 {
		p.hashing.Lock()
		var ended atomic.Bool
		var hasher sync.WaitGroup
		hasher.Go(func() {
			for !ended.Load() {
				if err := p.advance(0, data); err != nil {
					t.Error(err)
				}
			}
		})
		p.next = 0
		p.whole.Reset()
		hasher.Go(func() {
			runtime.Gosched()
			p.hashing.Unlock()
		})
		sum, err := p.sum()
		ended.Store(true)
		hasher.Wait()
		if err != nil || !bytes.Equal(sum, e.SHA256) {
			t.Fatalf("sum %x, %v; want %x", sum, err, e.SHA256)
		}
	}
}
