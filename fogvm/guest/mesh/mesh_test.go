package mesh

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/stmt"
	"github.com/formthefog/formation/fogvm/guest"
	"github.com/formthefog/formation/wg"
)

// fakeInterface remembers its addresses.
type fakeInterface struct {
	wg.Fake
	private wg.Key

	mu     sync.Mutex
	own    []netip.Addr
	closed bool
}

func (f *fakeInterface) Address(own []netip.Addr, _ wg.Space) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.own = slices.Clone(own)
	return nil
}

func (f *fakeInterface) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	return nil
}

func (f *fakeInterface) addresses() []netip.Addr {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.own
}

// guestBoot is one boot of a guest.
type guestBoot struct {
	*Mesh
	t        *testing.T
	dev      *fakeInterface
	key      string
	err      error
	host     net.Conn
	mu       sync.Mutex
	problems []string
}

func (w *world) config() guest.Config {
	p := w.pin()
	return guest.Config{Instance: p.Instance, Slot: p.Slot,
		Mesh: &guest.MeshConfig{Network: p.Network, Root: p.Root, Owner: p.Owner, Node: p.Node}}
}

func boot(t *testing.T, dir string, cfg guest.Config) *guestBoot {
	t.Helper()
	b := &guestBoot{t: t, dev: &fakeInterface{}}
	b.Mesh = New(Config{Dir: dir, Log: slog.New(slog.DiscardHandler), Open: func(k wg.Key) (Interface, error) {
		b.dev.private = k
		return b.dev, nil
	}})
	ctx, cancel := context.WithCancel(context.Background())
	host, agent := net.Pipe()
	b.host = host
	heard := make(chan error, 1)
	go func() { heard <- b.Hear(ctx, agent) }()
	t.Cleanup(func() {
		host.Close()
		cancel()
		if err := <-heard; err != nil {
			t.Errorf("hear: %v", err)
		}
	})
	b.key, b.err = b.Start(ctx, cfg, func(s string) {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.problems = append(b.problems, s)
	})
	return b
}

func (b *guestBoot) tell(statements [][]byte) guest.MeshReport {
	b.t.Helper()
	m, err := new(guest.Teller).Round(b.host, guest.Named(statements))
	if err != nil {
		b.t.Fatal(err)
	}
	return m
}

// device waits until the device reads as wanted.
func (b *guestBoot) device(want string) {
	b.t.Helper()
	got := ""
	for range 1000 {
		if got = b.dev.String(); got == want {
			return
		}
		time.Sleep(5 * time.Millisecond) // the Mesh's loop has no end to wait for
	}
	b.t.Fatalf("the device has\n%s\nwant\n%s", got, want)
}

func TestJoin(t *testing.T) {
	w := newWorld(t)
	dir := filepath.Join(t.TempDir(), "mesh")
	b := boot(t, dir, w.config())
	if b.err != nil {
		t.Fatal(b.err)
	}
	if got := b.dev.private.PublicKey().String(); got != b.key {
		t.Errorf("told key %s, the device's is %s", b.key, got)
	}
	for _, name := range []string{keyFile, pinFile} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
	space, err := wg.NewSpace(netID, netip.Prefix{})
	if err != nil {
		t.Fatal(err)
	}
	me, two := w.pin().identity(), Pin{Node: pub("two"), Instance: w.id, Slot: 1}.identity()
	laptop := append(append([]byte("d"), pubBytes("olga")...), pubBytes("laptop")...)
	if got := b.dev.addresses(); len(got) != 1 || got[0] != space.Address6(me) {
		t.Errorf("before any news the guest has %v", got)
	}
	w.claim("one", crdt.Claim{Slot: 0, MeshKey: b.key, Address: space.Candidate4(me, 0).String()})
	w.claim("two", crdt.Claim{Slot: 1, MeshKey: text(meshKey("guest-two")), Address: space.Candidate4(two, 1).String()})
	b.Locate([]guest.Location{
		{Key: text(meshKey("guest-two")), At: netip.MustParseAddrPort("198.18.0.7:51820")},
		{Key: text(meshKey("laptop")), At: netip.MustParseAddrPort("192.0.2.1:51820")}, // no place that a host may name
		{Key: "no key", At: netip.MustParseAddrPort("198.18.0.8:51820")},
	})
	if m := b.tell(w.host.MeshStatements(pub("olga"))); m.Peers != 2 || m.Refused != 0 || m.Problem != "" {
		t.Fatalf("%+v", m)
	}
	lines := []string{
		fmt.Sprintf("%s [%s %s] at 198.18.0.7:51820\n", text(meshKey("guest-two"))[:6], space.Candidate4(two, 1), space.Address6(two)),
		fmt.Sprintf("%s [%s %s]\n", text(meshKey("laptop"))[:6], space.Candidate4(laptop, 0), space.Address6(laptop)),
	}
	slices.Sort(lines)
	b.device(strings.Join(lines, ""))
	if got := b.dev.addresses(); len(got) != 2 || got[1] != space.Candidate4(me, 0) {
		t.Errorf("the guest has %v", got)
	}
	// An address that is not one of its candidates is nobody's.
	w.claim("two", crdt.Claim{Slot: 1, MeshKey: text(meshKey("guest-two")), Address: space.Candidate4(me, 0).String()})
	b.tell(w.host.MeshStatements(pub("olga")))
	lines[slices.IndexFunc(lines, func(l string) bool { return strings.Contains(l, "198.18") })] =
		fmt.Sprintf("%s [%s] at 198.18.0.7:51820\n", text(meshKey("guest-two"))[:6], space.Address6(two))
	b.device(strings.Join(lines, ""))
	if len(b.problems) > 0 {
		t.Errorf("problems %q", b.problems)
	}
	w.claim("one", crdt.Claim{Slot: 0, MeshKey: text(meshKey("host"))})
	b.tell(w.host.MeshStatements(pub("olga")))
	if len(b.problems) != 1 || !strings.Contains(b.problems[0], "another key") {
		t.Errorf("the node claims a key of its own: problems %q", b.problems)
	}
}

func pubBytes(name string) []byte {
	k := pub(name)
	return k[:]
}

// The key and what was heard of the owner outlive a reboot, and nothing that was
// taken out comes back by it.
func TestReboot(t *testing.T) {
	w := newWorld(t)
	dir := t.TempDir()
	first := boot(t, dir, w.config())
	old := w.host.MeshStatements(pub("olga"))
	first.tell(old)
	w.all(w.olga.RemoveDevice(pub("laptop")))
	if m := first.tell(w.host.MeshStatements(pub("olga"))); m.Peers != 1 {
		t.Fatalf("%+v", m)
	}
	second := boot(t, dir, w.config())
	if second.err != nil || second.key != first.key {
		t.Fatalf("key %s, was %s; %v", second.key, first.key, second.err)
	}
	if m := second.tell(old); m.Peers != 1 || m.Refused == 0 || m.Problem == "" {
		t.Errorf("a host that tells the past: %+v", m)
	}
	fresh := boot(t, t.TempDir(), w.config())
	if fresh.err != nil || fresh.key == first.key {
		t.Errorf("a fresh disk has key %s, %v", fresh.key, fresh.err)
	}
}

func TestWhatIsPinned(t *testing.T) {
	w := newWorld(t)
	dir := t.TempDir()
	if b := boot(t, dir, w.config()); b.err != nil {
		t.Fatal(b.err)
	}
	other, raws, err := w.olga.Create(crdt.Spec{Name: "db"})
	w.all(raws, err)
	for _, tt := range []struct {
		what   string
		change func(*guest.Config)
	}{
		{"network", func(c *guest.Config) { c.Mesh.Network = "other" }},
		{"network", func(c *guest.Config) { c.Mesh.Root = pub("mallory") }},
		{"network", func(c *guest.Config) { c.Mesh.Root = stmt.Key{} }}, // open: everybody would be a member
		{"network", func(c *guest.Config) { c.Mesh.Prefix4 = netip.MustParsePrefix("100.64.0.0/10") }},
		{"network", func(c *guest.Config) { c.Mesh.Zone = "mallory.example.org" }},
		{"owner", func(c *guest.Config) { c.Mesh.Owner = pub("otto") }},
		{"node", func(c *guest.Config) { c.Mesh.Node = pub("two") }},
		{"instance", func(c *guest.Config) { c.Instance = other }},
		{"slot", func(c *guest.Config) { c.Slot = 1 }},
	} {
		cfg := w.config()
		tt.change(&cfg)
		b := boot(t, dir, cfg)
		if !errors.Is(b.err, ErrPinned) || !strings.Contains(b.err.Error(), tt.what) || b.key != "" {
			t.Errorf("another %s: key %q, %v", tt.what, b.key, b.err)
		}
	}
	for _, change := range []func(*guest.Config){
		func(c *guest.Config) { c.Mesh = nil },
		func(c *guest.Config) { c.Instance = "app" },
		func(c *guest.Config) { c.Slot = -1 },
		func(c *guest.Config) { c.Mesh.Owner = stmt.Key{} },
		func(c *guest.Config) { c.Mesh.Prefix4 = netip.MustParsePrefix("0.0.0.0/0") },
		func(c *guest.Config) { c.Mesh.Zone = "org" },
	} {
		cfg := w.config()
		change(&cfg)
		if b := boot(t, t.TempDir(), cfg); b.err == nil {
			t.Errorf("%+v is taken", cfg)
		}
	}
}

func TestPace(t *testing.T) {
	now := time.Unix(0, 0)
	p := newPace(now)
	if wait := p.take(paceBurst, now); wait != 0 {
		t.Errorf("a burst waits %s", wait)
	}
	if wait := p.take(paceRate, now); wait != time.Second {
		t.Errorf("what is beyond it waits %s", wait)
	}
	if wait := p.take(paceRate, now.Add(2*time.Second)); wait != 0 {
		t.Errorf("later it waits %s", wait)
	}
}
