package fogvm

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/containers/gvisor-tap-vsock/pkg/tap"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/arp"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"

	"github.com/formthefog/formation/fogvm/guest"
)

// nicWriter is a guest's end of the wire: frames as QEMU sends them.
type nicWriter struct {
	mu sync.Mutex
	w  io.Writer
}

func (n *nicWriter) DeliverNetworkPacket(_ tcpip.NetworkProtocolNumber, pkt *stack.PacketBuffer) {
	frame := pkt.ToView().AsSlice()
	n.mu.Lock()
	defer n.mu.Unlock()
	// The wire's end is the test's.
	_, _ = n.w.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(frame))), frame...))
}

// guestStack is a network with a guest on it that has a TCP/IP stack, and whose
// outgoing connections all lead to the loopback addresses given.
func guestStack(t *testing.T, limits forwardLimits, outside map[string]string) (*network, *stack.Stack) {
	t.Helper()
	n, err := newNetwork(limits, nil, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	n.forward.dial = func(ctx context.Context, network, _ string) (net.Conn, error) {
		if outside[network] == "" {
			return nil, fmt.Errorf("no %s outside", network)
		}
		return (&net.Dialer{}).DialContext(ctx, network, outside[network])
	}
	n.forward.host = noHost
	return n, guestOn(t, n)
}

// noHost: the tests' machine may have any address.
func noHost() ([]netip.Prefix, error) { return nil, nil }

// guestOn is the TCP/IP stack of a guest on n.
func guestOn(t *testing.T, n *network) *stack.Stack {
	t.Helper()
	host, nic := net.Pipe()
	served := make(chan error, 1)
	go func() { served <- n.serve(context.Background(), host) }()

	s := stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, arp.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol},
	})
	link, err := tap.NewLinkEndpoint(false, mtu, macAddress, guest.Address, nil)
	if err != nil {
		t.Fatal(err)
	}
	queue := make(chan []byte, 1000) // a stack must not wait for the other's
	link.Connect(&nicWriter{w: writerFunc(func(p []byte) (int, error) {
		select {
		case queue <- p:
		default:
		}
		return len(p), nil
	})})
	if err := s.CreateNIC(nicID, link); err != nil {
		t.Fatal(err)
	}
	address := tcpip.ProtocolAddress{Protocol: ipv4.ProtocolNumber, AddressWithPrefix: tcpip.AddressWithPrefix{Address: tcpip.AddrFrom4(guestAddress.As4()), PrefixLen: 24}}
	if err := s.AddProtocolAddress(nicID, address, stack.AddressProperties{}); err != nil {
		t.Fatal(err)
	}
	s.SetRouteTable([]tcpip.Route{{Destination: header.IPv4EmptySubnet, NIC: nicID, Gateway: tcpip.AddrFrom4Slice(net.ParseIP(guest.Gateway).To4())}})
	over, read := make(chan struct{}), make(chan struct{})
	go func() {
		for {
			select {
			case p := <-queue:
				// The stack goes on when its wire is cut.
				_, _ = nic.Write(p)
			case <-over:
				return
			}
		}
	}()
	go func() {
		defer close(read)
		for {
			var size [4]byte
			if _, err := io.ReadFull(nic, size[:]); err != nil {
				return
			}
			frame := make([]byte, binary.BigEndian.Uint32(size[:]))
			if _, err := io.ReadFull(nic, frame); err != nil {
				return
			}
			kind := header.Ethernet(frame).Type()
			pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(frame[header.EthernetMinimumSize:])})
			link.DeliverNetworkPacket(kind, pkt)
			pkt.DecRef()
		}
	}()
	t.Cleanup(func() {
		nic.Close()
		<-served
		<-read
		s.Destroy()
		close(over)
	})
	return s
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// echoes answers on loopback, by TCP and UDP.
func echoes(t *testing.T) map[string]string {
	t.Helper()
	datagrams, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		datagrams.Close()
		listener.Close()
	})
	go func() {
		buf := make([]byte, 2048)
		for {
			n, from, err := datagrams.ReadFrom(buf)
			if err != nil {
				return
			}
			if _, err := datagrams.WriteTo(buf[:n], from); err != nil {
				return
			}
		}
	}()
	go func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = io.Copy(c, c)
			}()
		}
	}()
	return map[string]string{"udp": datagrams.LocalAddr().String(), "tcp": listener.Addr().String()}
}

// somewhere is an address of the documentation's network: nothing leaves the
// host for it.
func somewhere(port uint16) tcpip.FullAddress {
	return tcpip.FullAddress{NIC: nicID, Addr: tcpip.AddrFrom4([4]byte{192, 0, 2, 7}), Port: port}
}

func echoed(c net.Conn, wait time.Duration) bool {
	if c.SetDeadline(time.Now().Add(wait)) != nil {
		return false
	}
	if _, err := c.Write([]byte("ping")); err != nil {
		return false
	}
	buf := make([]byte, 4)
	_, err := io.ReadFull(c, buf)
	return err == nil && string(buf) == "ping"
}

// TestUDPFlowsAreBounded: what goes beyond the limit is dropped until an older
// flow has been idle, and those that are in use stay.
func TestUDPFlowsAreBounded(t *testing.T) {
	n, s := guestStack(t, forwardLimits{tcp: 1, udp: 3, udpIdle: time.Second}, echoes(t))
	defer n.close()
	var flows []net.Conn
	for port := range uint16(4) {
		to := somewhere(1000 + port)
		c, err := gonet.DialUDP(s, nil, &to, ipv4.ProtocolNumber)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		flows = append(flows, c)
	}
	for i, c := range flows[:3] {
		if !echoed(c, 5*time.Second) {
			t.Fatalf("flow %d: no answer", i)
		}
	}
	if echoed(flows[3], 100*time.Millisecond) {
		t.Error("a flow over the limit")
	}
	eventually(t, 10*time.Second, "room for another flow", func() bool {
		if !echoed(flows[0], time.Second) {
			t.Fatal("a flow in use has ended")
		}
		return echoed(flows[3], 100*time.Millisecond)
	})
}

// TestTCPConnectionsAreBounded: one over the limit is refused until another ends.
func TestTCPConnectionsAreBounded(t *testing.T) {
	n, s := guestStack(t, forwardLimits{tcp: 2, udp: 1, udpIdle: time.Second}, echoes(t))
	defer n.close()
	open := func() (net.Conn, error) {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		return gonet.DialContextTCP(ctx, s, somewhere(80), ipv4.ProtocolNumber)
	}
	var conns []net.Conn
	for range 2 {
		c, err := open()
		if err != nil {
			t.Fatal(err)
		}
		if !echoed(c, 5*time.Second) {
			t.Fatal("no answer")
		}
		conns = append(conns, c)
	}
	if c, err := open(); err == nil {
		c.Close()
		t.Error("a connection over the limit")
	}
	if !echoed(conns[1], 5*time.Second) {
		t.Error("the refusal hurt another connection")
	}
	conns[0].Close()
	eventually(t, 10*time.Second, "room for another connection", func() bool {
		c, err := open()
		if err != nil {
			return false
		}
		defer c.Close()
		return echoed(c, 5*time.Second)
	})
}

// TestNetworkCloses: nothing of a network is left after it, whatever is open.
func TestNetworkCloses(t *testing.T) {
	outside := echoes(t)
	before := runtime.NumGoroutine()
	for range 3 {
		t.Run("a run", func(t *testing.T) {
			n, s := guestStack(t, forwardLimits{tcp: 4, udp: 4, udpIdle: time.Hour}, outside)
			to := somewhere(9)
			u, err := gonet.DialUDP(s, nil, &to, ipv4.ProtocolNumber)
			if err != nil {
				t.Fatal(err)
			}
			defer u.Close()
			c, err := gonet.DialContextTCP(t.Context(), s, somewhere(80), ipv4.ProtocolNumber)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if !echoed(u, 5*time.Second) || !echoed(c, 5*time.Second) {
				t.Fatal("no answer")
			}
			closed := make(chan struct{})
			go func() {
				defer close(closed)
				n.close()
			}()
			select {
			case <-closed:
			case <-time.After(10 * time.Second):
				t.Fatal("close waits")
			}
		})
	}
	eventually(t, 10*time.Second, "no goroutine left", func() bool { return runtime.NumGoroutine() <= before })
}

// TestHalfOpenCloses: a guest that opens a connection and says nothing more does
// not keep its network.
func TestHalfOpenCloses(t *testing.T) {
	n, err := newNetwork(forwardLimits{tcp: 2, udp: 1, udpIdle: time.Hour}, nil, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	outside, before := echoes(t), len(n.stack.RegisteredEndpoints())
	n.forward.dial = func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, outside[network])
	}
	n.forward.host = noHost
	host, nic := net.Pipe()
	served := make(chan error, 1)
	go func() { served <- n.serve(context.Background(), host) }()
	go func() { _, _ = io.Copy(io.Discard, nic) }()
	frame := make([]byte, 14+20+20)
	gateway, err := net.ParseMAC(gatewayMAC)
	if err != nil {
		t.Fatal(err)
	}
	header.Ethernet(frame).Encode(&header.EthernetFields{SrcAddr: tcpip.LinkAddress(guestMAC[:]), DstAddr: tcpip.LinkAddress(gateway), Type: ipv4.ProtocolNumber})
	packet := header.IPv4(frame[14:])
	packet.Encode(&header.IPv4Fields{TotalLength: 40, TTL: 64, Protocol: uint8(tcp.ProtocolNumber), SrcAddr: tcpip.AddrFrom4(guestAddress.As4()), DstAddr: somewhere(0).Addr})
	packet.SetChecksum(^packet.CalculateChecksum())
	header.TCP(frame[34:]).Encode(&header.TCPFields{SrcPort: 1, DstPort: 80, DataOffset: 20, Flags: header.TCPFlagSyn, WindowSize: 1000})
	if _, err := nic.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(frame))), frame...)); err != nil {
		t.Fatal(err)
	}
	eventually(t, 5*time.Second, "the connection opening", func() bool { return len(n.stack.RegisteredEndpoints()) > before })
	nic.Close()
	<-served
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		n.close()
	}()
	select {
	case <-closed:
	case <-time.After(10 * time.Second):
		t.Fatal("close waits")
	}
}
