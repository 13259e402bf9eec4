package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/tun"

	"github.com/formthefog/formation/cmd/internal/api"
	"github.com/formthefog/formation/cmd/internal/config"
	meshview "github.com/formthefog/formation/cmd/internal/mesh"
	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/policy"
	"github.com/formthefog/formation/crdt/stmt"
	"github.com/formthefog/formation/wg"
	"github.com/formthefog/formation/wg/embedded"
	"github.com/formthefog/formation/wg/link"
	"github.com/formthefog/formation/wg/splitdns"
)

// meshMTU fits every path that QUIC needs, with what WireGuard adds (docs/wire.md).
const meshMTU = 1280

// How often the state is looked at at most, and the machine's routes at least.
const (
	meshEvery  = time.Second
	routeEvery = 30 * time.Second
)

// hostDevice is the node's own interface on the mesh.
type hostDevice struct {
	wg.Device
	kind  string
	name  string
	own   func([]netip.Addr) error    // which addresses peers may send to
	serve func(context.Context) error // what the device needs while it is there
	ended <-chan struct{}             // closed when the interface is gone
	close func()
	mesh  *wg.Mesh
	// deliver is [carrier.Station.Deliver] of a device that has not the carrier's
	// Bind; nil: it has.
	deliver func(b []byte, from netip.AddrPort)
}

// openDevice opens the node's own device as --mesh says. Without the right to make
// an interface auto has none: guests are on the mesh all the same.
func (d *formd) openDevice() error {
	m := d.mesh
	resolver, err := splitdns.New(splitdns.Config{State: d.path("splitdns.json")})
	if err != nil {
		return err
	}
	// Of an earlier start, which was killed.
	if err := resolver.Undo(context.Background()); err != nil {
		d.log.Warn("the machine's resolver still asks an earlier start of formd", "err", err)
	}
	d.sweepKernel()
	if d.cfg.Mesh == config.Off {
		m.none = "--mesh off: this machine itself has no interface on the mesh"
		return nil
	}
	m.wanted = true
	dev, err := d.chooseDevice()
	switch {
	case err == nil:
	case d.cfg.Mesh == "auto" && noRight(err):
		m.none = fmt.Sprintf("this machine itself has no interface on the mesh: %v", err)
		d.log.Info(m.none)
		return nil
	case noRight(err):
		return api.Problemf(api.ExitNotAllowed, "--mesh %s: %v", d.cfg.Mesh, err).
			WithHint("run formd as root, give it CAP_NET_ADMIN (setcap cap_net_admin+ep; --mesh kernel needs CAP_SYS_ADMIN too), or take --mesh auto")
	case noKernel(err):
		return api.Problemf(api.ExitFailed, "--mesh %s: %v", d.cfg.Mesh, err).
			WithHint("modprobe wireguard says why, or take --mesh auto or --mesh userspace")
	default:
		return err
	}
	if dev.mesh, err = wg.New(wg.Config{Device: dev, Space: m.space, Log: m.log}); err != nil {
		dev.close()
		return err
	}
	if m.names, err = newMeshNames(d.id.Full().Zone, m.space, dev.name, m.address6, resolver, m.log); err != nil {
		dev.close()
		return err
	}
	m.host = dev
	return nil
}

// chooseDevice opens the kind of device that --mesh says; auto is the kernel's where
// that can be had.
func (d *formd) chooseDevice() (*hostDevice, error) {
	if d.cfg.Mesh == "userspace" {
		return d.userspaceDevice()
	}
	dev, err := d.kernelDevice()
	if err == nil || d.cfg.Mesh == "kernel" {
		return dev, err
	}
	d.log.Info("mesh: WireGuard is in this process, not in the kernel", "reason", err)
	return d.userspaceDevice()
}

// noRight says whether err is of a machine that lets this process make no
// interface.
func noRight(err error) bool {
	return errors.Is(err, fs.ErrPermission) || errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV)
}

// userspaceDevice is wireguard-go in this process, over a TUN interface.
func (d *formd) userspaceDevice() (*hostDevice, error) {
	// tun.CreateTUN does not say in its error what is missing.
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: "/dev/net/tun", Err: err}
	}
	if err := unix.Close(fd); err != nil {
		return nil, err
	}
	name, err := freeInterface()
	if err != nil {
		return nil, err
	}
	raw, err := tun.CreateTUN(name, meshMTU)
	if err != nil {
		return nil, fmt.Errorf("make interface %s: %w", name, err)
	}
	only := &embedded.Only{Device: raw}
	dev, err := embedded.Open(embedded.Config{TUN: only, Bind: d.mesh.carrier.Bind(), Key: d.mesh.key, Log: d.mesh.log})
	if err != nil {
		return nil, err
	}
	return &hostDevice{Device: dev, kind: "wireguard-go", name: name, own: func(a []netip.Addr) error { only.Set(a); return nil },
		serve: dev.Serve, ended: dev.Done(), close: dev.Close}, nil
}

// maxInterfaces is how many names are tried.
const maxInterfaces = 64

// freeInterface is the first name form0, form1, … that no interface has, and no
// device in another network namespace whose control socket is in the same folder.
func freeInterface() (string, error) {
	for i := range maxInterfaces {
		name := fmt.Sprintf("form%d", i)
		if _, err := net.InterfaceByName(name); err == nil {
			continue
		}
		if c, err := net.Dial("unix", filepath.Join(embedded.ControlDir, name+".sock")); err == nil {
			c.Close()
			continue
		}
		return name, nil
	}
	return "", fmt.Errorf("form0 to form%d are all taken", maxInterfaces-1)
}

// published is what the node's register says of its device.
func (m *mesh) published() (key stmt.Key, address netip.Addr) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.host == nil || m.gone {
		return stmt.Key{}, netip.Addr{}
	}
	return stmt.Key(m.key.PublicKey()), m.address4
}

// runDevice keeps the node's own device in line with the state until ctx ends, and
// closes it. changed is called when the register is to be published anew.
func (m *mesh) runDevice(ctx context.Context, views <-chan *crdt.View, self stmt.Key, dead func() map[stmt.Key]time.Duration, changed func()) error {
	if m.host == nil {
		return nil
	}
	defer m.host.close()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return m.host.mesh.Run(ctx) })
	g.Go(func() error {
		if err := m.host.serve(ctx); err != nil {
			m.log.Warn("mesh: the device is not served any more", "interface", m.host.name, "err", err)
		}
		return nil
	})
	g.Go(func() error { return m.follow(ctx, views, self, changed) })
	g.Go(func() error { return m.names.run(ctx, dead) })
	return g.Wait()
}

func (m *mesh) follow(ctx context.Context, views <-chan *crdt.View, self stmt.Key, changed func()) error {
	routes := time.NewTicker(routeEvery)
	defer routes.Stop()
	next, rested := views, (<-chan time.Time)(nil)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-m.host.ended:
			m.mu.Lock()
			m.gone, m.device = true, wg.Key{}
			m.apply()
			m.mu.Unlock()
			m.log.Warn("the mesh's interface was removed; this machine itself is on the mesh again after a restart", "interface", m.host.name)
			changed()
			<-ctx.Done()
			return nil
		case v, ok := <-next:
			if !ok {
				return nil
			}
			m.settle(v, self, changed)
			next, rested = nil, time.After(meshEvery)
		case <-rested:
			next, rested = views, nil
		case <-routes.C:
			m.setLink()
		}
	}
}

// settle makes the device's peers, the hosts and the interface what a view says.
func (m *mesh) settle(v *crdt.View, self stmt.Key, changed func()) {
	had := m.address4
	n, published := v.Node(self)
	if published && !had.IsValid() {
		had = n.Address4 // of an earlier start
	}
	book := meshview.NewBook(v, m.space)
	address4 := book.Claim4(self, had)
	peers := book.Peers(policy.OfNode(v, self))
	m.mu.Lock()
	moved := !m.told || address4 != m.address4
	m.told, m.address4, m.peers = true, address4, peers
	m.mu.Unlock()
	m.setDevice(m.key.PublicKey(), meshview.Hosts(peers))
	if err := m.host.mesh.Set(meshview.Wanted(peers)); err != nil {
		m.log.Warn("peers on the mesh are left out", "err", err)
	}
	m.names.know(book, runsIt(n), peers)
	m.setLink()
	if moved {
		changed()
	}
}

// setLink gives the interface its addresses and routes.
func (m *mesh) setLink() {
	m.mu.Lock()
	c := link.Config{Name: m.host.name, MTU: meshMTU, Addresses: []netip.Addr{m.address6}, Prefixes: m.prefixes()}
	if m.address4.IsValid() {
		c.Addresses = append(c.Addresses, m.address4)
	}
	for _, p := range m.peers {
		c.Peers = append(c.Peers, p.Address6)
		if p.Address4.IsValid() {
			c.Peers = append(c.Peers, p.Address4)
		}
	}
	told := m.told
	m.mu.Unlock()
	if !told {
		return // nothing is known yet
	}
	own := slices.Clip(c.Addresses)
	c.Addresses = append(own, m.names.addresses()...)
	inTheWay, err := link.Set(c)
	if err == nil && m.names.choose(inTheWay) {
		c.Addresses = append(own, m.names.addresses()...)
		inTheWay, err = link.Set(c)
	}
	err = errors.Join(err, m.host.own(own))
	m.mu.Lock()
	before := m.linkErr
	fresh := !slices.Equal(m.inTheWay, inTheWay)
	m.inTheWay, m.linkErr = inTheWay, err
	m.mu.Unlock()
	if err != nil && (before == nil || before.Error() != err.Error()) {
		m.log.Warn("the mesh's interface is not in order", "err", err)
	}
	if fresh && len(inTheWay) > 0 {
		m.log.Warn("this machine reaches other things by addresses of the mesh: peers there are not reached", "prefixes", inTheWay)
	}
}

// prefixes are those of the mesh.
func (m *mesh) prefixes() []netip.Prefix {
	return []netip.Prefix{m.space.Prefix6(), m.space.Prefix4()}
}
