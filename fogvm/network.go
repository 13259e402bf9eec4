package fogvm

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"

	"github.com/containers/gvisor-tap-vsock/pkg/services/dhcp"
	"github.com/containers/gvisor-tap-vsock/pkg/services/dns"
	"github.com/containers/gvisor-tap-vsock/pkg/tap"
	"github.com/containers/gvisor-tap-vsock/pkg/types"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/network/arp"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"

	"github.com/formthefog/formation/fogvm/guest"
)

// network is a VM's user-mode network: gateway, DNS and outgoing NAT for the
// one guest on it, and connections from the host into the guest.
type network struct {
	stack   *stack.Stack
	wire    *tap.Switch
	forward *forwarder
	servers sync.WaitGroup
}

// nicID is the stack's one interface.
const nicID = 1

// gatewayMAC is the address of the stack's end of the wire.
const gatewayMAC = "5a:94:ef:e4:0c:dd"

// newNetwork assembles what virtualnetwork.New would, less its control API, the
// addresses that lead to the host's loopback, and its forwarders, which have no
// bounds; and unlike that it can be closed.
func newNetwork(limits forwardLimits) (*network, error) {
	n, err := assembleNetwork(limits)
	if err != nil {
		return nil, fmt.Errorf("virtual network: %w", err)
	}
	return n, nil
}

func assembleNetwork(limits forwardLimits) (*network, error) {
	cfg := &types.Configuration{MTU: mtu, Subnet: guest.Subnet, GatewayIP: guest.Gateway, Protocol: types.QemuProtocol}
	gateway, subnet := netip.MustParseAddr(guest.Gateway), netip.MustParsePrefix(guest.Subnet)
	link, err := tap.NewLinkEndpoint(false, mtu, gatewayMAC, guest.Gateway, nil)
	if err != nil {
		return nil, err
	}
	n := &network{wire: tap.NewSwitch(false), forward: newForwarder(limits)}
	link.Connect(n.wire)
	n.wire.Connect(link)
	n.stack = stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, arp.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4},
	})
	if err := n.configure(link, gateway, subnet); err != nil {
		n.close()
		return nil, err
	}
	if err := n.startServers(cfg, gateway, subnet); err != nil {
		n.close()
		return nil, err
	}
	return n, nil
}

func (n *network) configure(link stack.LinkEndpoint, gateway netip.Addr, subnet netip.Prefix) error {
	if err := n.stack.CreateNIC(nicID, link); err != nil {
		return errors.New(err.String())
	}
	address := tcpip.ProtocolAddress{Protocol: ipv4.ProtocolNumber, AddressWithPrefix: tcpip.AddrFrom4(gateway.As4()).WithPrefix()}
	if err := n.stack.AddProtocolAddress(nicID, address, stack.AddressProperties{}); err != nil {
		return errors.New(err.String())
	}
	// It answers for every address there is.
	if err := n.stack.SetSpoofing(nicID, true); err != nil {
		return errors.New(err.String())
	}
	if err := n.stack.SetPromiscuousMode(nicID, true); err != nil {
		return errors.New(err.String())
	}
	route, err := tcpip.NewSubnet(tcpip.AddrFrom4(subnet.Masked().Addr().As4()), tcpip.MaskFromBytes(net.CIDRMask(subnet.Bits(), 32)))
	if err != nil {
		return err
	}
	n.stack.SetRouteTable([]tcpip.Route{{Destination: route, NIC: nicID}})
	n.forward.attach(n.stack)
	return nil
}

// startServers runs DNS and DHCP on the gateway; they end with the stack.
func (n *network) startServers(cfg *types.Configuration, gateway netip.Addr, subnet netip.Prefix) error {
	at := tcpip.FullAddress{NIC: nicID, Addr: tcpip.AddrFrom4(gateway.As4()), Port: 53}
	datagrams, err := gonet.DialUDP(n.stack, &at, nil, ipv4.ProtocolNumber)
	if err != nil {
		return err
	}
	listener, err := gonet.ListenTCP(n.stack, at, ipv4.ProtocolNumber)
	if err != nil {
		return err
	}
	names, err := dns.New(datagrams, listener, nil)
	if err != nil {
		return err
	}
	pool := tap.NewIPPool(&net.IPNet{IP: subnet.Masked().Addr().AsSlice(), Mask: net.CIDRMask(subnet.Bits(), 32)})
	pool.Reserve(gateway.AsSlice(), gatewayMAC)
	pool.Reserve(net.ParseIP(guest.Address), macAddress)
	leases, err := dhcp.New(cfg, n.stack, pool)
	if err != nil {
		return err
	}
	for _, serve := range []func() error{names.Serve, names.ServeTCP, leases.Serve} {
		// The one error is that the stack has been closed.
		n.servers.Go(func() { _ = serve() })
	}
	return nil
}

// close ends the network and every connection through it.
func (n *network) close() {
	n.forward.end()
	n.stack.Destroy()
	n.forward.close()
	n.servers.Wait()
}

// serve moves the guest's frames until the NIC's socket ends.
func (n *network) serve(ctx context.Context, nic net.Conn) error {
	return n.wire.Accept(ctx, &filteredNIC{Conn: nic}, types.QemuProtocol)
}

// dial opens a TCP connection to a port of the guest.
func (n *network) dial(ctx context.Context, port int) (net.Conn, error) {
	if port < 1 || port > 65535 {
		return nil, fmt.Errorf("port %d: want 1 to 65535", port)
	}
	to := tcpip.FullAddress{NIC: nicID, Addr: tcpip.AddrFrom4(guestAddress.As4()), Port: uint16(port)}
	c, err := gonet.DialContextTCP(ctx, n.stack, to, ipv4.ProtocolNumber)
	if err != nil {
		return nil, fmt.Errorf("guest port %d: %w", port, err)
	}
	return c, nil
}

// mtu of the guest's network.
const mtu = 1500

// maxNICFrame is more than any frame of a 1500-byte network, offloads included.
const maxNICFrame = 128 << 10

// filteredNIC is the frame stream from QEMU without the frames a hostile guest
// could hurt the host with: malformed ones, which the switch would panic on, and
// ones to addresses that mean the host itself, because the switch dials whatever
// address a guest names from the host.
type filteredNIC struct {
	net.Conn
	mu      sync.Mutex // Read is called by one goroutine; the lock says so cheaply
	pending []byte
}

// Read returns whole frames with their length prefix, as QEMU sends them.
func (f *filteredNIC) Read(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for len(f.pending) == 0 {
		var size [4]byte
		if _, err := io.ReadFull(f.Conn, size[:]); err != nil {
			return 0, err
		}
		n := binary.BigEndian.Uint32(size[:])
		if n > maxNICFrame {
			return 0, fmt.Errorf("NIC frame of %d bytes", n)
		}
		frame := make([]byte, 4+n)
		copy(frame, size[:])
		if _, err := io.ReadFull(f.Conn, frame[4:]); err != nil {
			return 0, err
		}
		if frameAllowed(frame[4:]) {
			f.pending = frame
		}
	}
	n := copy(p, f.pending)
	f.pending = f.pending[n:]
	return n, nil
}

var guestMAC = func() [6]byte {
	a, err := net.ParseMAC(macAddress)
	if err != nil {
		panic(err) // a constant of ours
	}
	return [6]byte(a)
}()

// frameAllowed judges one Ethernet frame from the guest. Only ARP and IPv4
// exist on this network, and only the guest's own addresses: the switch and the
// stack remember every other they see.
func frameAllowed(frame []byte) bool {
	const ethernet, ipv4Header, arp = 14, 20, 28
	if len(frame) < ethernet || len(frame) > ethernet+mtu || [6]byte(frame[6:12]) != guestMAC {
		return false
	}
	switch binary.BigEndian.Uint16(frame[12:]) {
	case 0x0806:
		return len(frame) >= ethernet+arp
	case 0x0800:
		packet := frame[ethernet:]
		if len(packet) < ipv4Header || packet[0]>>4 != 4 {
			return false
		}
		return sourceAllowed(netip.AddrFrom4([4]byte(packet[12:16]))) && destinationAllowed(netip.AddrFrom4([4]byte(packet[16:20])))
	}
	return false
}

// sourceAllowed: the guest's address, or none yet (DHCP).
func sourceAllowed(a netip.Addr) bool { return a == guestAddress || a.IsUnspecified() }

var guestAddress = netip.MustParseAddr(guest.Address)

func destinationAllowed(a netip.Addr) bool {
	return !a.IsLoopback() && !a.IsUnspecified() && !a.IsLinkLocalUnicast() && a.As4()[0] != 0 &&
		(a.As4()[0] < 224 || a == netip.AddrFrom4([4]byte{255, 255, 255, 255}))
}
