package main

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/formthefog/formation/cmd/internal/api"
	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/stmt"
)

// TestShipKillReturn is the product's main line on three real processes: a pack
// is shipped to a peer, replicas run on two nodes and answer through proxy/1, a
// killed node's replica comes back on the third, and the returned node trims.
func TestShipKillReturn(t *testing.T) {
	procs := swarm(t, 3)
	byKey := map[stmt.Key]*proc{}
	for _, p := range procs {
		byKey[p.key] = p
	}
	ctx := context.Background()
	self, err := procs[1].local.Node(ctx)
	if err != nil {
		t.Fatal(err)
	}
	c := newClient(t, stmt.NewNetworkID(self.Network.Name, self.Network.Root))
	target := c.to(procs[1])
	packID := c.pack("")
	if err := target.FetchPack(ctx, packID.String(), api.FetchRequest{}, nil); err != nil {
		t.Fatalf("fetch: %v", err)
	}
	author, err := crdt.NewAuthor(c.owner, c.net, nil)
	if err != nil {
		t.Fatal(err)
	}
	id, raws, err := author.Create(crdt.Spec{
		Name: "web", Pack: packID.String(), Replicas: 2, Phase: crdt.PhaseRunning, VCPU: 1, MemoryBytes: 256 << 20, DiskBytes: 1 << 30,
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := target.Submit(ctx, raws); err != nil {
		t.Fatalf("submit: %v", err)
	}
	running := func(from *proc) api.Instance {
		t.Helper()
		var inst api.Instance
		within(t, 60*time.Second, "two replicas", func() (err error) {
			if inst, err = from.local.Instance(ctx, id); err != nil {
				return err
			}
			if inst.Status != api.StatusSuccess || len(inst.Replicas) != 2 {
				return fmt.Errorf("%s (%s), %+v", inst.Status, inst.Reason, inst.Replicas)
			}
			return nil
		})
		return inst
	}
	inst := running(procs[1])
	if inst.Replicas[0].Node == inst.Replicas[1].Node {
		t.Fatalf("two replicas on one node: %+v", inst.Replicas)
	}
	for _, r := range inst.Replicas {
		host := byKey[r.Node]
		c.to(host)
		answer, err := c.get(host, id, r.Slot, 80)
		if err != nil || !strings.Contains(answer, fmt.Sprintf("hello from %s-%d", id, r.Slot)) {
			t.Errorf("replica %d answers %q, %v", r.Slot, answer, err)
		}
	}
	within(t, 30*time.Second, "the swarm holds the pack", func() error {
		h, err := procs[0].local.Holders(ctx, packID.String())
		if err != nil || len(h.Nodes) < h.Wanted || h.Wanted != 3 {
			return fmt.Errorf("%+v, %v", h, err)
		}
		return nil
	})

	victim := byKey[inst.Replicas[0].Node]
	var witness *proc
	for _, p := range procs {
		if p != victim {
			witness = p
		}
	}
	victim.kill()
	within(t, 60*time.Second, "takeover", func() error {
		now, err := witness.local.Instance(ctx, id)
		if err != nil {
			return err
		}
		for _, r := range now.Replicas {
			if r.Node == victim.key || !r.Ready {
				return fmt.Errorf("%s (%s), %+v", now.Status, now.Reason, now.Replicas)
			}
		}
		if len(now.Replicas) != 2 {
			return fmt.Errorf("%d replicas", len(now.Replicas))
		}
		return nil
	})
	running(witness)

	victim.start()
	within(t, 60*time.Second, "the returned node trims", func() error {
		s, err := victim.local.Status(ctx)
		if err != nil || s.Local != 0 || s.Replicas["running"] != 2 || len(s.Replicas) != 1 {
			return fmt.Errorf("%+v, %v", s, err)
		}
		return nil
	})

	// Another owner's session must not reach the guest.
	stranger := newClient(t, c.net)
	host := byKey[running(witness).Replicas[1].Node]
	stranger.to(host)
	if _, err := stranger.get(host, id, 1, 80); api.ExitOf(err) != api.ExitNotAllowed {
		t.Errorf("a stranger's proxy: %v, want exit %d", err, api.ExitNotAllowed)
	}

	raws, err = author.Delete(id)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.to(witness).Submit(ctx, raws); err != nil { // target may be the one that was killed
		t.Fatalf("delete: %v", err)
	}
	for _, p := range procs {
		within(t, 30*time.Second, "nothing is left", func() error {
			s, err := p.local.Status(ctx)
			if err != nil || s.Local != 0 || len(s.Replicas) != 0 {
				return fmt.Errorf("%+v, %v", s, err)
			}
			return nil
		})
	}
	for _, p := range procs {
		if code := p.terminate(); code != api.ExitOK {
			t.Errorf("SIGTERM: exit %d\n%s", code, p.stderr)
		}
	}
}
