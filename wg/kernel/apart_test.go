//go:build linux

package kernel

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/formthefog/formation/wg"
	"github.com/formthefog/formation/wg/carrier"
	"github.com/formthefog/formation/wg/wgtest"
)

// room is a network namespace of a test's, without any command's help.
type room struct{ fd int }

func newRoom(t *testing.T) room {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("network namespaces need root")
	}
	var r room
	err := inNamespace(func(int) (err error) {
		r.fd, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(lo)
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(r.fd) })
	return r
}

// Do calls f on a thread that is in the room.
func (r room) Do(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		err := unix.Setns(r.fd, unix.CLONE_NEWNET)
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}

func (r room) must(t *testing.T, f func() error) {
	t.Helper()
	if err := r.Do(f); err != nil {
		t.Fatal(err)
	}
}

// address gives an interface an address, and brings it up.
func address(name, addr string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	a, err := netlink.ParseAddr(addr)
	if err != nil {
		return err
	}
	a.Flags = unix.IFA_F_NODAD
	return errors.Join(netlink.AddrAdd(link, a), netlink.LinkSetUp(link))
}

// station is a node as far as its device and its carrier go.
type station struct {
	room
	t       *testing.T
	id      peer.ID
	key     wg.Key
	at      netip.AddrPort // on the wire
	inner   netip.Addr     // on the mesh
	other   *station
	carrier *carrier.Carrier
	dev     *Apart
}

func (s *station) OpenStream(_ context.Context, host peer.ID) (io.ReadWriteCloser, error) {
	if host != s.other.id {
		return nil, fmt.Errorf("%s is nobody", host)
	}
	ours, theirs := net.Pipe()
	go s.other.carrier.Accept(s.id, theirs)
	return ours, nil
}

func newStation(t *testing.T, n byte) *station {
	t.Helper()
	s := &station{room: newRoom(t), t: t, id: peer.ID(fmt.Sprint("node ", n)), key: key(t), inner: netip.AddrFrom16([16]byte{0: 0xfd, 15: n})}
	s.must(t, func() (err error) {
		s.dev, err = OpenApart(Config{Name: "form0", Key: s.key, Port: 51820, Mark: string(s.id)})
		return err
	})
	return s
}

// begin has the station carry.
func (s *station) begin(other *station) {
	s.other = other
	var socket *carrier.Socket
	s.must(s.t, func() (err error) { socket, err = carrier.Listen(0, netip.Addr{}); return err })
	s.at = netip.AddrPortFrom(s.at.Addr(), socket.Port())
	began := time.Now()
	c, err := carrier.New(carrier.Config{Self: s.id, Socket: socket, Streams: s, Addresses: func() []netip.AddrPort { return []netip.AddrPort{s.at} },
		Now: func() time.Duration { return time.Since(began) }})
	if err != nil {
		s.t.Fatal(err)
	}
	s.carrier = c
	c.Hosts([]peer.ID{other.id})
	c.Stations([32]byte{}, map[string]carrier.Station{"device": {Public: s.key.PublicKey(), Deliver: s.dev.Deliver}})
	s.t.Cleanup(func() {
		if err := socket.Close(); err != nil {
			s.t.Error(err)
		}
	})
}

// run works until the test ends.
func (s *station) run() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- s.carrier.Run(ctx) }()
	go func() {
		done <- s.dev.Run(ctx, func(b []byte, to netip.AddrPort) { s.carrier.Send("device", b, to) })
	}()
	s.t.Cleanup(func() {
		cancel()
		if err := errors.Join(<-done, <-done, s.dev.Close()); err != nil {
			s.t.Error(err)
		}
		if kind := linkOf(s.t, s.room, "form0"); kind != "" {
			s.t.Errorf("after Close the %s interface is there", kind)
		}
	})
}

// knows makes somebody a peer.
func (s *station) knows(public wg.Key, at netip.AddrPort, inner ...netip.Addr) {
	s.t.Helper()
	c := wgtypes.PeerConfig{PublicKey: public, AllowedIPs: wgtest.Routes(inner...)}
	if at.IsValid() {
		c.Endpoint = net.UDPAddrFromAddrPort(at)
	}
	if err := s.dev.Configure([]wgtypes.PeerConfig{c}); err != nil {
		s.t.Fatal(err)
	}
}

// endpoint is where the device says that a peer is.
func (s *station) endpoint(public wg.Key) netip.AddrPort {
	s.t.Helper()
	peers, err := s.dev.Peers()
	if err != nil {
		s.t.Fatal(err)
	}
	for _, p := range peers {
		if p.Key == public {
			return p.Endpoint
		}
	}
	return netip.AddrPort{}
}

func (s *station) straight() bool {
	for _, p := range s.carrier.Paths() {
		if p.Host == s.other.id {
			return p.Straight.IsValid()
		}
	}
	return false
}

// until waits for something that traffic brings about.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	look := time.NewTicker(20 * time.Millisecond)
	defer look.Stop()
	for end := time.After(time.Minute); !ok(); {
		select {
		case <-look.C:
		case <-end:
			t.Fatal("in vain for a minute: ", what)
		}
	}
}

// listening answers what it is sent at an address.
type listening struct {
	*net.UDPConn
	heard chan string
}

func (r room) listen(t *testing.T, at netip.Addr) *listening {
	t.Helper()
	l := &listening{heard: make(chan string, 1024)}
	r.must(t, func() (err error) {
		l.UDPConn, err = net.ListenUDP("udp6", net.UDPAddrFromAddrPort(netip.AddrPortFrom(at, 7)))
		return err
	})
	t.Cleanup(func() { l.Close() })
	go func() {
		for b := make([]byte, 100); ; {
			n, from, err := l.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			l.heard <- string(b[:n])
			_, _ = l.WriteToUDPAddrPort(b[:n], from) // who waits for it says so
		}
	}()
	return l
}

// dial is a socket in the room that sends to an address.
func (r room) dial(t *testing.T, to netip.Addr) (c *net.UDPConn) {
	t.Helper()
	r.must(t, func() (err error) {
		c, err = net.DialUDP("udp6", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, 7)))
		return err
	})
	t.Cleanup(func() { c.Close() })
	return c
}

// echo has a text answered, however often that has to be asked for.
func (r room) echo(t *testing.T, to netip.Addr, text string) {
	t.Helper()
	c := r.dial(t, to)
	until(t, text, func() bool {
		_, _ = c.Write([]byte(text)) // what does not arrive is asked for again
		if err := c.SetReadDeadline(time.Now().Add(500 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 100)
		n, err := c.Read(b)
		return err == nil && string(b[:n]) == text
	})
}

// supported skips the test where the kernel cannot have such a device.
func supported(t *testing.T) {
	t.Helper()
	r := newRoom(t)
	var d *Apart
	err := r.Do(func() (err error) {
		d, err = OpenApart(Config{Name: "form0", Key: key(t), Port: 51820})
		return err
	})
	if errors.Is(err, ErrUnsupported) || errors.Is(err, ErrNoFilter) {
		if kind := linkOf(t, r, "form0"); kind != "" {
			t.Errorf("%v, and %s is there", err, kind)
		}
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
}

// Two nodes' devices talk by their carriers: by the stream first, then straight,
// by the stream while the cable is out, and straight again; and with a device that
// has no carrier. Neither lets anything in that is not for its own addresses.
func TestApart(t *testing.T) {
	supported(t)
	a, b := newStation(t, 1), newStation(t, 2)
	a.must(t, func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "lan"
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "lan", PeerNamespace: netlink.NsFd(b.fd)})
	})
	for i, s := range []*station{a, b} {
		s.at = netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 168, 7, byte(i + 1)}), 0)
		s.must(t, func() error {
			return errors.Join(address("lan", s.at.Addr().String()+"/24"), address("form0", s.inner.String()+"/64"))
		})
		if err := s.dev.Own([]netip.Addr{s.inner}); err != nil {
			t.Fatal(err)
		}
	}
	a.begin(b)
	b.begin(a)
	hidden := netip.MustParseAddr("fd00::99") // of the machine, not of its mesh
	a.knows(b.key.PublicKey(), carrier.Address(b.id), b.inner)
	b.knows(a.key.PublicKey(), carrier.Address(a.id), a.inner, hidden)
	a.run()
	b.run()
	b.listen(t, b.inner)
	own := a.listen(t, a.inner)

	a.room.echo(t, b.inner, "by whatever path")
	until(t, "both send straight", func() bool { return a.straight() && b.straight() })
	a.room.echo(t, b.inner, "straight")
	if at := a.endpoint(b.key.PublicKey()); at != carrier.Address(b.id) {
		t.Errorf("the peer is at %s", at)
	}
	cable := func(up bool) {
		a.must(t, func() error {
			link, err := netlink.LinkByName("lan")
			if err != nil {
				return err
			}
			if up {
				return netlink.LinkSetUp(link)
			}
			return netlink.LinkSetDown(link)
		})
	}
	cable(false)
	a.room.echo(t, b.inner, "by the stream")
	if a.straight() {
		t.Error("straight without a cable")
	}
	cable(true)
	until(t, "straight again", func() bool { a.room.echo(t, b.inner, "any"); return a.straight() && b.straight() })

	phone := newPhone(t, b.room, a)
	a.knows(phone, netip.AddrPort{}, phoneInner)
	b.room.echo(t, a.inner, "by the host")
	phoneRoute(t, b.room, a.inner)
	b.room.echo(t, a.inner, "by the phone")
	if at := a.endpoint(phone); at != netip.AddrPortFrom(b.at.Addr(), phonePort) {
		t.Errorf("the phone is at %s", at)
	}
	phoneRoute(t, b.room, netip.Addr{})

	a.must(t, func() error { return address("lo", hidden.String()+"/128") })
	inside := a.listen(t, hidden)
	a.room.echo(t, hidden, "from inside")
	<-inside.heard
	c := b.dial(t, hidden)
	for range 20 {
		if _, err := c.Write([]byte("from outside")); err != nil {
			t.Fatal(err)
		}
	}
	for len(own.heard) > 0 {
		<-own.heard
	}
	b.room.echo(t, a.inner, "after what must not come") // on the same way
	select {
	case text := <-inside.heard:
		t.Errorf("heard %q at an address that is not the mesh's", text)
	default:
	}
	if err := a.dev.Own([]netip.Addr{hidden}); err != nil {
		t.Fatal(err)
	}
	b.room.echo(t, hidden, "to what is its own now")
}

// phone is a device by itself, at a port of its own.
const phonePort = 40000

var phoneInner = netip.MustParseAddr("fd00::77")

func newPhone(t *testing.T, r room, node *station) wg.Key {
	t.Helper()
	private := key(t)
	var d *Device
	r.must(t, func() (err error) {
		if d, err = Open(Config{Name: "phone", Key: private, Port: phonePort}); err != nil {
			return err
		}
		return address("phone", phoneInner.String()+"/128")
	})
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	err := d.Configure([]wgtypes.PeerConfig{{PublicKey: node.key.PublicKey(), Endpoint: net.UDPAddrFromAddrPort(node.at), AllowedIPs: wgtest.Routes(node.inner)}})
	if err != nil {
		t.Fatal(err)
	}
	return private.PublicKey()
}

// phoneRoute has the room reach an address by the phone alone; the zero Addr: none.
func phoneRoute(t *testing.T, r room, to netip.Addr) {
	t.Helper()
	r.must(t, func() error {
		link, err := netlink.LinkByName("phone")
		if err != nil {
			return err
		}
		if to.IsValid() {
			return netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: &wgtest.Routes(to)[0], Src: phoneInner.AsSlice(), Priority: 1})
		}
		return netlink.LinkSetDown(link)
	})
}

// victim, in the environment, makes this program one that opens a device and waits
// to be killed.
const victim = "KERNEL_TEST_VICTIM"

func beVictim() {
	private, err := wgtypes.GeneratePrivateKey()
	if err == nil {
		_, err = OpenApart(Config{Name: "form1", Key: private, Port: 51820, Mark: os.Getenv(victim)})
	}
	fmt.Println("open:", err)
	if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
		fmt.Println(err)
	}
}

// What a process leaves that was killed is found and removed, by its own next start
// alone; an interface that somebody removes is missed.
func TestApartIsSwept(t *testing.T) {
	supported(t)
	r := newRoom(t)
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
	cmd.Env = append(os.Environ(), victim+"=me")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	r.must(t, cmd.Start)
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "open: <nil>\n" {
		t.Fatalf("%q, %v", line, err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // it was killed
	for mark, want := range map[string]string{"me and more": "", "": ""} {
		if got := swept(t, r, mark); got != want {
			t.Errorf("of %q: %q", mark, got)
		}
	}
	if kind := linkOf(t, r, "form1"); kind != "wireguard" {
		t.Errorf("the killed process has left %q", kind)
	}
	if got := swept(t, r, "me"); got != "form1" {
		t.Errorf("swept %q", got)
	}
	if kind := linkOf(t, r, "form1"); kind != "" {
		t.Errorf("%s is there", kind)
	}

	var d *Apart
	r.must(t, func() (err error) {
		d, err = OpenApart(Config{Name: "form1", Key: key(t), Port: 51820, Mark: "me"})
		return err
	})
	select {
	case <-d.Done():
		t.Error("missed an interface that is there")
	default:
	}
	if got := swept(t, r, "me"); got != "form1" {
		t.Errorf("removed %q", got)
	}
	<-d.Done()
	if err := d.Close(); err != nil {
		t.Error(err)
	}
}

func swept(t *testing.T, r room, mark string) string {
	t.Helper()
	var names []string
	r.must(t, func() (err error) { names, err = Sweep(mark); return err })
	return strings.Join(names, " ")
}
