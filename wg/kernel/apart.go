//go:build linux

package kernel

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/formthefog/formation/wg"
)

// Apart is a device whose datagrams this process carries. The interface is where
// [OpenApart] was called; its UDP port is in a network namespace where nobody else
// is, so nothing on any network reaches it, and it is in the way of no port. The
// namespace, and with it the port, ends with the process, however that ends; the
// interface stays, cut off, until [Sweep].
//
// Peers may send to the device's own addresses alone ([Apart.Own]): a machine that
// forwards packets is no way into its networks.
type Apart struct {
	*Device
	in     *filter
	conn   *net.UDPConn
	device netip.AddrPort // where the device listens, in the namespace
	gone   chan struct{}
	unseen chan struct{} // closed when nobody looks for gone any more
	watch  sync.WaitGroup

	mu      sync.Mutex
	remotes remotes
}

// OpenApart makes a device with an interface of that name, and sees that it sends.
// It needs the right to make interfaces and network namespaces; the error is
// [ErrUnsupported] or [ErrNoFilter] where the kernel cannot have it. The port is
// what others are told that the device has; nobody shares it.
func OpenApart(cfg Config) (*Apart, error) {
	if cfg.Port == remotePort {
		cfg.Port++
	}
	a := &Apart{Device: &Device{name: cfg.Name, alias: alias(cfg.Mark)}, gone: make(chan struct{}), unseen: make(chan struct{}),
		device: netip.AddrPortFrom(netip.IPv6Loopback(), uint16(cfg.Port))}
	if cfg.Port <= 0 || cfg.Port > 65535 || len(cfg.Mark) > maxMark {
		return nil, fmt.Errorf("wg: kernel device %s: port %d, mark of %d bytes", cfg.Name, cfg.Port, len(cfg.Mark))
	}
	links, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("wg: netlink: %w", err)
	}
	a.links = links
	if err := a.open(cfg); err != nil {
		err = fmt.Errorf("wg: kernel device %s: %w", cfg.Name, err)
		if made, none := a.again(); none == nil {
			err = errors.Join(err, a.links.LinkDel(made))
		}
		return nil, errors.Join(err, a.release(), a.end())
	}
	return a, nil
}

func (a *Apart) open(cfg Config) (err error) {
	err = inNamespace(func(home int) error {
		if a.conn, err = hollow(); err != nil {
			return err
		}
		links, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer links.Close()
		made, err := add(links, cfg.Name, a.alias)
		if err != nil {
			return err
		}
		if err := links.LinkSetNsFd(made, home); err != nil {
			return fmt.Errorf("bring the interface to its place: %w", err) // it ends with the namespace
		}
		return nil
	})
	if err != nil {
		return err
	}
	link, err := a.again()
	if err != nil {
		return err
	}
	if a.in, err = newFilter(a.links, link); err != nil {
		return err
	}
	if err := a.equip(cfg); err != nil {
		return err
	}
	if err := a.see(link.Attrs().Index); err != nil {
		return err
	}
	if err := a.up(link); err != nil {
		return err
	}
	return a.try()
}

// tryFor is how long a device may take to send its first datagram, initiation what
// that is long.
const (
	tryFor     = 5 * time.Second
	initiation = 148
)

// try has the device greet a peer that there is not.
func (a *Apart) try() error {
	nobody, err := wgtypes.GeneratePrivateKey()
	if err != nil {
		return err
	}
	at, keepalive := numbered(0), time.Second
	peer := wgtypes.PeerConfig{PublicKey: nobody.PublicKey(), Endpoint: net.UDPAddrFromAddrPort(at), PersistentKeepaliveInterval: &keepalive}
	if err := a.Device.Configure([]wgtypes.PeerConfig{peer}); err != nil {
		return err
	}
	if err := a.conn.SetReadDeadline(time.Now().Add(tryFor)); err != nil {
		return err
	}
	b, oob := make([]byte, initiation+1), make([]byte, 128)
	n, m, _, _, err := a.conn.ReadMsgUDPAddrPort(b, oob)
	if err != nil {
		return fmt.Errorf("the device sends nothing: %w", err)
	}
	if to, ok := sentTo(oob[:m]); !ok || to != at || n != initiation {
		return fmt.Errorf("the device sends %d bytes to %s instead of %d to %s", n, to, initiation, at)
	}
	err = a.Device.Configure([]wgtypes.PeerConfig{{PublicKey: nobody.PublicKey(), Remove: true}})
	return errors.Join(err, a.conn.SetReadDeadline(time.Time{}))
}

// inNamespace calls f on a thread that is in a new network namespace; home is the
// one it comes from, and goes back to.
func inNamespace(f func(home int) error) error {
	runtime.LockOSThread()
	home, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		runtime.UnlockOSThread()
		return &fs.PathError{Op: "open", Path: "/proc/thread-self/ns/net", Err: err}
	}
	defer unix.Close(home)
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("make a network namespace: %w", err)
	}
	err = f(home)
	if back := unix.Setns(home, unix.CLONE_NEWNET); back != nil {
		// The thread stays this goroutine's, and nobody else's.
		return errors.Join(err, fmt.Errorf("leave a network namespace: %w", back))
	}
	runtime.UnlockOSThread()
	return err
}

// remotePort is the port of everybody whom the device knows.
const remotePort = 1

// hollow makes the calling thread's namespace one in which every IPv6 address is
// this machine's, and returns the socket that has them all.
func hollow() (*net.UDPConn, error) {
	links, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	defer links.Close()
	lo, err := links.LinkByName("lo")
	if err == nil {
		err = links.LinkSetUp(lo)
	}
	if err == nil {
		err = links.RouteAdd(&netlink.Route{LinkIndex: lo.Attrs().Index, Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_LOCAL,
			Dst: &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}})
	}
	if err != nil {
		return nil, fmt.Errorf("prepare a network namespace: %w", err)
	}
	var options error
	listen := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		err := raw.Control(func(fd uintptr) {
			options = errors.Join(
				unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1),
				unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_FREEBIND, 1),
				unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, socketBuffer),
				unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, socketBuffer))
		})
		return errors.Join(err, options)
	}}
	c, err := listen.ListenPacket(context.Background(), "udp6", netip.AddrPortFrom(netip.IPv6Unspecified(), remotePort).String())
	if err != nil {
		return nil, err
	}
	return c.(*net.UDPConn), nil
}

// socketBuffer is how much waits for either side, in bytes, as with wireguard-go.
const socketBuffer = 7 << 20

// see closes gone when the interface is.
func (a *Apart) see(index int) error {
	changes := make(chan netlink.LinkUpdate, 16)
	if err := netlink.LinkSubscribe(changes, a.unseen); err != nil {
		return fmt.Errorf("watch interfaces: %w", err)
	}
	a.watch.Go(func() {
		for c := range changes {
			if c.Header.Type == unix.RTM_DELLINK && int(c.Index) == index {
				break
			}
		}
		close(a.gone) // or it is closed, or not to be seen any more
		for range changes {
		}
	})
	return nil
}

// Done is closed when the interface was removed, or the device closed.
func (a *Apart) Done() <-chan struct{} { return a.gone }

// Deliver hands the device a datagram as coming from somebody; what it has no room
// for is lost. It does not keep b.
func (a *Apart) Deliver(b []byte, from netip.AddrPort) {
	a.mu.Lock()
	at, ok := a.remotes.virtual(from)
	a.mu.Unlock()
	if !ok {
		return
	}
	// What is lost here is as what is lost on a network; the interface that is gone
	// is told by Done.
	_, _, _ = a.conn.WriteMsgUDPAddrPort(b, unix.PktInfo6(&unix.Inet6Pktinfo{Addr: at.Addr().As16()}), a.device)
}

// Run hands send what the device sends, until ctx ends; send may not keep b.
func (a *Apart) Run(ctx context.Context, send func(b []byte, to netip.AddrPort)) error {
	stop := context.AfterFunc(ctx, func() { _ = a.conn.SetReadDeadline(time.Unix(1, 0)) }) // of a closed one: it has ended
	defer stop()
	b, oob := make([]byte, 1<<16), make([]byte, 128)
	for {
		n, m, _, _, err := a.conn.ReadMsgUDPAddrPort(b, oob)
		switch {
		case ctx.Err() != nil || errors.Is(err, net.ErrClosed):
			return nil
		case errors.Is(err, os.ErrDeadlineExceeded):
			return nil
		case err != nil:
			return fmt.Errorf("wg: read from %s: %w", a.name, err)
		}
		at, ok := sentTo(oob[:m])
		if !ok {
			continue
		}
		a.mu.Lock()
		to, ok := a.remotes.real(at, isSession(b[:n]))
		a.mu.Unlock()
		if ok {
			send(b[:n], to)
		}
	}
}

// sentTo is the address to which a datagram went that came with oob.
func sentTo(oob []byte) (netip.AddrPort, bool) {
	h, data, _, err := unix.ParseOneSocketControlMessage(oob)
	if err != nil || h.Level != unix.IPPROTO_IPV6 || h.Type != unix.IPV6_PKTINFO || len(data) < 16 {
		return netip.AddrPort{}, false
	}
	return netip.AddrPortFrom(netip.AddrFrom16([16]byte(data[:16])), remotePort), true
}

// isSession says whether b, which the device sends, is no mere answer to a
// stranger: of its messages that is the cookie reply.
func isSession(b []byte) bool { return len(b) > 0 && b[0] != 3 }

// Configure implements [wg.Device].
func (a *Apart) Configure(changes []wgtypes.PeerConfig) error {
	out := make([]wgtypes.PeerConfig, len(changes))
	a.mu.Lock()
	for i, c := range changes {
		if out[i] = c; c.Endpoint == nil {
			continue
		}
		real := c.Endpoint.AddrPort()
		out[i].Endpoint = nil // where there is no room it comes by itself
		if at, ok := a.remotes.virtual(netip.AddrPortFrom(real.Addr().Unmap(), real.Port())); ok {
			out[i].Endpoint = net.UDPAddrFromAddrPort(at)
		}
	}
	a.mu.Unlock()
	return a.Device.Configure(out)
}

// Peers implements [wg.Device].
func (a *Apart) Peers() ([]wg.Status, error) {
	peers, err := a.Device.Peers()
	a.mu.Lock()
	defer a.mu.Unlock()
	for i, p := range peers {
		peers[i].Endpoint = a.remotes.of(p.Endpoint)
	}
	return peers, err
}

// Close removes the interface and ends Run. The Apart must not be used any more.
func (a *Apart) Close() error { return errors.Join(a.Device.Close(), a.end()) }

// end ends what works for the device.
func (a *Apart) end() (err error) {
	if a.conn != nil {
		err = a.conn.Close()
	}
	close(a.unseen)
	a.watch.Wait()
	return err
}

// Own says to which addresses peers may send, at most 16; to none before.
func (a *Apart) Own(addrs []netip.Addr) error { return a.in.set(addrs) }

// Sweep removes the interfaces with a mark that a process made apart, and left
// when it was killed; it returns their names. That process must be gone.
func Sweep(mark string) (names []string, err error) {
	links, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("wg: list interfaces: %w", err)
	}
	for _, l := range links {
		if !marked(l, alias(mark)) {
			continue
		}
		if gone := netlink.LinkDel(l); gone != nil {
			err = errors.Join(err, fmt.Errorf("wg: remove %s: %w", l.Attrs().Name, gone))
			continue
		}
		names = append(names, l.Attrs().Name)
	}
	return names, err
}
