package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/formthefog/formation/cmd/internal/api"
	meshview "github.com/formthefog/formation/cmd/internal/mesh"
	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/names"
	"github.com/formthefog/formation/crdt/stmt"
	"github.com/formthefog/formation/wg"
	meshdns "github.com/formthefog/formation/wg/dns"
	"github.com/formthefog/formation/wg/splitdns"
)

// namesEvery is how often at most the names are made anew, and namesShare how much
// of the time that may take: one part in so many.
const (
	namesEvery = time.Second
	namesShare = 10
)

// meshNames answers on the node's own interface about the names of the mesh, and
// has this machine ask there. The machine itself asks at an address that none of
// the interface's peers may send to; they ask at the node's address in the mesh.
type meshNames struct {
	zone     string
	space    wg.Space
	iface    string
	address6 netip.Addr // of the node
	resolver *splitdns.Resolver
	log      *slog.Logger

	server *meshdns.Server
	scopes atomic.Pointer[map[netip.Addr]string] // of peers, by their addresses
	own    atomic.Pointer[string]                // scope of this machine
	linked chan struct{}                         // closed when local is set

	mu    sync.Mutex
	local netip.Addr // where the machine itself asks
	book  *meshview.Book
	check api.Check // for doctor
}

// newMeshNames makes what answers; nothing happens before run.
func newMeshNames(zone string, space wg.Space, iface string, address6 netip.Addr, resolver *splitdns.Resolver, log *slog.Logger) (*meshNames, error) {
	n := &meshNames{zone: zone, space: space, iface: iface, address6: address6, resolver: resolver, log: log, linked: make(chan struct{})}
	n.say("warn", "the interface has no addresses yet", "")
	nobody := ""
	n.scopes.Store(&map[netip.Addr]string{})
	n.own.Store(&nobody)
	var err error
	n.server, err = meshdns.New(meshdns.Config{Zone: zone, Reverse: []netip.Prefix{space.Prefix4(), space.Prefix6()}, Scope: n.scope})
	return n, err
}

// choose decides where the machine itself asks, once it is known what of the
// mesh's it reaches otherwise. It returns whether that is new.
func (n *meshNames) choose(inTheWay []netip.Prefix) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.local.IsValid() {
		return false
	}
	n.local = n.space.DNS4()
	if slices.ContainsFunc(inTheWay, func(p netip.Prefix) bool { return p.Contains(n.local) }) {
		n.local = n.address6
	}
	close(n.linked)
	return true
}

// addresses are what the interface needs for names beside the node's own.
func (n *meshNames) addresses() []netip.Addr {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.local.IsValid() || n.local == n.address6 {
		return nil
	}
	return []netip.Addr{n.local}
}

func (n *meshNames) scope(asker netip.Addr) string {
	if scope, ok := (*n.scopes.Load())[asker]; ok {
		return scope
	}
	return *n.own.Load()
}

// know says what there is to answer, and whose names the machine itself and its
// peers mean when they name no owner.
func (n *meshNames) know(book *meshview.Book, own stmt.Key, peers []meshview.Peer) {
	label := scopeOf(own)
	scopes := make(map[netip.Addr]string, 2*len(peers))
	for _, p := range peers {
		scopes[p.Address6] = scopeOf(p.Owner)
		if p.Address4.IsValid() {
			scopes[p.Address4] = scopeOf(p.Owner)
		}
	}
	n.own.Store(&label)
	n.scopes.Store(&scopes)
	n.mu.Lock()
	n.book = book
	n.mu.Unlock()
}

func scopeOf(owner stmt.Key) string {
	if owner.IsZero() {
		return ""
	}
	return names.Label(owner)
}

// runsIt is in whose scope a node's own machine is: of who runs it, by the root's
// word or else by its own.
func runsIt(n crdt.Node) stmt.Key {
	if n.Operator.IsZero() && len(n.Named) > 0 {
		return n.Named[0]
	}
	return n.Operator
}

// run answers, and has the machine ask, until ctx ends. Without names all else
// works, so that what goes wrong is logged and told by doctor.
func (n *meshNames) run(ctx context.Context, dead func() map[stmt.Key]time.Duration) error {
	select {
	case <-n.linked:
	case <-ctx.Done():
		return nil
	}
	var open []sockets
	for _, at := range append(n.addresses(), n.address6) {
		s, err := listenNames(at, n.iface)
		if err != nil {
			for _, o := range open {
				err = errors.Join(err, o.close())
			}
			return n.without(ctx, err)
		}
		open = append(open, s)
	}
	g, gctx := errgroup.WithContext(ctx)
	for _, s := range open {
		g.Go(func() error { return n.server.Run(gctx, s.udp, s.tcp) })
	}
	g.Go(func() error { n.follow(gctx, dead); return nil })
	g.Go(func() error { n.ask(gctx); return nil })
	return n.without(ctx, g.Wait())
}

// without tells of an error and waits for the end.
func (n *meshNames) without(ctx context.Context, err error) error {
	if err != nil && ctx.Err() == nil {
		n.log.Warn("names of the mesh are not answered on this machine", "err", err)
		n.say("warn", err.Error(), "free port 53 of the mesh's interface, and run formd with the right to open it (root, or CAP_NET_BIND_SERVICE)")
		<-ctx.Done()
	}
	return nil
}

// follow has the answers be what is known.
func (n *meshNames) follow(ctx context.Context, dead func() map[stmt.Key]time.Duration) {
	var last *meshview.Book
	var without map[stmt.Key]time.Duration
	said := ""
	for wait := time.Duration(0); ; {
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
		wait = namesEvery
		n.mu.Lock()
		book := n.book
		n.mu.Unlock()
		gone := dead()
		if book == nil || book == last && maps.Equal(gone, without) {
			continue
		}
		began := time.Now()
		all, problems := book.Names(func(k stmt.Key) bool { _, is := gone[k]; return !is })
		if err := n.server.Set(all); err != nil {
			problems = append(problems, err)
		}
		last, without = book, gone
		if text := fmt.Sprint(errors.Join(problems...)); text != said && len(problems) > 0 {
			said = text
			n.log.Warn("names of the mesh", "err", text)
		}
		wait = max(wait, namesShare*time.Since(began))
	}
}

// ask has this machine ask here about the mesh's names, until ctx ends.
func (n *meshNames) ask(ctx context.Context) {
	want := splitdns.Want{Interface: n.iface, Servers: []netip.Addr{n.local}, Domains: append([]string{n.zone}, reverseDomains(n.space)...)}
	by, err := n.resolver.Set(ctx, want)
	switch {
	case errors.Is(err, splitdns.ErrUnsupported):
		n.say("ok", fmt.Sprintf("answered at %s; this machine does not ask there: %v", n.local, err), n.resolver.Manual(want))
		return
	case err != nil:
		n.log.Warn("this machine does not ask the mesh about its names", "err", err)
		n.say("warn", err.Error(), n.resolver.Manual(want))
		return
	}
	n.say("ok", fmt.Sprintf("%s asks %s about %s", by, n.local, n.zone), "")
	<-ctx.Done()
	if err := n.resolver.Undo(context.WithoutCancel(ctx)); err != nil {
		n.log.Warn("the machine's resolver still asks the mesh; the next start of formd takes it back", "err", err)
	}
}

func (n *meshNames) say(state, detail, fix string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.check = api.Check{Name: "names", State: state, Detail: detail, Fix: fix}
}

// doctor says how it is with names.
func (n *meshNames) doctor() api.Check {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.check
}

// sockets are those of one address.
type sockets struct {
	udp net.PacketConn
	tcp net.Listener
}

func (s sockets) close() error { return errors.Join(s.udp.Close(), s.tcp.Close()) }

// listenNames opens port 53 of an address, which the machine may be given later, for
// what comes in by the address's interface, as what the machine sends itself does.
func listenNames(at netip.Addr, iface string) (s sockets, err error) {
	c := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var err error
		if cerr := raw.Control(func(fd uintptr) {
			err = errors.Join(unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_FREEBIND, 1), unix.BindToDevice(int(fd), iface))
		}); cerr != nil {
			return cerr
		}
		return err
	}}
	address := netip.AddrPortFrom(at, 53).String()
	if s.udp, err = c.ListenPacket(context.Background(), "udp", address); err != nil {
		return s, err
	}
	if s.tcp, err = c.Listen(context.Background(), "tcp", address); err != nil {
		return s, errors.Join(err, s.udp.Close())
	}
	return s, nil
}

// reverseDomains are the domains of the mesh's addresses, where a prefix is one.
func reverseDomains(space wg.Space) []string {
	var out []string
	for _, p := range []netip.Prefix{space.Prefix4(), space.Prefix6()} {
		label := 8
		if p.Addr().Is6() {
			label = 4
		}
		// Of an address the error cannot be.
		rev, err := dns.ReverseAddr(p.Addr().String())
		if err != nil || p.Bits()%label != 0 {
			continue
		}
		labels := strings.Split(strings.TrimSuffix(rev, "."), ".")
		out = append(out, strings.Join(slices.Delete(labels, 0, (p.Addr().BitLen()-p.Bits())/label), "."))
	}
	return out
}
