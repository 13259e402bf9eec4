package fogvm

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"

	"github.com/containers/gvisor-tap-vsock/pkg/services/dhcp"
	"github.com/containers/gvisor-tap-vsock/pkg/services/dns"
	"github.com/containers/gvisor-tap-vsock/pkg/tap"
	"github.com/containers/gvisor-tap-vsock/pkg/types"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
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
	link    *tap.LinkEndpoint
	wire    *wire
	forward *forwarder
	names   *resolver
	mesh    *shimMesh // takes what is for the mesh; nil: nobody does
	servers sync.WaitGroup
	serving sync.Mutex // held while frames may reach the stack
}

// nicID is the stack's one interface.
const nicID = 1

// gatewayMAC is the address of the stack's end of the wire.
const gatewayMAC = "5a:94:ef:e4:0c:dd"

// newNetwork assembles what virtualnetwork.New would, less its control API, its
// switch, the addresses that lead to the host's loopback, and its forwarders,
// which have no bounds; and unlike that it can be closed.
// What the guest opens leads to the public internet, and to the networks allowed.
func newNetwork(limits forwardLimits, allowed []netip.Prefix, log *slog.Logger) (*network, error) {
	n, err := assembleNetwork(newForwarder(limits, allowed, log))
	if err != nil {
		return nil, fmt.Errorf("virtual network: %w", err)
	}
	return n, nil
}

func assembleNetwork(forward *forwarder) (*network, error) {
	cfg := &types.Configuration{MTU: mtu, Subnet: guest.Subnet, GatewayIP: guest.Gateway, Protocol: types.QemuProtocol}
	gateway, subnet := netip.MustParseAddr(guest.Gateway), netip.MustParsePrefix(guest.Subnet)
	link, err := tap.NewLinkEndpoint(false, mtu, gatewayMAC, guest.Gateway, nil)
	if err != nil {
		return nil, err
	}
	n := &network{link: link, wire: &wire{}, forward: forward}
	link.Connect(n.wire)
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
	n.names = newResolver(n.forward.ctx)
	names, err := dns.NewWithUpstreamResolver(questions{datagrams, n.names},
		boundedListener{listener, make(chan struct{}, maxQuestions)}, nil, n.names)
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

// close ends the network, its NIC and every connection through it.
func (n *network) close() {
	n.forward.end()
	n.serving.Lock()
	defer n.serving.Unlock()
	n.stack.Destroy()
	n.forward.close()
	n.servers.Wait()
}

// serve moves the guest's frames until the NIC's socket or the network ends.
func (n *network) serve(ctx context.Context, nic net.Conn) error {
	n.serving.Lock()
	defer n.serving.Unlock()
	if err := n.forward.ctx.Err(); err != nil {
		return err
	}
	for _, until := range []context.Context{ctx, n.forward.ctx} {
		stop := context.AfterFunc(until, func() { nic.Close() })
		defer stop()
	}
	n.wire.plug(nic)
	defer n.wire.plug(nil)
	gateway := n.link.LinkAddress()
	frames := &filteredNIC{Conn: nic}
	for {
		frame, err := frames.next()
		if err != nil {
			return err
		}
		if n.mesh != nil && n.mesh.take(frame) {
			continue
		}
		to := header.Ethernet(frame)
		if a := to.DestinationAddress(); a != gateway && a != header.EthernetBroadcastAddress {
			continue // nobody else is here
		}
		pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(frame[header.EthernetMinimumSize:])})
		n.link.DeliverNetworkPacket(to.Type(), pkt)
		pkt.DecRef()
	}
}

// wire carries the stack's frames to the NIC, with their length before them as
// QEMU wants it. What is sent while none is plugged in is lost. It is ours
// because gvisor-tap-vsock's switch crashes when a NIC ends under load.
type wire struct {
	mu  sync.Mutex
	nic io.Writer
	buf []byte
}

func (w *wire) plug(nic io.Writer) {
	w.mu.Lock()
	w.nic = nic
	w.mu.Unlock()
}

// DeliverNetworkPacket is called by the stack with a whole frame.
func (w *wire) DeliverNetworkPacket(_ tcpip.NetworkProtocolNumber, pkt *stack.PacketBuffer) {
	frame := pkt.ToView()
	defer frame.Release()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.buf = append(binary.BigEndian.AppendUint32(w.buf[:0], uint32(frame.Size())), frame.AsSlice()...)
	w.write(w.buf)
}

// send sends a frame that has its length before it.
func (w *wire) send(frame []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.write(frame)
}

// write is with mu held.
func (w *wire) write(frame []byte) {
	if w.nic == nil {
		return
	}
	if _, err := w.nic.Write(frame); err != nil {
		w.nic = nil // the reader says why
	}
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
// could hurt the host with: malformed ones, and ones to addresses that mean
// nobody else. Where the others may lead is judged by the forwarder.
type filteredNIC struct {
	net.Conn
	r *bufio.Reader
}

// next is the next frame that may pass. The caller owns it.
func (f *filteredNIC) next() ([]byte, error) {
	if f.r == nil {
		f.r = bufio.NewReaderSize(f.Conn, 64<<10)
	}
	for {
		var size [4]byte
		if _, err := io.ReadFull(f.r, size[:]); err != nil {
			return nil, err
		}
		n := binary.BigEndian.Uint32(size[:])
		if n > maxNICFrame {
			return nil, fmt.Errorf("NIC frame of %d bytes", n)
		}
		frame := make([]byte, n)
		if _, err := io.ReadFull(f.r, frame); err != nil {
			return nil, err
		}
		if frameAllowed(frame) {
			return frame, nil
		}
	}
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
	return !a.IsLoopback() && a.As4()[0] != 0 &&
		(a.As4()[0] < 224 || a == netip.AddrFrom4([4]byte{255, 255, 255, 255}))
}
