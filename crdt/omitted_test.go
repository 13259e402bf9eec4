package crdt

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/formthefog/formation/crdt/stmt"
)

// An epoch that begins without a change tells of it, whether that was there before
// the root or comes after, and of nothing that it has taken in. It does so after a
// restart, for a week.
func TestOmitted(t *testing.T) {
	for _, late := range []bool{false, true} {
		w := newWorld(t)
		w.admit("n1", stmt.RoleNode)
		w.admit("olga", stmt.RoleOwner)
		a := w.author("olga", nil)
		id, created, err := a.Create(Spec{Name: "hello"})
		if err != nil {
			t.Fatal(err)
		}
		must := func(raws [][]byte, err error) [][]byte {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
			return raws
		}
		seen := must(a.Set(id, func(s *Spec) { s.Replicas = 2 }))
		known := append(append([][]byte{}, created...), seen...)
		lost := must(w.author("olga", known).Set(id, func(s *Spec) { s.Region = "eu" }))
		again := w.author("olga", known)
		root := must(again.Set(id, func(s *Spec) { s.Replicas, s.Delegates = 3, []stmt.Key{pub("dee")} })) // which begins an epoch

		now, disk := testNow, newMemFS(9)
		open := func() *Replica {
			t.Helper()
			r, err := openReplica(ReplicaConfig{Key: keyOf("n1"), Network: w.net, Root: w.root, Engine: NewModel(), Now: func() time.Time { return now }}, disk)
			if err != nil {
				t.Fatal(err)
			}
			return r
		}
		r := open()
		order := [][][]byte{w.raws, created, seen, lost, root}
		if late {
			order[3], order[4] = root, lost
		}
		for range 2 { // a replay tells nothing twice
			for _, raws := range order {
				for _, raw := range raws {
					if _, err := r.merge("", [][]byte{raw}, now); err != nil {
						t.Fatal(err)
					}
				}
			}
		}
		check := func(when string, want int) {
			t.Helper()
			got := r.Omitted(id)
			if len(got) != want || len(r.OmittedInstances()) != want {
				t.Fatalf("late %v, %s: %+v", late, when, got)
			}
			if spec, ok := r.View().Instance(id); !ok || spec.Region != "" || spec.Replicas != 3 || spec.Epoch != 2 {
				t.Fatalf("late %v, %s: %+v", late, when, spec)
			}
			if want == 1 && (got[0].ID != mustID(t, lost[0], w) || got[0].Author != pub("olga") || len(got[0].Ops) != 1 || got[0].Ops[0].Key != keyRegion || got[0].Root) {
				t.Fatalf("late %v, %s: %+v", late, when, got[0])
			}
		}
		check("at once", 1)
		if err := r.log.compact(r.state.index().statements()); err != nil {
			t.Fatal(err)
		}
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		r = open()
		check("after a restart", 1)
		now = now.Add(omittedFor + time.Hour)
		r.mu.Lock()
		r.flushOmitted()
		r.mu.Unlock()
		check("after a week", 0)
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		disk.dir[omittedName].data = append(disk.dir[omittedName].data, 1)
		r = open()
		check("damaged", 0)
	}
}

// The loser of two roots of one epoch is told of, where it was held.
func TestOmittedRoot(t *testing.T) {
	w := newWorld(t)
	w.admit("olga", stmt.RoleOwner)
	id, created, err := w.author("olga", nil).Create(Spec{Name: "hello"})
	if err != nil {
		t.Fatal(err)
	}
	var roots [][]byte
	for _, region := range []string{"eu", "us"} {
		raws, err := w.author("olga", created).Set(id, func(s *Spec) { s.Region, s.Delegates = region, []stmt.Key{pub("dee")} })
		if err != nil {
			t.Fatal(err)
		}
		roots = append(roots, raws...)
	}
	slices.SortFunc(roots, func(a, b []byte) int { return -mustID(t, a, w).Compare(mustID(t, b, w)) }) // the loser first
	r, err := openReplica(ReplicaConfig{Key: keyOf("n1"), Network: w.net, Root: w.root, Engine: NewModel(), Now: func() time.Time { return testNow }}, newMemFS(10))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Submit(context.Background(), append(append(w.raws, created...), roots...)...); err != nil {
		t.Fatal(err)
	}
	if got := r.Omitted(id); len(got) != 1 || !got[0].Root || got[0].ID != mustID(t, roots[0], w) {
		t.Fatalf("%+v", got)
	}
}

// What is kept of omissions is bounded, for one instance and in all.
func TestOmissionsAreBounded(t *testing.T) {
	var o omissions
	for i := range 3000 {
		o.add(keptOmission{Doc: DocID{byte(i % 3)}, Raw: make([]byte, 4000), id: stmt.ID{byte(i), byte(i >> 8)}})
		o.add(keptOmission{Doc: DocID{9, byte(i), byte(i >> 8)}, Raw: make([]byte, 4000), id: stmt.ID{byte(i), byte(i >> 8), 1}})
	}
	all, of := 0, map[DocID]int{}
	for _, k := range o.list {
		all += len(k.Raw)
		of[k.Doc] += len(k.Raw)
	}
	if all > maxOmitted || all < maxOmitted/2 {
		t.Errorf("%d bytes in all", all)
	}
	for id, n := range of {
		if n > maxOmittedOf {
			t.Errorf("%d bytes of %s", n, id)
		}
	}
}

func FuzzOmitted(f *testing.F) {
	w := newWorld(f)
	_, raws, err := w.author("olga", nil).Create(Spec{Name: "hello"})
	if err != nil {
		f.Fatal(err)
	}
	disk := newMemFS(11)
	r, err := openReplica(ReplicaConfig{Key: keyOf("n1"), Network: w.net, Root: w.root, Engine: NewModel(), Now: func() time.Time { return testNow }}, disk)
	if err != nil {
		f.Fatal(err)
	}
	applyAll(r.state, append(w.raws, raws...))
	for id := range r.state.docs.all() {
		r.omissions.add(keptOmission{Doc: id, At: testNow.Unix(), Raw: raws[1]})
	}
	r.mu.Lock()
	r.flushOmitted()
	r.mu.Unlock()
	if f.Add([]byte{}); disk.dir[omittedName] != nil {
		f.Add(disk.dir[omittedName].data)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		list, err := decodeOmitted(b, w.net)
		for _, k := range list {
			if err == nil && k.id == (stmt.ID{}) {
				t.Fatal("a statement without an ID")
			}
		}
	})
}
