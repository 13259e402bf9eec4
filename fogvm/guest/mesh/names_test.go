package mesh

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/names"
	"github.com/formthefog/formation/fogvm/guest"
	"github.com/formthefog/formation/wg"
	"github.com/formthefog/formation/wg/dns"
)

// A guest's programs resolve what its owner's statements prove, and nothing that
// its host says.
func TestNamesInTheGuest(t *testing.T) {
	w := newWorld(t)
	space, err := wg.NewSpace(netID, netip.Prefix{})
	if err != nil {
		t.Fatal(err)
	}
	socket, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dev := &fakeInterface{}
	at := make(chan netip.Addr, 1)
	served := make(chan error, 1)
	m := New(Config{Dir: t.TempDir(), Log: slog.New(slog.DiscardHandler), Open: func(wg.Key) (Interface, error) { return dev, nil },
		Names: func(ctx context.Context, s *dns.Server, a netip.Addr) error {
			at <- a
			err := s.Run(ctx, socket, nil)
			served <- err
			return err
		}})
	ctx, cancel := context.WithCancel(t.Context())
	key, err := m.Start(ctx, w.config(), func(string) {})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
	}()
	if a := <-at; a != space.DNS4() || !slices.Contains(dev.addresses(), a) {
		t.Errorf("names are at %s, the interface has %v", a, dev.addresses())
	}
	resolver := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "udp4", socket.LocalAddr().String())
	}}
	is := func(when, name string, want ...netip.Addr) {
		t.Helper()
		got, err := resolver.LookupNetIP(t.Context(), "ip", name+"."+names.Zone+".")
		slices.SortFunc(got, netip.Addr.Compare)
		slices.SortFunc(want, netip.Addr.Compare)
		if !slices.Equal(got, want) {
			t.Errorf("%s: %s is %v (%v), want %v", when, name, got, err, want)
		}
	}
	is("before any news", "app")

	me, two := w.pin().identity(), Pin{Node: pub("two"), Instance: w.id, Slot: 1}.identity()
	w.claim("one", crdt.Claim{Slot: 0, MeshKey: key, Address: space.Candidate4(me, 0).String()})
	w.claim("two", crdt.Claim{Slot: 1, MeshKey: text(meshKey("guest-two")), Address: space.Candidate4(me, 0).String()}) // not its own
	where := []guest.Location{{Key: text(meshKey("guest-two")), At: netip.MustParseAddrPort("198.18.0.7:51820")}}
	m.Locate(where)
	m.tell(nil, guest.News{Statements: w.host.MeshStatements(pub("olga"))})
	if _, err := m.end(false); err != nil {
		t.Fatal(err)
	}
	my4, my6, two6 := space.Candidate4(me, 0), space.Address6(me), space.Address6(two)
	is("in the owner's scope", "app", my4, my6, two6)
	is("for all", "app."+names.Label(pub("olga")), my4, my6, two6)
	is("one slot", "1.app", two6)
	is("another owner", "app."+names.Label(pub("otto")))
	m.Locate(nil)
	is("nobody knows a way to the other", "app", my4, my6)
	is("nobody knows a way to the other", "1.app")
	m.Locate(where)
	is("and now does", "1.app", two6)
	if host, err := resolver.LookupAddr(t.Context(), my4.String()); err != nil || len(host) != 1 || host[0] != "0.app."+names.Zone+"." {
		t.Errorf("back: %v, %v", host, err)
	}
}

func TestExchange(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	for _, tt := range []struct{ has, want string }{{"old\n", "new\n"}, {"somebody's\n", "somebody's\n"}, {"new\n", "new\n"}} {
		if err := os.WriteFile(path, []byte(tt.has), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := exchange(path, "old\n", "new\n"); err != nil {
			t.Error(err)
		}
		if got, err := os.ReadFile(path); err != nil || string(got) != tt.want {
			t.Errorf("%q became %q, %v", tt.has, got, err)
		}
	}
	if err := exchange(path+".none", "", "x"); err == nil {
		t.Error("no file, and no error")
	}
}
