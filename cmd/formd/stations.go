package main

import (
	"context"
	"crypto/sha256"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/policy"
	"github.com/formthefog/formation/crdt/stmt"
	"github.com/formthefog/formation/fogvm"
	"github.com/formthefog/formation/fogvm/guest"
	"github.com/formthefog/formation/fogvm/reconcile"
	"github.com/formthefog/formation/fogvm/reconcile/plan"
	"github.com/formthefog/formation/wg/carrier"
)

// meshVMs reaches the mesh of guests; *fogvm.Manager has these methods.
type meshVMs interface {
	List() []fogvm.Status
	Mesh(ctx context.Context, id string) (*fogvm.MeshPort, error)
	MeshNews(ctx context.Context, id string) (net.Conn, error)
}

// stations makes the guests of this node stations behind its port: it hands them
// their datagrams, which it cannot read, tells them where their peers' hosts are,
// and what proves who those are.
type stations struct {
	self       stmt.Key
	vms        meshVMs
	watch      func(context.Context) <-chan *crdt.View
	statements func(owner stmt.Key) [][]byte
	dead       func() map[stmt.Key]time.Duration // nodes that do not answer
	// set says who is behind the port and with which hosts they talk; send is a
	// datagram of one of them.
	set  func(map[string]carrier.Station, []peer.ID)
	send func(station string, b []byte, to netip.AddrPort)
	log  *slog.Logger

	problems map[string]string // by VM, as last logged; of run alone
}

// stations makes those of this node.
func (d *formd) stations() *stations {
	return &stations{self: d.id.self(), vms: d.vms, watch: d.state.Watch, statements: d.state.MeshStatements,
		dead: d.prober.Dead, set: d.mesh.setGuests, send: d.mesh.carrier.Send, log: d.mesh.log}
}

// guestMesh is what reconciling needs to know of the mesh.
func (d *formd) guestMesh() *reconcile.GuestMesh {
	return &reconcile.GuestMesh{Network: d.id.Name, Root: d.id.Root, Settings: d.id.Settings, Space: d.mesh.space,
		Endpoint: func() netip.AddrPort { return bestEndpoint(udpAddrs(d.node.Addrs())) }}
}

// bestEndpoint is the address, of several of this node's, that is most likely to be
// reached from elsewhere: a public one before one of a private network, and that
// before loopback; the first of equal ones.
func bestEndpoint(all []netip.AddrPort) netip.AddrPort {
	class := func(a netip.AddrPort) int {
		switch ip := a.Addr(); {
		case ip.IsLoopback():
			return 2
		case ip.IsPrivate() || ip.IsLinkLocalUnicast():
			return 1
		}
		return 0
	}
	var best netip.AddrPort
	for _, a := range all {
		if a.Addr().IsUnspecified() {
			continue
		}
		if !best.IsValid() || class(a) < class(best) {
			best = a
		}
	}
	return best
}

// When guests are looked at: not more often than, and at least.
const (
	stationsPace    = 300 * time.Millisecond
	stationsRefresh = 2 * time.Second
)

// run works until ctx ends; then nobody is behind the port.
func (s *stations) run(ctx context.Context) {
	links := map[string]*guestLink{}
	var running sync.WaitGroup
	defer func() {
		for _, l := range links {
			l.end()
		}
		running.Wait()
		s.set(nil, nil)
	}()
	views := s.watch(ctx)
	pace, refresh := time.NewTicker(stationsPace), time.NewTicker(stationsRefresh)
	defer pace.Stop()
	defer refresh.Stop()
	var view *crdt.View
	for {
		select {
		case <-ctx.Done():
			return
		case v, ok := <-views:
			if !ok {
				return
			}
			view = v
		case <-refresh.C:
		}
		if view != nil {
			s.look(ctx, view, links, &running)
		}
		select {
		case <-pace.C:
		case <-ctx.Done():
			return
		}
	}
}

// guestOf is a guest that runs here and has a key.
type guestOf struct {
	claim crdt.Claim
	key   wgtypes.Key
}

// guests are this node's, by the names of their VMs.
func (s *stations) guests(v *crdt.View) map[string]guestOf {
	claims := map[string]crdt.Claim{}
	for _, c := range v.ClaimsBy(s.self) {
		claims[plan.VMID(c.Instance, c.Slot)] = c
	}
	out := map[string]guestOf{}
	problems := map[string]string{}
	for _, vm := range s.vms.List() {
		if vm.MeshProblem != "" {
			problems[vm.ID] = vm.MeshProblem
		}
		if vm.MeshProblem != s.problems[vm.ID] {
			s.log.Warn("mesh: a guest's report", "vm", vm.ID, "problem", vm.MeshProblem)
		}
		c, claimed := claims[vm.ID]
		key, err := wgtypes.ParseKey(vm.MeshKey)
		if claimed && err == nil && vm.ShimPID != 0 {
			out[vm.ID] = guestOf{c, key}
		}
	}
	s.problems = problems
	return out
}

// look brings links, and who is behind the port, to what runs here now.
func (s *stations) look(ctx context.Context, v *crdt.View, links map[string]*guestLink, running *sync.WaitGroup) {
	guests := s.guests(v)
	for id, l := range links {
		if g, ok := guests[id]; !ok || g.key != l.key {
			l.end()
			delete(links, id)
		}
	}
	behind := make(map[string]carrier.Station, len(guests))
	hosts := map[stmt.Key]bool{}
	told := map[stmt.Key]toldOf{}
	dead := s.dead()
	for _, id := range slices.Sorted(maps.Keys(guests)) {
		g := guests[id]
		l, known := links[id]
		if !known {
			l = newGuestLink(id, g.key, s)
			links[id] = l
		}
		if _, ok := told[g.claim.Owner]; !ok {
			told[g.claim.Owner] = newTold(s.statements(g.claim.Owner))
		}
		l.tell(told[g.claim.Owner])
		where := placesOf(v, g.claim)
		for _, p := range where {
			hosts[p.host] = true
		}
		// Whom it is told no way to the guest does not name (fogvm/guest/mesh); that a
		// datagram can come from there holds all the same.
		l.locate(slices.DeleteFunc(where, func(p placeOf) bool { _, is := dead[p.host]; return is }))
		if !known {
			linked, end := context.WithCancel(ctx)
			l.end = end
			running.Go(func() { l.run(linked) })
		}
		behind[id] = carrier.Station{Public: g.key, Deliver: l.deliver}
	}
	var ids []peer.ID
	for _, k := range slices.SortedFunc(maps.Keys(hosts), stmt.Key.Compare) {
		ids = append(ids, peer.ID(k.PeerID()))
	}
	s.set(behind, ids)
}

// placeOf is at which host a peer of a guest is.
type placeOf struct {
	key  [32]byte
	host stmt.Key
}

// placesOf are those of the peers of the guest of a claim. Devices come by
// themselves.
func placesOf(v *crdt.View, c crdt.Claim) []placeOf {
	var out []placeOf
	for _, p := range policy.OfReplica(v, c.Owner, c.Instance, c.Slot, c.Node) {
		if !p.Node.IsZero() {
			out = append(out, placeOf{p.Key, p.Node})
		}
	}
	return out
}

// guestLink carries what there is between the carrier and one guest.
type guestLink struct {
	id  string
	key wgtypes.Key
	s   *stations
	end context.CancelFunc

	out     chan inbound
	located chan struct{} // where has changed; capacity 1
	news    chan struct{} // statements have; capacity 1

	mu    sync.Mutex
	where []placeOf
	told  toldOf
}

// toldOf is what guests of one owner are told, in that order, and a sum over it.
type toldOf struct {
	statements []guest.Told
	sum        [sha256.Size]byte
}

func newTold(raws [][]byte) toldOf {
	t := toldOf{statements: guest.Named(raws)}
	h := sha256.New()
	for _, s := range t.statements {
		h.Write(s.Name[:])
	}
	h.Sum(t.sum[:0])
	return t
}

// inbound is a datagram for the guest.
type inbound struct {
	b    []byte
	from netip.AddrPort
}

// maxInbound is how many datagrams wait for a guest; more are dropped.
const maxInbound = 512

func newGuestLink(id string, key wgtypes.Key, s *stations) *guestLink {
	return &guestLink{id: id, key: key, s: s, out: make(chan inbound, maxInbound), located: make(chan struct{}, 1), news: make(chan struct{}, 1)}
}

// deliver is [carrier.Station.Deliver].
func (l *guestLink) deliver(b []byte, from netip.AddrPort) {
	select {
	case l.out <- inbound{slices.Clone(b), from}:
	default:
	}
}

func (l *guestLink) locate(where []placeOf) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !slices.Equal(where, l.where) {
		l.where = where
		nudge(l.located)
	}
}

func (l *guestLink) tell(told toldOf) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if told.sum != l.told.sum {
		l.told = told
		nudge(l.news)
	}
}

func nudge(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

func (l *guestLink) locations() []fogvm.MeshLocation {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := make([]fogvm.MeshLocation, len(l.where))
	for i, p := range l.where {
		out[i] = fogvm.MeshLocation{Key: p.key, At: carrier.Address(peer.ID(p.host.PeerID()))}
	}
	return out
}

func (l *guestLink) held() []guest.Told {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.told.statements
}
