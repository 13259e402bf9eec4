package fogvm

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"

	"github.com/formthefog/formation/fogvm/guest"
	"github.com/formthefog/formation/wg/wgtest"
)

func TestMayReach(t *testing.T) {
	host := prefixes("203.0.113.5/24", "198.51.100.7/32", "2001:db8::5/64")
	for _, tt := range []struct {
		to       string
		bare     bool // without allowance
		allowed  string
		allowing bool // with it
	}{
		{"93.184.216.34", true, "10.0.0.0/8", true},
		{"2606:2800:220:1::1", true, "10.0.0.0/8", true},
		{"10.1.2.3", false, "10.1.0.0/16", true},
		{"10.1.2.3", false, "10.2.0.0/16", false},
		{"10.128.4.5", false, "10.128.0.0/9", true}, // the mesh
		{"172.31.0.1", false, "172.31.0.1/32", true},
		{"172.32.0.1", true, "10.0.0.0/8", true},
		{"192.168.1.1", false, "0.0.0.0/0", true},
		{"100.64.0.1", false, "100.64.0.0/10", true},
		{"100.128.0.1", true, "10.0.0.0/8", true},
		{"::ffff:10.1.2.3", false, "10.1.0.0/16", true},
		{"::ffff:93.184.216.34", true, "10.0.0.0/8", true},

		{"169.254.169.254", false, "169.254.169.254/32", true}, // metadata of most clouds
		{"168.63.129.16", false, "168.63.129.16/32", true},
		{"100.100.100.200", false, "100.100.100.200/32", true},
		{"192.0.0.192", false, "192.0.0.192/32", true},
		{"fd00:ec2::254", false, "fd00:ec2::254/128", true},

		{"203.0.113.5", false, "203.0.113.5/32", true}, // the host
		{"203.0.113.77", false, "203.0.113.5/32", false},
		{"198.51.100.7", false, "198.51.100.0/24", true},
		{"198.51.100.8", true, "198.51.100.7/32", true},
		{"2001:db8::9", false, "2001:db8::/64", true},
		{"2001:db8:0:1::9", true, "2001:db8::/64", true},

		{"fe80::1%eth0", false, "fe80::/10", true},
		{"fd12:3456::1", false, "fd12:3456::/48", true},
		{"64:ff9b::a01:203", false, "10.0.0.0/8", false}, // 10.1.2.3 by NAT64,
		{"2002:a01:203::1", false, "10.0.0.0/8", false},  // by 6to4
		{"2001:0:1::1", false, "10.0.0.0/8", false},      // and by Teredo

		{"127.0.0.1", false, "0.0.0.0/0", false},
		{"::ffff:127.0.0.1", false, "0.0.0.0/0", false},
		{"::1", false, "::/0", false},
		{"0.0.0.0", false, "0.0.0.0/0", false},
		{"198.18.0.1", false, "0.0.0.0/0", false}, // what WireGuard in the guest sends to
		{"224.0.0.251", false, "0.0.0.0/0", false},
		{"255.255.255.255", false, "0.0.0.0/0", false},
	} {
		to := netip.MustParseAddr(tt.to)
		if got := mayReach(to, nil, host); got != tt.bare {
			t.Errorf("%s: %v, want %v", to, got, tt.bare)
		}
		if got := mayReach(to, prefixes(tt.allowed), host); got != tt.allowing {
			t.Errorf("%s with %s allowed: %v, want %v", to, tt.allowed, got, tt.allowing)
		}
	}
	if mayReach(netip.Addr{}, prefixes("0.0.0.0/0"), nil) {
		t.Error("no address at all is reached")
	}
}

// tenant is a guest of a host that is at 203.0.113.5/24, in a network namespace
// with a machine on the same wire. Whatever there is at an address echoes.
type tenant struct {
	*network
	t     *testing.T
	ns    *wgtest.Namespace
	stack *stack.Stack
	log   bytes.Buffer
}

func newTenant(t *testing.T, allowed ...string) *tenant {
	t.Helper()
	x := &tenant{t: t, ns: wgtest.NewNamespace(t, "host")}
	lan := wgtest.NewNamespace(t, "lan")
	wgtest.Link(x.ns, "eth0", "203.0.113.5/24", lan, "eth0", "203.0.113.9/24")
	x.ns.Run("ip", "route", "add", "default", "via", "203.0.113.9")
	// The machine on the wire is every address beyond it, too.
	lan.Run("ip", "route", "add", "local", "default", "dev", "lo")
	// An address that is the host's by a route alone.
	x.ns.Run("ip", "route", "add", "local", "93.184.216.0/24", "dev", "lo")
	listen(t, x.ns)
	listen(t, lan)
	var err error
	if x.network, err = newNetwork(defaultLimits, prefixes(allowed...), slog.New(slog.NewTextHandler(&x.log, nil))); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(x.close)
	x.forward.dial = func(ctx context.Context, network, address string) (c net.Conn, err error) {
		err = x.ns.Do(func() (err error) {
			c, err = (&net.Dialer{}).DialContext(ctx, network, address)
			return err
		})
		return c, err
	}
	x.forward.host = func() (all []netip.Prefix, err error) {
		err = x.ns.Do(func() (err error) {
			all, err = hostNetworks()
			return err
		})
		return all, err
	}
	x.stack = guestOn(t, x.network)
	return x
}

const echoPort = 3002 // the API's, as it happens

// listen echoes on every address of a namespace, by TCP and UDP.
func listen(t *testing.T, ns *wgtest.Namespace) {
	t.Helper()
	err := ns.Do(func() error {
		l, err := net.Listen("tcp4", fmt.Sprintf(":%d", echoPort))
		if err != nil {
			return err
		}
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					defer c.Close()
					_, _ = io.Copy(c, c)
				}()
			}
		}()
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// reaches says whether the guest gets an answer at an address. What it may not
// reach is refused at once.
func (x *tenant) reaches(address string) bool {
	x.t.Helper()
	ctx, cancel := context.WithTimeout(x.t.Context(), 20*time.Second)
	defer cancel()
	to := tcpip.FullAddress{NIC: nicID, Addr: tcpip.AddrFrom4(netip.MustParseAddr(address).As4()), Port: echoPort}
	c, err := gonet.DialContextTCP(ctx, x.stack, to, ipv4.ProtocolNumber)
	if ctx.Err() != nil {
		x.t.Fatalf("%s: neither refused nor open", address)
	}
	if err != nil {
		return false
	}
	defer c.Close()
	if !echoed(c, 20*time.Second) {
		x.t.Fatalf("%s: open, and no answer", address)
	}
	return true
}

func (x *tenant) mustNotReach(addresses ...string) {
	x.t.Helper()
	for _, a := range addresses {
		if x.reaches(a) {
			x.t.Errorf("the guest reaches %s", a)
		}
	}
	if !x.reaches("8.8.8.8") {
		x.t.Error("the guest does not reach the internet")
	}
}

// TestGuestReachesNoHost: the host's addresses, and so its API, metrics and all
// else that listens there.
func TestGuestReachesNoHost(t *testing.T) {
	x := newTenant(t)
	x.mustNotReach("203.0.113.5", "93.184.216.34")
	if !strings.Contains(x.log.String(), "may not reach this") {
		t.Errorf("the log does not say so: %q", x.log.String())
	}
}

func TestGuestReachesNoNeighbour(t *testing.T) {
	newTenant(t).mustNotReach("203.0.113.9", "192.168.1.1", "10.0.0.1", "172.16.0.1", "100.64.0.1")
}

func TestGuestReachesNoMetadata(t *testing.T) {
	newTenant(t).mustNotReach("169.254.169.254", "168.63.129.16", "100.100.100.200", "192.0.0.192")
}

func TestGuestReachesNoMesh(t *testing.T) {
	newTenant(t).mustNotReach("10.128.0.53", "10.200.3.4", "198.18.0.1")
}

// TestOperatorAllows: what is allowed is reached, and nothing beside it.
func TestOperatorAllows(t *testing.T) {
	x := newTenant(t, "203.0.113.9/32", "169.254.169.254/32")
	if !x.reaches("203.0.113.9") || !x.reaches("169.254.169.254") {
		t.Error("what is allowed is not reached")
	}
	x.mustNotReach("203.0.113.5", "192.168.1.1", "169.254.169.253")
}

// syn sends the guest's first packet to an address by hand: a kernel would not
// send one to itself. It returns the flags of the answer.
func syn(t *testing.T, n *network, to string) header.TCPFlags {
	t.Helper()
	host, nic := net.Pipe()
	served := make(chan error, 1)
	go func() { served <- n.serve(context.Background(), host) }()
	defer func() {
		nic.Close()
		<-served
	}()
	frame := make([]byte, 14+20+20)
	gateway, err := net.ParseMAC(gatewayMAC)
	if err != nil {
		t.Fatal(err)
	}
	header.Ethernet(frame).Encode(&header.EthernetFields{SrcAddr: tcpip.LinkAddress(guestMAC[:]), DstAddr: tcpip.LinkAddress(gateway), Type: ipv4.ProtocolNumber})
	src, dst := tcpip.AddrFrom4(guestAddress.As4()), tcpip.AddrFrom4(netip.MustParseAddr(to).As4())
	packet := header.IPv4(frame[14:])
	packet.Encode(&header.IPv4Fields{TotalLength: 40, TTL: 64, Protocol: uint8(tcp.ProtocolNumber), SrcAddr: src, DstAddr: dst})
	packet.SetChecksum(^packet.CalculateChecksum())
	segment := header.TCP(frame[34:])
	segment.Encode(&header.TCPFields{SrcPort: 1, DstPort: echoPort, DataOffset: 20, Flags: header.TCPFlagSyn, WindowSize: 1000})
	segment.SetChecksum(^segment.CalculateChecksum(header.PseudoHeaderChecksum(tcp.ProtocolNumber, src, dst, 20)))
	if err := nic.SetDeadline(time.Now().Add(2 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := nic.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(frame))), frame...)); err != nil {
		t.Fatal(err)
	}
	for {
		var size [4]byte
		if _, err := io.ReadFull(nic, size[:]); err != nil {
			return 0
		}
		answer := make([]byte, binary.BigEndian.Uint32(size[:]))
		if _, err := io.ReadFull(nic, answer); err != nil {
			t.Fatal(err)
		}
		if len(answer) >= 54 && header.Ethernet(answer).Type() == ipv4.ProtocolNumber && answer[23] == uint8(tcp.ProtocolNumber) {
			return header.TCP(answer[34:]).Flags()
		}
		if len(answer) >= 42 && header.Ethernet(answer).Type() == header.ARPProtocolNumber && header.ARP(answer[14:]).Op() == header.ARPRequest {
			if err := answerARP(nic, answer[14:]); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// answerARP says that the guest is who is asked for.
func answerARP(nic net.Conn, question header.ARP) error {
	reply := make([]byte, 14+28)
	header.Ethernet(reply).Encode(&header.EthernetFields{SrcAddr: tcpip.LinkAddress(guestMAC[:]), DstAddr: tcpip.LinkAddress(question.HardwareAddressSender()), Type: header.ARPProtocolNumber})
	a := header.ARP(reply[14:])
	a.SetIPv4OverEthernet()
	a.SetOp(header.ARPReply)
	copy(a.HardwareAddressSender(), guestMAC[:])
	copy(a.ProtocolAddressSender(), question.ProtocolAddressTarget())
	copy(a.HardwareAddressTarget(), question.HardwareAddressSender())
	copy(a.ProtocolAddressTarget(), question.ProtocolAddressSender())
	_, err := nic.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(reply))), reply...))
	return err
}

// TestGuestReachesNoOtherGuest: every guest has the same address, on a network of
// its own; to name another's leads nowhere, whatever the host has there.
func TestGuestReachesNoOtherGuest(t *testing.T) {
	x := newTenant(t)
	x.ns.Run("ip", "address", "add", guest.Address+"/32", "dev", "lo")
	x.ns.Run("ip", "address", "add", guest.Gateway+"/32", "dev", "lo")
	x.mustNotReach(guest.Gateway, "192.168.127.3")

	other, err := newNetwork(defaultLimits, nil, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer other.close()
	l, err := gonet.ListenTCP(guestOn(t, other), tcpip.FullAddress{Port: echoPort}, ipv4.ProtocolNumber)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if c, err := other.dial(t.Context(), echoPort); err != nil {
		t.Fatalf("the other guest does not answer its own host: %v", err)
	} else {
		c.Close()
	}
	spoof, err := newNetwork(defaultLimits, nil, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer spoof.close()
	spoof.forward.dial, spoof.forward.host = x.forward.dial, x.forward.host
	if got := syn(t, spoof, guest.Address); got&header.TCPFlagSyn != 0 {
		t.Errorf("to its own address from outside: %v", got)
	}
	if got := syn(t, spoof, "8.8.8.8"); got != 0 && got&header.TCPFlagSyn == 0 {
		t.Errorf("the internet answers %v", got)
	}
}

// TestGuestReachesNoLoopback: neither with a packet made by hand, nor allowed.
func TestGuestReachesNoLoopback(t *testing.T) {
	x := newTenant(t, "0.0.0.0/0")
	if !x.reaches("203.0.113.9") {
		t.Fatal("all is allowed, and not reached")
	}
	for _, a := range []string{"127.0.0.1", "127.3.2.1", "0.0.0.0"} {
		n, err := newNetwork(defaultLimits, prefixes("0.0.0.0/0"), slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		n.forward.dial, n.forward.host = x.forward.dial, x.forward.host
		if got := syn(t, n, a); got&header.TCPFlagSyn != 0 {
			t.Errorf("%s answers %v", a, got)
		}
		n.close()
	}
}

// TestGuestDatagramsAreJudged: UDP as TCP.
func TestGuestDatagramsAreJudged(t *testing.T) {
	n, s := guestStack(t, forwardLimits{tcp: 1, udp: 8, udpIdle: time.Minute}, echoes(t))
	defer n.close()
	for address, want := range map[string]bool{"8.8.8.8": true, "192.168.1.1": false, "169.254.169.254": false, "198.18.0.1": false} {
		to := tcpip.FullAddress{NIC: nicID, Addr: tcpip.AddrFrom4(netip.MustParseAddr(address).As4()), Port: 53}
		c, err := gonet.DialUDP(s, nil, &to, ipv4.ProtocolNumber)
		if err != nil {
			t.Fatal(err)
		}
		wait := 10 * time.Second
		if !want {
			wait = 200 * time.Millisecond
		}
		if got := echoed(c, wait); got != want {
			t.Errorf("%s: %v, want %v", address, got, want)
		}
		c.Close()
	}
}
