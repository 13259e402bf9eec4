//go:build linux

package kernel

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/formthefog/formation/wg"
	"github.com/formthefog/formation/wg/wgtest"
)

func key(t *testing.T) wg.Key {
	t.Helper()
	k, err := wgtypes.GeneratePrivateKey()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// place is where a test makes interfaces.
type place interface{ Do(func() error) error }

// here is a machine that is the test's own.
type here struct{}

func (here) Do(f func() error) error { return f() }

func newPlace(t *testing.T, name string) place {
	if os.Getpid() == 1 {
		return here{}
	}
	return wgtest.NewNamespace(t, name)
}

// opened is a device in the namespace; the test is skipped, once that has been
// shown to leave nothing, where the kernel has no WireGuard.
func opened(t *testing.T, ns place, cfg Config) *Device {
	t.Helper()
	var d *Device
	err := ns.Do(func() (err error) { d, err = Open(cfg); return err })
	if errors.Is(err, ErrUnsupported) {
		if name := linkOf(t, ns, cfg.Name); name != "" {
			t.Errorf("%v, and %s is there", err, name)
		}
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// linkOf is the kind of an interface; "": there is none.
func linkOf(t *testing.T, ns place, name string) (kind string) {
	t.Helper()
	err := ns.Do(func() error {
		link, err := netlink.LinkByName(name)
		if errors.As(err, &netlink.LinkNotFoundError{}) {
			return nil
		}
		if err == nil {
			kind = link.Type()
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return kind
}

func TestDeviceConforms(t *testing.T) {
	ns := newPlace(t, "kernel")
	d := opened(t, ns, Config{Name: "form0", Key: key(t)})
	wgtest.Conform(t, d)
	if port, err := d.Port(); err != nil || port == 0 {
		t.Errorf("port %d, %v", port, err)
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	if kind := linkOf(t, ns, "form0"); kind != "" {
		t.Errorf("after Close the %s interface is there", kind)
	}
}

// What a process left that was killed, its peers too, is the next one's.
func TestOpenAgain(t *testing.T) {
	ns := newPlace(t, "again")
	cfg := Config{Name: "form0", Key: key(t)}
	first := opened(t, ns, cfg)
	if err := first.Configure([]wgtypes.PeerConfig{{PublicKey: wg.Key{1}}}); err != nil {
		t.Fatal(err)
	}
	second := opened(t, ns, cfg)
	if peers, err := second.Peers(); err != nil || len(peers) != 1 {
		t.Errorf("peers %v, %v", peers, err)
	}
	if err := second.Close(); err != nil {
		t.Error(err)
	}
	if err := first.Close(); err != nil {
		t.Errorf("of a device that is gone: %v", err)
	}
	if _, err := first.Peers(); err == nil {
		t.Error("a closed device has peers")
	}
}

func TestNamesOfOthersStay(t *testing.T) {
	ns := newPlace(t, "others")
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "form0"
	if err := ns.Do(func() error { return netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "far"}) }); err != nil {
		t.Fatal(err)
	}
	var d *Device
	err := ns.Do(func() (err error) { d, err = Open(Config{Name: "form0", Key: key(t)}); return err })
	switch {
	case errors.Is(err, ErrUnsupported): // is said before names matter
	case !errors.Is(err, unix.EEXIST):
		t.Errorf("opened %v: %v", d, err)
	}
	if kind := linkOf(t, ns, "form0"); kind != "veth" {
		t.Errorf("the interface is %q", kind)
	}
}

// broken is a kernel whose device is gone.
type broken struct{}

func (broken) Device(string) (*wgtypes.Device, error)       { return nil, os.ErrNotExist }
func (broken) ConfigureDevice(string, wgtypes.Config) error { return os.ErrNotExist }
func (broken) Close() error                                 { return nil }

func TestDeviceThatIsGoneIsAnError(t *testing.T) {
	d := &Device{name: "form0", ctrl: broken{}}
	_, peers := d.Peers()
	_, port := d.Port()
	for _, err := range []error{peers, port, d.Configure(nil), d.SetKey(wg.Key{})} {
		if !errors.Is(err, os.ErrNotExist) {
			t.Errorf("error %v", err)
		}
	}
}

func TestStatus(t *testing.T) {
	when := time.Unix(1, 0)
	got := status(wgtypes.Peer{PublicKey: wg.Key{1}, Endpoint: &net.UDPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 7},
		PersistentKeepaliveInterval: time.Second, LastHandshakeTime: when, ReceiveBytes: 3, TransmitBytes: 4,
		AllowedIPs: append(wgtest.Routes(netip.MustParseAddr("fd00::1"), netip.MustParseAddr("10.128.1.1")),
			net.IPNet{IP: net.IPv4(10, 0, 0, 0), Mask: net.CIDRMask(8, 32)})})
	if got.Key != (wg.Key{1}) || got.Endpoint != netip.MustParseAddrPort("192.0.2.1:7") || got.Keepalive != time.Second ||
		!got.Handshake.Equal(when) || got.Received != 3 || got.Sent != 4 || len(got.Addresses) != 2 || got.Addresses[0] != netip.MustParseAddr("10.128.1.1") {
		t.Errorf("%+v", got)
	}
}
