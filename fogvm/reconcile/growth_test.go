package reconcile

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/fogvm"
	"github.com/formthefog/formation/fogvm/reconcile/plan"
	"github.com/formthefog/formation/store"
)

// A replica stays as it is while its machine has no room for what its owner asks
// for, and grows when it has; what it grew to counts.
func TestGrowthWaitsForRoom(t *testing.T) {
	h, l := newHub(), newLibrary()
	p := l.add("one", store.RunConfig{})
	m := newMachine(t, h, l, 1)
	web := ship(t, m, p, 1)
	web.waitReady(m, 1)
	before := m.vms.List()[0]
	grow := func(o *owner, gib uint64, want func(c crdt.Claim, s fogvm.Status) bool) {
		t.Helper()
		o.set(m, func(s *crdt.Spec) { s.MemoryBytes = gib << 30 })
		within(t, 20*time.Second, "the claim", func() error {
			claims, vms := m.state.View().Claims(o.id), m.vms.List()
			i := slices.IndexFunc(vms, func(s fogvm.Status) bool { return s.ID == plan.VMID(o.id, 0) })
			if len(claims) != 1 || i < 0 || !want(claims[0], vms[i]) {
				return fmt.Errorf("%+v, %+v", claims, vms)
			}
			return nil
		})
	}
	refused := func(c crdt.Claim, _ fogvm.Status) bool {
		return c.Ready && strings.Contains(c.Reason, "not enough memory free")
	}
	grow(web, 9, func(c crdt.Claim, s fogvm.Status) bool {
		return refused(c, s) && s.StartedAt.Equal(before.StartedAt) && s.Size.MemoryBytes == 256<<20
	})
	has := func(gib uint64) func(c crdt.Claim, s fogvm.Status) bool {
		return func(c crdt.Claim, s fogvm.Status) bool { return c.Ready && s.Size.MemoryBytes == gib<<30 }
	}
	grow(web, 5, has(5))
	db := &owner{t, web.a, ""}
	id, raws, err := web.a.Create(crdt.Spec{Name: "db", Pack: p, Replicas: 1, VCPU: 1, MemoryBytes: 1 << 30, DiskBytes: 1 << 30})
	if err != nil {
		t.Fatal(err)
	}
	db.id = id
	db.submit(m, raws)
	db.waitReady(m, 1)
	grow(db, 4, refused)
	grow(web, 4, has(4))
	within(t, 20*time.Second, "there is room", func() error {
		if s := m.vms.List(); s[0].Size.MemoryBytes+s[1].Size.MemoryBytes != 8<<30 {
			return fmt.Errorf("%+v", s)
		}
		return nil
	})
}
