package fogvm

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"sync"

	"github.com/containers/gvisor-tap-vsock/pkg/types"
	"github.com/containers/gvisor-tap-vsock/pkg/virtualnetwork"

	"github.com/formthefog/formation/fogvm/guest"
)

// network is a VM's user-mode network: gateway, DNS and outgoing NAT for the
// one guest on it, and connections from the host into the guest.
type network struct {
	vn *virtualnetwork.VirtualNetwork
}

func newNetwork() (*network, error) {
	// No NAT entries and no virtual gateway addresses: they would lead to the
	// host's loopback.
	vn, err := virtualnetwork.New(&types.Configuration{
		MTU: 1500, Subnet: guest.Subnet, GatewayIP: guest.Gateway, GatewayMacAddress: "5a:94:ef:e4:0c:dd",
		DHCPStaticLeases: map[string]string{guest.Address: macAddress},
		Protocol:         types.QemuProtocol,
	})
	if err != nil {
		return nil, fmt.Errorf("virtual network: %w", err)
	}
	return &network{vn: vn}, nil
}

// serve moves the guest's frames until the NIC's socket ends.
func (n *network) serve(ctx context.Context, nic net.Conn) error {
	return n.vn.AcceptQemu(ctx, &filteredNIC{Conn: nic})
}

// dial opens a TCP connection to a port of the guest.
func (n *network) dial(ctx context.Context, port int) (net.Conn, error) {
	if port < 1 || port > 65535 {
		return nil, fmt.Errorf("port %d: want 1 to 65535", port)
	}
	c, err := n.vn.DialContextTCP(ctx, net.JoinHostPort(guest.Address, strconv.Itoa(port)))
	if err != nil {
		return nil, fmt.Errorf("guest port %d: %w", port, err)
	}
	return c, nil
}

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

// frameAllowed judges one Ethernet frame from the guest. Only ARP and IPv4
// exist on this network.
func frameAllowed(frame []byte) bool {
	const ethernet, ipv4Header, arp = 14, 20, 28
	if len(frame) < ethernet {
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
		return destinationAllowed(netip.AddrFrom4([4]byte(packet[16:20])))
	}
	return false
}

func destinationAllowed(a netip.Addr) bool {
	return !a.IsLoopback() && !a.IsUnspecified() && !a.IsLinkLocalUnicast() && a.As4()[0] != 0 &&
		(a.As4()[0] < 224 || a == netip.AddrFrom4([4]byte{255, 255, 255, 255}))
}
