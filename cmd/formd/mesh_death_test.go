package main

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/formthefog/formation/cmd/internal/api"
	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/names"
	"github.com/formthefog/formation/crdt/stmt"
	"github.com/formthefog/formation/store"
	"github.com/formthefog/formation/wg/wgtest"
)

// namesTTL is for how long an answer may be kept, in seconds.
const namesTTL = 5

// newLAN is machines that reach each other, by a router between them.
func newLAN(t *testing.T, n int) (hosts []*wgtest.Namespace) {
	t.Helper()
	r := wgtest.NewNamespace(t, "r")
	r.Run("sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
	for i := range n {
		h := wgtest.NewNamespace(t, fmt.Sprint("host", i))
		wgtest.Link(r, fmt.Sprint("lan", i), fmt.Sprintf("172.20.%d.1/24", i), h, "eth0", fmt.Sprintf("172.20.%d.2/24", i))
		h.Run("ip", "route", "add", "default", "via", fmt.Sprintf("172.20.%d.1", i))
		hosts = append(hosts, h)
	}
	return hosts
}

// resolver is one node's, and a name to ask it for.
type resolver struct {
	*proc
	name string
}

// ask is the addresses of the name, sorted; more than namesTTL is an error.
func (r resolver) ask() (addresses []string, err error) {
	for _, kind := range []string{"A", "AAAA"} {
		out, err := r.ns.Output(r.t.Context(), "dig", "@10.128.0.53", "+time=5", "+tries=1", "+noall", "+answer", kind, r.name)
		if err != nil {
			return nil, fmt.Errorf("dig: %w: %s", err, out)
		}
		for line := range strings.Lines(out) {
			w := strings.Fields(line) // NAME TTL IN KIND ADDRESS
			if len(w) != 5 || w[3] != kind {
				return nil, fmt.Errorf("dig says %q", line)
			}
			if ttl, err := strconv.Atoi(w[1]); err != nil || ttl > namesTTL {
				return nil, fmt.Errorf("an answer may be kept for %s s, want at most %d", w[1], namesTTL)
			}
			addresses = append(addresses, w[4])
		}
	}
	slices.Sort(addresses)
	return addresses, nil
}

// forgotten waits until none of the resolvers answers with these addresses any more,
// each soon after its node knows that they are nobody's: known is nil then. They must
// stay away.
func forgotten(t *testing.T, since time.Time, addresses []string, known func(*proc) error, all ...resolver) {
	t.Helper()
	type moments struct{ seen, knew, clean time.Time }
	of := make([]moments, len(all))
	look := func(i int) error {
		m := &of[i]
		if m.knew.IsZero() && known(all[i].proc) == nil {
			m.knew = time.Now()
		}
		got, err := all[i].ask()
		if err != nil {
			return err
		}
		if slices.ContainsFunc(got, func(a string) bool { return slices.Contains(addresses, a) }) {
			m.seen, m.clean = time.Now(), time.Time{}
			return fmt.Errorf("%s leads to %v, of which %v is nobody's", all[i].name, got, addresses)
		}
		if m.clean.IsZero() {
			m.clean = time.Now()
		}
		if m.knew.IsZero() {
			return errors.New("it does not know")
		}
		return nil
	}
	within(t, 90*time.Second, "no answer with the dead", func() error {
		var errs []error
		for i := range all {
			errs = append(errs, look(i))
		}
		return errors.Join(errs...)
	})
	for range 10 {
		for i := range all {
			if err := look(i); err != nil {
				t.Errorf("later: %v", err)
			}
		}
	}
	for i, m := range of {
		t.Logf("resolver %d: known after %.1f s; the last answer with it was after %.1f s, the first without after %.1f s: nobody keeps it beyond %.1f s", i,
			m.knew.Sub(since).Seconds(), max(0, m.seen.Sub(since).Seconds()), m.clean.Sub(since).Seconds(), m.clean.Sub(since).Seconds()+namesTTL)
		if late := m.clean.Sub(m.knew); late > namesTTL*time.Second {
			t.Errorf("resolver %d still answered with the dead %s after it knew", i, late)
		}
	}
}

// What replicas leave when they die is no answer: not that of one whose node is
// killed, nor that of one which is stopped, once that is known and what was answered
// before may no longer be kept.
func TestNamesForgetDeadReplicas(t *testing.T) {
	lan := newLAN(t, 4)
	owner := newKey(t)
	asker := newProcIn(t, lan[0], "--accept", "owner:"+stmt.KeyOf(newKey(t)).String()).start() // runs nothing
	var hosts []*proc
	var pack string
	for _, ns := range lan[1:] {
		h := newProcIn(t, ns, "--join", asker.ticket(), "--accept", "any")
		pack = h.holds(owner)
		hosts = append(hosts, h.start())
	}
	self, err := asker.local.Node(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	network := stmt.NewNetworkID(self.Network.Name, self.Network.Root)
	author, err := crdt.NewAuthor(owner, network, nil)
	if err != nil {
		t.Fatal(err)
	}
	submit := func(raws [][]byte, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := asker.local.Submit(t.Context(), raws); err != nil {
			t.Fatal(err)
		}
	}
	id, raws, err := author.Create(crdt.Spec{Name: "web", Pack: pack, Replicas: 3, Phase: crdt.PhaseRunning, VCPU: 1, MemoryBytes: 256 << 20, DiskBytes: 1 << 30})
	submit(raws, err)
	name := "web." + names.Label(author.Owner()) + "." + names.Zone
	ask := resolver{asker, name}
	// settled is the replicas by slot, once the name leads to them all.
	settled := func(replicas int) map[int]api.Replica {
		t.Helper()
		var by map[int]api.Replica
		within(t, 90*time.Second, "the name to lead to every replica", func() error {
			i, err := asker.local.Instance(t.Context(), id)
			if err != nil {
				return err
			}
			by = map[int]api.Replica{}
			var all []string
			for _, r := range i.Replicas {
				if r.Ready && r.Live != "dead" && r.Address != nil && r.Address6 != nil {
					by[r.Slot] = r
					all = append(all, *r.Address, *r.Address6)
				}
			}
			slices.Sort(all)
			got, err := ask.ask()
			if err == nil && (len(by) != replicas || !slices.Equal(got, all)) {
				err = fmt.Errorf("it leads to %v; the replicas are %+v", got, i.Replicas)
			}
			return err
		})
		return by
	}

	dead := settled(3)[0]
	i := slices.IndexFunc(hosts, func(p *proc) bool { return p.key == dead.Node })
	victim, other := hosts[i], hosts[(i+1)%len(hosts)]
	victim.kill()
	forgotten(t, time.Now(), []string{*dead.Address, *dead.Address6}, func(p *proc) error { return p.says(dead.Node, "dead") }, ask, resolver{other, name})

	stopped := settled(2)[2]
	submit(author.Set(id, func(s *crdt.Spec) { s.Replicas = 2 }))
	forgotten(t, time.Now(), []string{*stopped.Address, *stopped.Address6}, func(p *proc) error {
		i, err := p.local.Instance(t.Context(), id)
		if err == nil && slices.ContainsFunc(i.Replicas, func(r api.Replica) bool { return r.Slot == 2 }) {
			err = errors.New("it has three replicas")
		}
		return err
	}, ask, resolver{other, name})
}

// holds puts a pack of an owner's into the store of a node that does not run yet.
func (p *proc) holds(owner ed25519.PrivateKey) (pack string) {
	p.t.Helper()
	dir := filepath.Join(p.dir, "data", "store")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		p.t.Fatal(err)
	}
	s, err := store.Open(store.Config{Dir: dir})
	if err != nil {
		p.t.Fatal(err)
	}
	pack = (&client{t: p.t, owner: owner, store: s}).pack("").String()
	if err := s.Close(); err != nil {
		p.t.Fatal(err)
	}
	return pack
}

// says is nil when the node says that of another's life.
func (p *proc) says(of stmt.Key, word string) error {
	nodes, err := p.local.Nodes(p.t.Context())
	if err != nil {
		return err
	}
	for _, n := range nodes {
		if n.Key == of && n.Live == word {
			return nil
		}
	}
	return fmt.Errorf("%s does not say that %s is %s", p.key, of, word)
}
