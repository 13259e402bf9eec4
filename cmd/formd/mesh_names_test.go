package main

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/formthefog/formation/cmd/internal/api"
	meshview "github.com/formthefog/formation/cmd/internal/mesh"
	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/names"
	"github.com/formthefog/formation/crdt/policy"
	"github.com/formthefog/formation/crdt/stmt"
	"github.com/formthefog/formation/wg"
	"github.com/formthefog/formation/wg/splitdns"
	"github.com/formthefog/formation/wg/wgtest"
)

// A node's machine asks it about names; the dead are not among the answers.
func TestNamesOnTheMesh(t *testing.T) {
	a, b := wgtest.NewNamespace(t, "a"), wgtest.NewNamespace(t, "b")
	wire := wgtest.NewNamespace(t, "wire")
	wgtest.Link(a, "lan", "192.168.7.1/24", b, "lan", "192.168.7.2/24")
	wgtest.Link(a, "side", "192.168.8.1/24", wire, "side", "192.168.8.2/24")
	one := newProcIn(t, a, "--accept", "any").start()
	two := newProcIn(t, b, "--join", one.ticket()).start()
	of := func(p *proc) string { return names.Label(p.key) + "." + names.Nodes + "." + names.Zone }
	dig := func(ns *wgtest.Namespace, args ...string) (string, error) {
		out, err := ns.Output(t.Context(), append([]string{"dig", "@10.128.0.53", "+time=2", "+tries=1"}, args...)...)
		return strings.TrimSpace(out), err
	}
	is := func(what string, ns *wgtest.Namespace, want string, args ...string) {
		t.Helper()
		within(t, 30*time.Second, what, func() error {
			got, err := dig(ns, args...)
			if err == nil && got != want {
				err = fmt.Errorf("dig %v: %q, want %q", args, got, want)
			}
			return err
		})
	}
	address4 := one.space().Candidate4(policy.Party{Node: one.key}.Identity(), 0).String()
	is("another node's address", a, two.mesh6().String(), "+short", "AAAA", of(two))
	is("by IPv4", b, address4, "+short", "A", of(one))
	is("back from IPv4", b, of(one)+".", "+short", "-x", address4)
	is("over TCP", b, one.mesh6().String(), "+tcp", "+short", "AAAA", of(one))
	if got, err := dig(a, "example.com"); err != nil || !strings.Contains(got, "status: REFUSED") {
		t.Errorf("dig of another zone: %v: %s", err, got)
	}
	// Who asks at the node's own address comes by the mesh.
	if got, err := b.Output(t.Context(), "dig", "@"+one.mesh6().String(), "+short", "+time=5", "AAAA", of(one)); err != nil || strings.TrimSpace(got) != one.mesh6().String() {
		t.Errorf("by the mesh: %v: %s", err, got)
	}
	// What a neighbour on the wire asks is not heard, though the machine has the address.
	wire.Run("ip", "route", "add", "10.128.0.53/32", "via", "192.168.8.1")
	wire.Run("ping", "-n", "-c", "1", "-W", "5", "10.128.0.53")
	if got, err := dig(wire, "+short", "AAAA", of(one)); err == nil {
		t.Errorf("a neighbour on the wire was answered: %s", got)
	}
	two.kill()
	killed := time.Now()
	is("no answer for a dead node", a, "", "+short", "AAAA", of(two))
	t.Logf("no answer %s after its death", time.Since(killed).Round(time.Millisecond))
	if got, err := dig(a, "AAAA", of(two)); err != nil || !strings.Contains(got, "status: NOERROR") {
		t.Errorf("the name itself is there: %v: %s", err, got)
	}
	found := false
	for _, c := range one.doctor() {
		if c.Name == "names" {
			found = c.State == "ok" && strings.Contains(c.Detail, "10.128.0.53")
		}
	}
	if !found {
		t.Errorf("doctor says nothing of names: %v", one.doctor())
	}
}

// doctor is what the node finds of itself.
func (p *proc) doctor() []api.Check {
	p.t.Helper()
	checks, err := p.local.Doctor(p.t.Context())
	if err != nil {
		p.t.Fatal(err)
	}
	return checks
}

// The machine asks as long as formd runs, and no longer.
func TestMachineAsks(t *testing.T) {
	dir := t.TempDir()
	calls := filepath.Join(dir, "calls")
	script := fmt.Sprintf("#!/bin/sh\nwhile read -r l; do in=\"$in <$l>\"; done\necho \"$*$in\" >>%s\necho 'nameserver 10.128.0.53' >%s/resolv.conf\n", calls, dir)
	if err := os.WriteFile(filepath.Join(dir, "resolvconf"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir)
	resolver, err := splitdns.New(splitdns.Config{State: filepath.Join(dir, "set"), Etc: dir})
	if err != nil {
		t.Fatal(err)
	}
	space, err := wg.NewSpace([32]byte{1}, netip.Prefix{})
	if err != nil {
		t.Fatal(err)
	}
	n, err := newMeshNames(names.Zone, space, "form0", space.Address6(nil), resolver, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	n.choose(nil)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { n.ask(ctx); close(done) }()
	within(t, 10*time.Second, "resolvconf is told", func() error {
		c := n.doctor()
		if strings.Contains(c.Detail, "another network namespace") {
			t.Skip(c.Detail)
		}
		if c.State != "ok" || !strings.Contains(c.Detail, "resolvconf asks 10.128.0.53 about dev.formation.cloud") {
			return fmt.Errorf("%+v", c)
		}
		return nil
	})
	cancel()
	<-done
	if got, err := os.ReadFile(calls); err != nil || string(got) != "-a tun0.form0 <nameserver 10.128.0.53>\n-d tun0.form0\n" {
		t.Errorf("%v: %s", err, got)
	}
}

func TestWhereTheMachineAsks(t *testing.T) {
	space, err := wg.NewSpace([32]byte{1}, netip.Prefix{})
	if err != nil {
		t.Fatal(err)
	}
	own := space.Address6([]byte("n"))
	for _, tt := range []struct {
		inTheWay string
		local    netip.Addr
		more     int
	}{{"192.0.2.0/24", space.DNS4(), 1}, {"10.128.0.0/20", own, 0}} {
		n, err := newMeshNames(names.Zone, space, "form0", own, nil, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		first, again := n.choose([]netip.Prefix{netip.MustParsePrefix(tt.inTheWay)}), n.choose(nil)
		if !first || again || n.local != tt.local || len(n.addresses()) != tt.more {
			t.Errorf("with %s in the way: asks at %s, addresses %v", tt.inTheWay, n.local, n.addresses())
		}
	}
	if got := strings.Join(reverseDomains(space), " "); !strings.HasSuffix(got, ".d.f.ip6.arpa") || len(strings.Split(got, ".")) != 14 {
		t.Errorf("reverse domains %s", got)
	}
}

func TestScopes(t *testing.T) {
	space, err := wg.NewSpace([32]byte{1}, netip.Prefix{})
	if err != nil {
		t.Fatal(err)
	}
	n, err := newMeshNames(names.Zone, space, "form0", space.Address6(nil), nil, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	me, other := newKey(t), newKey(t)
	laptop := netip.MustParseAddr("fd00::1")
	n.know(nil, stmt.KeyOf(me), []meshview.Peer{{Party: policy.Party{Owner: stmt.KeyOf(other)}, Address6: laptop}})
	for at, want := range map[netip.Addr]stmt.Key{laptop: stmt.KeyOf(other), netip.MustParseAddr("10.128.0.53"): stmt.KeyOf(me)} {
		if got := n.scope(at); got != names.Label(want) {
			t.Errorf("%s asks in the scope of %s", at, got)
		}
	}
	for _, c := range []struct {
		node crdt.Node
		want byte
	}{{crdt.Node{}, 0}, {crdt.Node{Operator: stmt.Key{1}, Named: []stmt.Key{{2}}}, 1}, {crdt.Node{Named: []stmt.Key{{2}, {3}}}, 2}} {
		if got := runsIt(c.node); got != (stmt.Key{c.want}) {
			t.Errorf("%+v is run by %v", c.node, got)
		}
	}
}
