package wgtest

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/tun"
	"golang.zx2c4.com/wireguard/tun/netstack"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/formthefog/formation/wg"
	"github.com/formthefog/formation/wg/embedded"
)

// Station is a device over a network stack of its own, on a [Wire].
type Station struct {
	*embedded.Device
	Net     *netstack.Net
	Public  wg.Key
	Address netip.Addr // in the mesh: fd00::N
	At      netip.AddrPort
	Bind    *Bind
}

// NewStation makes station n, which ends with the test. Its interface has that
// name.
func NewStation(t *testing.T, wire *Wire, n byte, name string) *Station {
	t.Helper()
	s := &Station{
		Address: netip.AddrFrom16([16]byte{0: 0xfd, 15: n}),
		At:      netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, n}), 51820),
	}
	private, err := wgtypes.GeneratePrivateKey()
	if err != nil {
		t.Fatal(err)
	}
	s.Public = private.PublicKey()
	device, stack, err := netstack.CreateNetTUN([]netip.Addr{s.Address}, nil, 1280)
	if err != nil {
		t.Fatal(err)
	}
	s.Net, s.Bind = stack, wire.Bind(s.At)
	if s.Device, err = embedded.Open(embedded.Config{TUN: named{device, name}, Bind: s.Bind, Key: private}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

type named struct {
	tun.Device
	name string
}

func (n named) Name() (string, error) { return n.name, nil }

// Knows makes others peers of s, at those addresses of the wire or, with none,
// to come by themselves.
func (s *Station) Knows(t *testing.T, other *Station, at ...netip.AddrPort) {
	t.Helper()
	c := wgtypes.PeerConfig{PublicKey: other.Public, ReplaceAllowedIPs: true, AllowedIPs: Routes(other.Address)}
	for _, a := range at {
		c.Endpoint = net.UDPAddrFromAddrPort(a)
	}
	if err := s.Configure([]wgtypes.PeerConfig{c}); err != nil {
		t.Fatal(err)
	}
}

// Echo sends a line to the other and back, over TCP.
func (s *Station) Echo(t *testing.T, other *Station) {
	t.Helper()
	Echo(t, s.Net, other.Net, other.Address, []byte("over the mesh"))
}

// Echo sends text from one stack to an address of another and back, over TCP; it
// returns when it is there.
func Echo(t *testing.T, from, to *netstack.Net, address netip.Addr, text []byte) {
	t.Helper()
	l, err := to.ListenTCPAddrPort(netip.AddrPortFrom(address, 0))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		if c, err := l.Accept(); err == nil {
			_, _ = io.Copy(c, c) // the other end judges
			c.Close()
		}
	}()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c, err := from.DialContextTCP(ctx, l.Addr().(*net.TCPAddr))
	if err != nil {
		t.Fatal("dial over the mesh: ", err)
	}
	defer c.Close()
	go func() { _, _ = c.Write(text) }() // what comes back shows it
	got := make([]byte, len(text))
	if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, text) {
		t.Fatalf("echo of %d bytes: %v", len(text), err)
	}
}
