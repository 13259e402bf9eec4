package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/formthefog/formation/cmd/internal/api"
	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/stmt"
)

// honest is an owner whose instance runs on the nodes of a test and changes all
// the time. Each change restarts its replicas, so it is not the past that works.
type honest struct {
	*client
	procs    []*proc
	id       string
	turn     int
	replicas int
}

// newHonest ships an instance of two replicas that only procs may run.
func newHonest(t *testing.T, procs []*proc, network stmt.NetworkID) *honest {
	t.Helper()
	ctx := context.Background()
	h := &honest{client: newClient(t, network), procs: procs, replicas: 2}
	var operators []stmt.Key
	var first *api.Client
	for i, p := range procs {
		operators = append(operators, p.key)
		if c := h.to(p); i == 0 {
			first = c
		}
	}
	slices.SortFunc(operators, stmt.Key.Compare)
	pack := h.pack("").String()
	if err := first.FetchPack(ctx, pack, api.FetchRequest{}, nil); err != nil {
		t.Fatal(err)
	}
	a, err := crdt.NewAuthor(h.owner, h.net, nil)
	if err != nil {
		t.Fatal(err)
	}
	id, raws, err := a.Create(crdt.Spec{
		Name: "honest", Pack: pack, Replicas: h.replicas, VCPU: 1, MemoryBytes: 256 << 20, DiskBytes: 1 << 30, Operators: operators,
	})
	if err != nil {
		t.Fatal(err)
	}
	h.id = id
	h.spread(raws, procs[0], func(c *api.Client) error {
		_, err := c.Instance(ctx, id)
		return err
	})
	h.runs()
	return h
}

// change says something new at one node, the next in turn, and waits until every
// node has it, before any of them held too many sessions, and the replicas run by
// it. Now and then it is one replica more, or one less.
func (h *honest) change() {
	h.t.Helper()
	h.turn++
	if h.turn%4 == 0 {
		h.replicas = 2 + (h.replicas+1)%2
	}
	p := h.procs[h.turn%len(h.procs)]
	h.spread(h.at(p, func(a *crdt.Author) ([][]byte, error) {
		return a.Set(h.id, func(s *crdt.Spec) { s.Restart, s.Replicas = uint64(h.turn), h.replicas })
	}), p, func(c *api.Client) error {
		i, err := c.Instance(context.Background(), h.id)
		if err == nil && i.Spec.Restart != uint64(h.turn) {
			err = fmt.Errorf("it has turn %d, not %d", i.Spec.Restart, h.turn)
		}
		return err
	})
	h.runs()
}

// runs waits until every node says that the instance runs as it is wanted now, on
// as many nodes of the test, and asks each replica.
func (h *honest) runs() {
	h.t.Helper()
	var last api.Instance
	for _, p := range h.procs {
		within(h.t, 2*time.Minute, "the honest instance runs, says "+p.key.String(), func() (err error) {
			if last, err = p.local.Instance(context.Background(), h.id); err != nil {
				return err
			}
			hosts := map[stmt.Key]bool{}
			for _, r := range last.Replicas {
				hosts[r.Node] = h.host(r.Node) != nil && r.Ready
			}
			if last.Status != api.StatusSuccess || last.Reason != "" || len(last.Replicas) != h.replicas || len(hosts) != h.replicas {
				return fmt.Errorf("turn %d: %s (%s), %+v", h.turn, last.Status, last.Reason, last.Replicas)
			}
			for node, ready := range hosts {
				if !ready {
					return fmt.Errorf("%s is not ready, or not of this test", node)
				}
			}
			return nil
		})
	}
	for _, r := range last.Replicas {
		within(h.t, 2*time.Minute, "a replica answers", func() error {
			answer, err := h.get(h.host(r.Node), h.id, r.Slot, 80)
			if err == nil && !strings.Contains(answer, fmt.Sprintf("hello from %s-%d", h.id, r.Slot)) {
				err = fmt.Errorf("turn %d: replica %d on %s answers %q", h.turn, r.Slot, r.Node, answer)
			}
			return err
		})
	}
}

func (h *honest) host(node stmt.Key) *proc {
	if i := slices.IndexFunc(h.procs, func(p *proc) bool { return p.key == node }); i >= 0 {
		return h.procs[i]
	}
	return nil
}

// remove deletes the instance, everywhere.
func (h *honest) remove() { h.delete(h.id) }

func (h *honest) delete(id string) {
	h.t.Helper()
	p := h.procs[0]
	h.spread(h.at(p, func(a *crdt.Author) ([][]byte, error) { return a.Delete(id) }), p, func(c *api.Client) error { return isGone(c, id) })
}

func isGone(c *api.Client, id string) error {
	if _, err := c.Instance(context.Background(), id); api.ExitOf(err) != api.ExitNotFound {
		return fmt.Errorf("it is still there: %v", err)
	}
	return nil
}

// deleted makes an instance, deletes it everywhere, and returns what was said of it
// before.
func (h *honest) deleted() (id string, said [][]byte) {
	h.t.Helper()
	p := h.procs[0]
	work := func(a *crdt.Author) (raws [][]byte, err error) {
		id, raws, err = a.Create(crdt.Spec{Name: "deleted", Replicas: 0})
		return raws, err
	}
	h.spread(h.at(p, work), p, func(c *api.Client) error {
		_, err := c.Instance(context.Background(), id)
		return err
	})
	said, err := p.local.OwnerStatements(context.Background(), stmt.KeyOf(h.owner))
	if err != nil {
		h.t.Fatal(err)
	}
	h.delete(id)
	return id, said
}

// gone says whether an instance that was deleted is so still, everywhere.
func (h *honest) gone(id string) {
	h.t.Helper()
	for _, p := range h.procs {
		if err := isGone(p.local, id); err != nil {
			h.t.Errorf("%s: %v", p.key, err)
		}
	}
}

// at makes statements from what a node knows of the owner.
func (h *honest) at(p *proc, work func(a *crdt.Author) ([][]byte, error)) [][]byte {
	h.t.Helper()
	known, err := p.local.OwnerStatements(context.Background(), stmt.KeyOf(h.owner))
	if err != nil {
		h.t.Fatal(err)
	}
	a, err := crdt.NewAuthor(h.owner, h.net, known)
	if err != nil {
		h.t.Fatal(err)
	}
	raws, err := work(a)
	if err != nil {
		h.t.Fatal(err)
	}
	return raws
}

func (h *honest) spread(raws [][]byte, at *proc, arrived func(*api.Client) error) {
	h.t.Helper()
	sessions := func(p *proc) float64 { return p.metrics()[`formd_sync_sessions_total{result="ok"}`] }
	var began []float64
	for _, p := range h.procs {
		began = append(began, sessions(p))
	}
	if _, err := at.local.Submit(context.Background(), raws); err != nil {
		h.t.Fatal(err)
	}
	for i, p := range h.procs {
		// The bound is one of rounds; the time is for a loaded machine.
		within(h.t, 2*time.Minute, "an honest change arrives", func() error {
			err := arrived(p.local)
			if n := sessions(p) - began[i]; err != nil && n > hostileRounds {
				h.t.Fatalf("%s: after %.0f sessions: %v", p.key, n, err)
			}
			return err
		})
	}
}

// peak is the most memory that the process has had, in bytes.
func (p *proc) peak() uint64 {
	p.t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		p.t.Fatal(err)
	}
	for line := range bytes.Lines(b) {
		if kib, ok := bytes.CutPrefix(line, []byte("VmHWM:")); ok {
			n, err := strconv.ParseUint(string(bytes.TrimSpace(bytes.TrimSuffix(bytes.TrimSpace(kib), []byte("kB")))), 10, 64)
			if err != nil {
				p.t.Fatal(err)
			}
			return n << 10
		}
	}
	p.t.Fatal("the kernel tells no peak")
	return 0
}
