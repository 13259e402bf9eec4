package crdt

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"testing"
	"time"

	"github.com/formthefog/formation/crdt/stmt"
)

// statements of n instances of n/100 owners.
func manyInstances(b *testing.B, n int) (*world, [][]byte) {
	w := newWorld(b)
	for o := range n / 100 {
		owner := fmt.Sprintf("owner-%d", o)
		w.admit(owner, stmt.RoleOwner)
		a := w.author(owner, nil)
		for i := range 100 {
			_, raws, err := a.Create(Spec{
				Name: fmt.Sprintf("app-%d", i), Pack: testPack, Replicas: 3, VCPU: 1, MemoryBytes: 1 << 29, DiskBytes: 5 << 30,
				Env: map[string]string{"PORT": "8080", "MODE": "production"}, Expose: []string{"8080/tcp"},
			})
			if err != nil {
				b.Fatal(err)
			}
			w.raws = append(w.raws, raws...)
		}
	}
	s := w.state()
	applyAll(s, w.raws)
	return w, s.index().statements()
}

// BenchmarkLoad loads 2,000 instances; BenchmarkVerify verifies the signatures of
// the same statements alone.
func BenchmarkLoad(b *testing.B) {
	w, raws := manyInstances(b, 2000)
	b.ResetTimer()
	for range b.N {
		s := w.state()
		applyAll(s, raws)
		if n := len(s.View().Instances()); n != 2000 {
			b.Fatalf("%d instances", n)
		}
	}
}

func BenchmarkVerify(b *testing.B) {
	w, raws := manyInstances(b, 2000)
	b.ResetTimer()
	for range b.N {
		for _, raw := range raws {
			if _, err := stmt.Verify(raw, w.net); err != nil {
				b.Fatal(err)
			}
		}
	}
}

// BenchmarkView makes a View after one change among 2,000 instances.
func BenchmarkView(b *testing.B) {
	w, raws := manyInstances(b, 2000)
	w.admit("n1", stmt.RoleNode)
	s := w.state()
	applyAll(s, append(w.raws[len(w.raws)-1:], raws...))
	s.View()
	b.ResetTimer()
	for i := range b.N {
		b.StopTimer()
		if _, err := s.Apply(w.node("n1", 1, uint64(i+1), Node{}), time.Time{}); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		s.View()
	}
}

// BenchmarkUpdate changes one instance at rest among 2,000, from the owner's Author to the
// next View, on a disk that costs nothing; BenchmarkSign makes one signature.
func BenchmarkUpdate(b *testing.B) {
	w, raws := manyInstances(b, 2000)
	r := w.open(b, newMemFS(1), false)
	for _, raw := range append(w.raws, raws...) {
		_, _ = r.state.Apply(raw, time.Time{})
	}
	r.state.takeNews()
	r.View()
	a := w.author("owner-0", r.OwnerStatements(pub("owner-0")))
	ids := a.Instances()
	b.ResetTimer()
	for i := range b.N {
		a.Now = func() time.Time { return testNow.Add(time.Duration(i+1) * rerootQuiet) } // each has been at rest
		made, err := a.Set(ids[i%len(ids)].ID, func(s *Spec) { s.Restart++ })
		if err == nil {
			_, err = r.Submit(context.Background(), made...)
		}
		if err != nil {
			b.Fatal(err)
		}
		r.View()
	}
}

func BenchmarkSign(b *testing.B) {
	key, msg := keyOf("a"), make([]byte, 400)
	for range b.N {
		ed25519.Sign(key, msg)
	}
}
