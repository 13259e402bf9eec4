package main

import (
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/stmt"
	"github.com/formthefog/formation/fogvm"
	"github.com/formthefog/formation/fogvm/guest"
	"github.com/formthefog/formation/fogvm/reconcile/plan"
	"github.com/formthefog/formation/wg/carrier"
	"github.com/formthefog/formation/wg/wgtest"
)

// hosted is a node with fake guests, in which there is a real WireGuard each, and
// the state that its stations look at.
type hosted struct {
	t     *testing.T
	vms   *fogvm.Manager
	state *crdt.Replica
	id    string // of olga's instance
	wires map[string]*wgtest.Wire
	guest map[string]*wgtest.Station // by VM
	news  chan int                   // statements of each round

	mu       sync.Mutex
	stations map[string]carrier.Station
	hosts    []peer.ID
	sent     func(station string, b []byte, to netip.AddrPort)
}

func seedKey(n byte) ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed(append(make([]byte, ed25519.SeedSize-1), n))
}

func newHosted(t *testing.T) *hosted {
	h := &hosted{t: t, wires: map[string]*wgtest.Wire{}, guest: map[string]*wgtest.Station{}, news: make(chan int, 100)}
	network := stmt.NewNetworkID("test", stmt.Key{})
	var err error
	h.state, err = crdt.Open(crdt.ReplicaConfig{Dir: t.TempDir(), Key: seedKey(1), Network: network, Engine: crdt.NewModel()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.state.Close() })
	olga, err := crdt.NewAuthor(seedKey(9), network, nil)
	if err != nil {
		t.Fatal(err)
	}
	id, raws, err := olga.Create(crdt.Spec{Name: "app", Replicas: 3})
	if err != nil {
		t.Fatal(err)
	}
	h.id = id
	h.submit(raws...)
	fake := &fogvm.Fake{Mesh: h.boot, News: func(_ string, statements [][]byte) { h.news <- len(statements) }}
	h.vms, err = fogvm.New(fogvm.Config{Dir: t.TempDir(), Driver: fogvm.DriverFake, Fake: fake, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	h.run(h.vms.Run)
	return h
}

func (h *hosted) run(f func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	h.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			h.t.Error(err)
		}
	})
}

func (h *hosted) submit(raws ...[]byte) {
	h.t.Helper()
	if _, err := h.state.Submit(context.Background(), raws...); err != nil {
		h.t.Fatal(err)
	}
}

// boot gives a VM a WireGuard on a wire of its own, which ends at its port.
func (h *hosted) boot(id string) ([32]byte, func(*fogvm.MeshPort)) {
	var mu sync.Mutex
	var port *fogvm.MeshPort
	wire := wgtest.NewWire(func(b []byte, _, to netip.AddrPort) bool {
		mu.Lock()
		defer mu.Unlock()
		if port != nil {
			_ = port.Send(b, to) // lost, as by any network
		}
		return false
	})
	g := wgtest.NewStation(h.t, wire, byte(40+len(h.guest)), id)
	h.guest[id], h.wires[id] = g, wire
	return g.Public, func(p *fogvm.MeshPort) {
		mu.Lock()
		port = p
		mu.Unlock()
		for {
			b, from, err := p.Receive()
			if err != nil {
				return
			}
			wire.Deliver(b, from, g.At)
		}
	}
}

// claim has the node run those slots.
func (h *hosted) claim(slots ...int) {
	h.t.Helper()
	var vms []fogvm.VM
	var claims []crdt.Claim
	for _, slot := range slots {
		vms = append(vms, fogvm.VM{ID: plan.VMID(h.id, slot), Incarnation: "1", Run: true, Kernel: "k", Initrd: "i", Lowers: []string{"l"},
			VCPU: 1, MemoryBytes: 512 << 20, DiskBytes: 1 << 30, Guest: guest.Config{Mesh: &guest.MeshConfig{}}})
		claims = append(claims, crdt.Claim{Instance: h.id, Owner: stmt.KeyOf(seedKey(9)), Slot: slot, Phase: crdt.ClaimRunning, MeshKey: "x"})
	}
	if err := errors.Join(h.vms.Sync(context.Background(), vms), h.state.SetClaims(context.Background(), claims)); err != nil {
		h.t.Fatal(err)
	}
}

// elsewhere has another node run a slot.
func (h *hosted) elsewhere(n byte, slot int, key wgtypes.Key) stmt.Key {
	h.t.Helper()
	r, err := crdt.Open(crdt.ReplicaConfig{Dir: h.t.TempDir(), Key: seedKey(n), Network: stmt.NewNetworkID("test", stmt.Key{}), Engine: crdt.NewModel()})
	if err != nil {
		h.t.Fatal(err)
	}
	defer r.Close()
	c := crdt.Claim{Instance: h.id, Owner: stmt.KeyOf(seedKey(9)), Slot: slot, Phase: crdt.ClaimRunning, MeshKey: key.String()}
	if err := r.SetClaims(context.Background(), []crdt.Claim{c}); err != nil {
		h.t.Fatal(err)
	}
	h.submit(r.ClaimStatements(h.id)...)
	return stmt.KeyOf(seedKey(n))
}

func (h *hosted) start() {
	s := &stations{self: stmt.KeyOf(seedKey(1)), vms: h.vms, watch: h.state.Watch, statements: h.state.MeshStatements,
		log: slog.New(slog.DiscardHandler), dead: func() map[stmt.Key]time.Duration { return nil },
		set: func(behind map[string]carrier.Station, hosts []peer.ID) {
			h.mu.Lock()
			defer h.mu.Unlock()
			h.stations, h.hosts = behind, hosts
		},
		send: func(station string, b []byte, to netip.AddrPort) {
			h.mu.Lock()
			f := h.sent
			h.mu.Unlock()
			f(station, b, to)
		}}
	h.run(func(ctx context.Context) error { s.run(ctx); return nil })
}

func (h *hosted) behind() (map[string]carrier.Station, []peer.ID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.stations, h.hosts
}

func TestGuestsAreStations(t *testing.T) {
	h := newHosted(t)
	vm := plan.VMID(h.id, 0)
	at, node := netip.MustParseAddrPort("203.0.113.9:4242"), netip.MustParseAddrPort("192.0.2.1:1")
	lan := wgtest.NewWire(func(b []byte, _, _ netip.AddrPort) bool {
		if stations, _ := h.behind(); stations[vm].Deliver != nil {
			stations[vm].Deliver(b, at)
		}
		return false
	})
	phone := wgtest.NewStation(t, lan, 90, "phone")
	h.sent = func(station string, b []byte, to netip.AddrPort) {
		if station != vm || to != at {
			t.Errorf("a datagram of %s for %s", station, to)
		}
		lan.Deliver(b, node, phone.At)
	}
	far := h.elsewhere(2, 1, wgtypes.Key{2})
	h.claim(0)
	h.start()
	within(t, 20*time.Second, "the guest is a station, and its peer's host is known", func() error {
		stations, hosts := h.behind()
		if s, ok := stations[vm]; !ok || s.Public != h.guest[vm].Public || len(hosts) != 0 {
			return fmt.Errorf("stations %v, hosts %v", stations, hosts)
		}
		return nil
	})
	if n := <-h.news; n == 0 {
		t.Error("the guest is told nothing")
	}
	// Once its own claim has its key it has the peers that the policy gives it.
	c := crdt.Claim{Instance: h.id, Owner: stmt.KeyOf(seedKey(9)), Slot: 0, Phase: crdt.ClaimRunning,
		MeshKey: base64.StdEncoding.EncodeToString(h.guest[vm].Public[:])}
	if err := h.state.SetClaims(context.Background(), []crdt.Claim{c}); err != nil {
		t.Fatal(err)
	}
	within(t, 20*time.Second, "its peer's host is known", func() error {
		if _, hosts := h.behind(); !slices.Equal(hosts, []peer.ID{peer.ID(far.PeerID())}) {
			return fmt.Errorf("hosts %v", hosts)
		}
		return nil
	})
	if n := <-h.news; n == 0 {
		t.Error("the guest is not told of what is new")
	}
	h.guest[vm].Knows(t, phone)
	phone.Knows(t, h.guest[vm], node)
	phone.Echo(t, h.guest[vm])

	if err := h.vms.Sync(context.Background(), nil); err != nil {
		t.Fatal(err)
	}
	within(t, 20*time.Second, "nobody is left", func() error {
		if stations, hosts := h.behind(); len(stations)+len(hosts) > 0 {
			return fmt.Errorf("stations %v, hosts %v", stations, hosts)
		}
		return nil
	})
}

// A guest is told no way to a host that does not answer, so that it does not name
// whom it cannot reach; the host's datagrams are taken as before.
func TestDeadHostsAreNotLocated(t *testing.T) {
	h := newHosted(t)
	vm := plan.VMID(h.id, 0)
	far := h.elsewhere(2, 1, wgtypes.Key{2})
	h.claim(0)
	within(t, 20*time.Second, "the guest has a key", func() error {
		for _, v := range h.vms.List() {
			if v.ID == vm && v.MeshKey != "" {
				return nil
			}
		}
		return errors.New("not yet")
	})
	c := crdt.Claim{Instance: h.id, Owner: stmt.KeyOf(seedKey(9)), Slot: 0, Phase: crdt.ClaimRunning,
		MeshKey: base64.StdEncoding.EncodeToString(h.guest[vm].Public[:])}
	if err := h.state.SetClaims(context.Background(), []crdt.Claim{c}); err != nil {
		t.Fatal(err)
	}
	dead := map[stmt.Key]time.Duration{}
	var hosts []peer.ID
	s := &stations{self: stmt.KeyOf(seedKey(1)), vms: h.vms, statements: h.state.MeshStatements, log: slog.New(slog.DiscardHandler),
		dead: func() map[stmt.Key]time.Duration { return dead },
		set:  func(_ map[string]carrier.Station, ids []peer.ID) { hosts = ids }}
	links := map[string]*guestLink{}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	for _, want := range []int{1, 0, 1} {
		clear(dead)
		if want == 0 {
			dead[far] = time.Second
		}
		s.look(ctx, h.state.View(), links, &running)
		if got := len(links[vm].locations()); got != want || len(hosts) != 1 {
			t.Errorf("%d dead: %d locations, want %d; hosts %v", len(dead), got, want, hosts)
		}
	}
}

func TestBestEndpoint(t *testing.T) {
	for _, c := range []struct{ all, want string }{
		{"", ""}, {"0.0.0.0:1", ""}, {"127.0.0.1:1", "127.0.0.1:1"}, {"127.0.0.1:1 10.0.0.1:2", "10.0.0.1:2"},
		{"10.0.0.1:2 192.0.2.1:3 203.0.113.1:4", "192.0.2.1:3"}, {"[fe80::1]:1 [2001:db8::1]:2", "[2001:db8::1]:2"},
	} {
		var all []netip.AddrPort
		for _, a := range strings.Fields(c.all) {
			all = append(all, netip.MustParseAddrPort(a))
		}
		got := ""
		if best := bestEndpoint(all); best.IsValid() {
			got = best.String()
		}
		if got != c.want {
			t.Errorf("of %s: %s, want %s", c.all, got, c.want)
		}
	}
}
