//go:build linux

// Package kernel is WireGuard of the kernel's.
//
// Guarantees: [Open] makes an interface, or takes over one that it made before
// and that nobody has closed, with the sessions of its peers; it never touches an
// interface that somebody else made. A [Device] is configured by differences.
// [Device.Close] removes the interface. The datagrams of an [Apart] are carried by
// this process alone.
//
// Not guaranteed: that the interface is still there, as whoever may make one may
// remove it; every call then fails. A device has a UDP port for itself: it cannot
// share a socket with QUIC.
package kernel

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/formthefog/formation/wg"
)

// ErrUnsupported says that the kernel has no WireGuard, and no module to load.
var ErrUnsupported = errors.New("the kernel has no WireGuard")

// Config is what a device is made of.
type Config struct {
	Name string // of the interface
	Key  wg.Key // private
	Port int    // UDP; 0: any
	// Mark is by what an interface of this maker is known later, at most maxMark
	// bytes; "": all makers that say nothing are one.
	Mark string
}

// mine is the alias of the interfaces made here, and begins it where there is a
// mark; the kernel keeps so much of it.
const (
	mine    = "formation mesh"
	maxMark = 255 - len(mine) - 1
)

// alias is the alias of interfaces with a mark.
func alias(mark string) string {
	if mark == "" {
		return mine
	}
	return mine + " " + mark
}

// Device implements [wg.Device]. It works in the network namespace in which it
// was opened, whatever thread calls. Its methods may be called by several
// goroutines.
type Device struct {
	name  string
	alias string
	links *netlink.Handle
	ctrl  control
}

// control configures devices by name; *wgctrl.Client is one.
type control interface {
	Device(name string) (*wgtypes.Device, error)
	ConfigureDevice(name string, cfg wgtypes.Config) error
	Close() error
}

// Open makes the interface and brings it up. The error is [ErrUnsupported] where
// the kernel cannot have it. A new device has no peers.
func Open(cfg Config) (*Device, error) {
	links, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("wg: netlink: %w", err)
	}
	d := &Device{name: cfg.Name, alias: alias(cfg.Mark), links: links}
	made, err := d.open(cfg)
	if err == nil {
		return d, nil
	}
	if made != nil {
		err = errors.Join(err, d.links.LinkDel(made))
	}
	return nil, errors.Join(fmt.Errorf("wg: kernel device %s: %w", cfg.Name, err), d.release())
}

// open returns the interface as soon as it is there, also with an error.
func (d *Device) open(cfg Config) (netlink.Link, error) {
	link, err := d.link()
	if err != nil {
		return nil, err
	}
	if err := d.equip(cfg); err != nil {
		return link, err
	}
	return link, d.up(link)
}

// equip gives the interface that is there its key and port.
func (d *Device) equip(cfg Config) error {
	// Not before there is an interface, which loads the module: wgctrl looks for
	// the kernel's WireGuard once.
	client, err := wgctrl.New()
	if err != nil {
		return err
	}
	d.ctrl = client
	if err := d.ctrl.ConfigureDevice(cfg.Name, wgtypes.Config{PrivateKey: &cfg.Key, ListenPort: &cfg.Port}); err != nil {
		return fmt.Errorf("set key and port: %w", err)
	}
	return nil
}

func (d *Device) up(link netlink.Link) error {
	if err := d.links.LinkSetUp(link); err != nil {
		return fmt.Errorf("bring up: %w", err) // a port that is taken shows here
	}
	return nil
}

// link makes the interface, or finds the one that was made here before.
func (d *Device) link() (netlink.Link, error) {
	link, err := add(d.links, d.name, d.alias)
	if errors.Is(err, unix.EEXIST) {
		return d.again()
	}
	return link, err
}

// add makes an interface with an alias.
func add(links *netlink.Handle, name, alias string) (netlink.Link, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	link := &netlink.Wireguard{LinkAttrs: attrs}
	err := links.LinkAdd(link)
	switch {
	case errors.Is(err, unix.EOPNOTSUPP):
		return nil, ErrUnsupported
	case err != nil:
		return nil, fmt.Errorf("make interface: %w", err)
	}
	// A new interface does not take an alias.
	if err := links.LinkSetAlias(link, alias); err != nil {
		return nil, errors.Join(fmt.Errorf("mark interface: %w", err), links.LinkDel(link))
	}
	return link, nil
}

func (d *Device) again() (netlink.Link, error) {
	old, err := d.links.LinkByName(d.name)
	if err != nil {
		return nil, err
	}
	if !marked(old, d.alias) {
		return nil, fmt.Errorf("somebody else has made an interface of that name: %w", unix.EEXIST)
	}
	return old, nil
}

func marked(l netlink.Link, alias string) bool {
	return l.Type() == (&netlink.Wireguard{}).Type() && l.Attrs().Alias == alias
}

// Name is the interface's name.
func (d *Device) Name() string { return d.name }

// Port is the UDP port at which the device listens.
func (d *Device) Port() (int, error) {
	dev, err := d.ctrl.Device(d.name)
	if err != nil {
		return 0, fmt.Errorf("wg: read %s: %w", d.name, err)
	}
	return dev.ListenPort, nil
}

// Configure implements [wg.Device].
func (d *Device) Configure(changes []wgtypes.PeerConfig) error {
	return d.set(wgtypes.Config{Peers: changes})
}

// SetKey changes the device's private key. Sessions end, and begin anew with the
// next datagram; a peer that does not know the new key yet is lost until it does.
func (d *Device) SetKey(key wg.Key) error { return d.set(wgtypes.Config{PrivateKey: &key}) }

func (d *Device) set(c wgtypes.Config) error {
	if err := d.ctrl.ConfigureDevice(d.name, c); err != nil {
		return fmt.Errorf("wg: configure %s: %w", d.name, err)
	}
	return nil
}

// Peers implements [wg.Device].
func (d *Device) Peers() ([]wg.Status, error) {
	dev, err := d.ctrl.Device(d.name)
	if err != nil {
		return nil, fmt.Errorf("wg: read %s: %w", d.name, err)
	}
	peers := make([]wg.Status, len(dev.Peers))
	for i, p := range dev.Peers {
		peers[i] = status(p)
	}
	return peers, nil
}

func status(p wgtypes.Peer) wg.Status {
	s := wg.Status{Handshake: p.LastHandshakeTime, Received: p.ReceiveBytes, Sent: p.TransmitBytes}
	s.Key, s.Keepalive = p.PublicKey, p.PersistentKeepaliveInterval
	if p.Endpoint != nil {
		at := p.Endpoint.AddrPort()
		s.Endpoint = netip.AddrPortFrom(at.Addr().Unmap(), at.Port())
	}
	for _, n := range p.AllowedIPs {
		ones, bits := n.Mask.Size()
		if a, ok := netip.AddrFromSlice(n.IP); ok && ones == bits {
			s.Addresses = append(s.Addresses, a.Unmap())
		}
	}
	slices.SortFunc(s.Addresses, netip.Addr.Compare)
	return s
}

// Close removes the interface. The Device must not be used any more.
func (d *Device) Close() error {
	link, err := d.again()
	if err == nil {
		err = d.links.LinkDel(link)
	}
	if errors.As(err, &netlink.LinkNotFoundError{}) || errors.Is(err, unix.ENODEV) {
		err = nil // somebody else was quicker
	}
	if err = errors.Join(err, d.release()); err != nil {
		return fmt.Errorf("wg: remove %s: %w", d.name, err)
	}
	return nil
}

func (d *Device) release() error {
	d.links.Close()
	if d.ctrl == nil {
		return nil
	}
	return d.ctrl.Close()
}
