package fogvm

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"pgregory.net/rapid"

	"github.com/formthefog/formation/fogvm/guest"
)

func addrPort(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

// remoteN is the n-th of some real addresses.
func remoteN(n int) netip.AddrPort { return addrPort(fmt.Sprintf("[2001:db8::%x]:7", n+1)) }

// A virtual address means one real one as long as it is in use; the table is a
// list of the latest with those that are told of never left out.
func TestVirtualAddresses(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v := virtuals{most: 4}
		var told, recent []netip.AddrPort // recent: oldest first
		use := func(a netip.AddrPort) {
			recent = append(slices.DeleteFunc(recent, func(b netip.AddrPort) bool { return a == b }), a)
		}
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			switch rapid.IntRange(0, 4).Draw(t, "step") {
			case 0:
				told = nil
				for _, n := range rapid.SliceOfNDistinct(rapid.IntRange(0, 9), 0, 3, rapid.ID[int]).Draw(t, "told") {
					told = append(told, remoteN(n))
				}
				v.tell(told)
				for _, a := range told {
					use(a)
				}
			default:
				a := remoteN(rapid.IntRange(0, 9).Draw(t, "remote"))
				if _, ok := v.virtual(a); !ok {
					t.Fatal("no room, with strangers in the table")
				}
				use(a)
			}
			if len(v.of) != len(v.at) || len(v.of) != v.order.Len() || len(v.of) > v.most {
				t.Fatalf("%d, %d, %d entries", len(v.of), len(v.at), v.order.Len())
			}
			for real, e := range v.of {
				at := e.Value.(*virtual).virtual
				if got, ok := v.at[at]; !ok || got.Value.(*virtual).real != real || !guest.MeshVirtual.Contains(at.Addr()) {
					t.Fatalf("%s is %s, which is %v", real, at, got)
				}
			}
			for _, a := range told {
				if _, ok := v.of[a]; !ok {
					t.Fatalf("%s, which the guest was told of, is gone", a)
				}
			}
			if last := recent[max(0, len(recent)-1):]; len(last) == 1 {
				if _, ok := v.of[last[0]]; !ok {
					t.Fatal("the latest is gone")
				}
			}
		}
	})
}

func TestVirtualAddressesForStrangersEnd(t *testing.T) {
	v := virtuals{most: 2}
	v.tell([]netip.AddrPort{remoteN(0), remoteN(1)})
	if _, ok := v.virtual(remoteN(2)); ok {
		t.Error("a stranger takes the place of somebody that the guest was told of")
	}
	v.tell([]netip.AddrPort{remoteN(0)})
	at, ok := v.virtual(remoteN(2))
	if real, known := v.real(at); !ok || !known || real != remoteN(2) {
		t.Errorf("the stranger is %s, %v", real, ok)
	}
	if _, known := v.of[remoteN(1)]; known {
		t.Error("who is no longer told of keeps the place")
	}
}

// fromGuest is the frame of a datagram that the guest sends.
func fromGuest(payload string, to netip.AddrPort) []byte {
	frame := appendMeshFrame(nil, []byte(payload), to)[4:]
	copy(frame[6:12], guestMAC[:])
	ip := header.IPv4(frame[header.EthernetMinimumSize:])
	src := ip.SourceAddress()
	ip.SetSourceAddress(ip.DestinationAddress())
	ip.SetDestinationAddress(src)
	udp := header.UDP(ip.Payload())
	udp.SetDestinationPort(to.Port())
	udp.SetSourcePort(guest.MeshPort)
	return resum(frame)
}

// resum makes the checksums of a frame right.
func resum(frame []byte) []byte {
	ip := header.IPv4(frame[header.EthernetMinimumSize:])
	ip.SetChecksum(0)
	ip.SetChecksum(^ip.CalculateChecksum())
	udp := header.UDP(ip.Payload())
	udp.SetChecksum(0)
	sum := header.PseudoHeaderChecksum(header.UDPProtocolNumber, ip.SourceAddress(), ip.DestinationAddress(), uint16(len(udp)))
	udp.SetChecksum(^udp.CalculateChecksum(checksum.Checksum(udp.Payload(), sum)))
	return frame
}

func TestOnlyWholeDatagramsOfTheMesh(t *testing.T) {
	to := addrPort("198.18.0.7:51820")
	ipOf := func(f []byte) header.IPv4 { return header.IPv4(f[header.EthernetMinimumSize:]) }
	udpOf := func(f []byte) header.UDP { return header.UDP(ipOf(f).Payload()) }
	for _, tt := range []struct {
		name   string
		change func(f []byte) []byte
		mesh   bool // it is kept from the network's stack
		ok     bool
	}{
		{"as it is", func(f []byte) []byte { return f }, true, true},
		{"without a checksum", func(f []byte) []byte { udpOf(f).SetChecksum(0); return f }, true, true},
		{"padded", func(f []byte) []byte { return append(f, 0, 0) }, true, true},
		{"a wrong checksum", func(f []byte) []byte { udpOf(f).SetChecksum(1); return f }, true, false},
		{"a wrong checksum of IP", func(f []byte) []byte { ipOf(f).SetChecksum(1); return f }, true, false},
		{"a fragment", func(f []byte) []byte {
			ipOf(f).SetFlagsFragmentOffset(header.IPv4FlagMoreFragments, 0)
			return resum(f)
		}, true, false},
		{"the last fragment", func(f []byte) []byte { ipOf(f).SetFlagsFragmentOffset(0, 8); return resum(f) }, true, false},
		{"another port of the guest's", func(f []byte) []byte { udpOf(f).SetSourcePort(53); return resum(f) }, true, false},
		{"port 0", func(f []byte) []byte { udpOf(f).SetDestinationPort(0); return resum(f) }, true, false},
		{"longer than it says", func(f []byte) []byte { udpOf(f).SetLength(9); return resum(f) }, true, false},
		{"shorter than it says", func(f []byte) []byte { udpOf(f).SetLength(99); return resum(f) }, true, false},
		{"IP that is cut off", func(f []byte) []byte { return f[:len(f)-1] }, true, false},
		{"TCP", func(f []byte) []byte { f[23] = 6; return resum(f) }, true, false},
		{"no room for UDP", func(f []byte) []byte {
			ipOf(f).SetTotalLength(header.IPv4MinimumSize + 4)
			ipOf(f).SetChecksum(0)
			ipOf(f).SetChecksum(^ipOf(f).CalculateChecksum())
			return f
		}, true, false},
		{"to somebody else", func(f []byte) []byte {
			ipOf(f).SetDestinationAddress(tcpip.AddrFrom4([4]byte{93, 184, 216, 34}))
			return resum(f)
		}, false, false},
		{"ARP", func(f []byte) []byte { f[13] = 6; return f }, false, false},
		{"nothing", func([]byte) []byte { return nil }, false, false},
	} {
		f := tt.change(fromGuest("hello", to))
		if got := toMesh(f); got != tt.mesh {
			t.Errorf("%s: for the mesh %v", tt.name, got)
		}
		if !tt.mesh {
			continue
		}
		b, at, ok := meshDatagram(f)
		if ok != tt.ok || ok && (string(b) != "hello" || at != to) {
			t.Errorf("%s: %q to %s, %v", tt.name, b, at, ok)
		}
	}
}

// meshRig is a guest with a stack of its own, and the shim's part in its mesh.
type meshRig struct {
	t     *testing.T
	shim  *shim
	guest *gonet.UDPConn // at guest.MeshPort
}

func newMeshRig(t *testing.T) *meshRig {
	n, err := newNetwork(defaultLimits, nil, testLogger(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.close)
	s := &shim{dir: t.TempDir(), log: testLogger(t)}
	n.mesh = &s.mesh
	s.mesh.plug(n.wire)
	at := tcpip.FullAddress{NIC: nicID, Addr: tcpip.AddrFrom4(guestAddress.As4()), Port: guest.MeshPort}
	c, err := gonet.DialUDP(guestOn(t, n), &at, nil, ipv4.ProtocolNumber)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return &meshRig{t, s, c}
}

// formd connects as formd does.
func (r *meshRig) formd() *MeshPort {
	r.t.Helper()
	ours, theirs := net.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer theirs.Close()
		r.shim.serveMesh(context.Background(), newLineConn(theirs))
	}()
	r.t.Cleanup(func() {
		ours.Close()
		<-done
	})
	c := newLineConn(ours)
	var reply shimReply
	if err := c.readLine(&reply); err != nil || reply.Error != "" {
		r.t.Fatal(err, reply)
	}
	return NewMeshPort(c)
}

// hears expects a datagram at the guest and returns from where it comes.
func (r *meshRig) hears(want string) net.Addr {
	r.t.Helper()
	if err := r.guest.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		r.t.Fatal(err)
	}
	buf := make([]byte, 2000)
	n, from, err := r.guest.ReadFrom(buf)
	if err != nil || string(buf[:n]) != want {
		r.t.Fatalf("the guest hears %q, %v; want %q", buf[:n], err, want)
	}
	return from
}

func receives(t *testing.T, p *MeshPort, want string, to netip.AddrPort) {
	t.Helper()
	b, at, err := p.Receive()
	if err != nil || string(b) != want || at != to {
		t.Fatalf("formd gets %q for %s, %v; want %q for %s", b, at, err, want, to)
	}
}

// A stranger's datagram gives it an address, at which the guest answers; peers
// have one before. The shim outlives formd, and so do the addresses.
func TestDatagramsOfTheMesh(t *testing.T) {
	r := newMeshRig(t)
	port := r.formd()
	phone, host := addrPort("203.0.113.9:4242"), addrPort("[fd00::7]:1")
	if err := port.Send([]byte("hello"), phone); err != nil {
		t.Fatal(err)
	}
	from := r.hears("hello")
	if !guest.MeshVirtual.Contains(from.(*net.UDPAddr).AddrPort().Addr()) {
		t.Errorf("the phone is %s", from)
	}
	if _, err := r.guest.WriteTo([]byte("hi"), from); err != nil {
		t.Fatal(err)
	}
	receives(t, port, "hi", phone)
	if err := port.Locate([]MeshLocation{{Key: [32]byte{1}, At: host}}); err != nil {
		t.Fatal(err)
	}
	eventually(t, time.Minute, "a place for the peer", func() bool { return len(r.shim.mesh.located()) == 1 })
	told := r.shim.mesh.located()[0]
	if _, err := r.guest.WriteTo([]byte("peer"), net.UDPAddrFromAddrPort(told.At)); err != nil || told.Key != keyText([32]byte{1}) {
		t.Fatal(err, told)
	}
	receives(t, port, "peer", host)
	// Nothing of this is for nobody, or from a port that is not WireGuard's.
	if _, err := r.guest.WriteTo([]byte("lost"), net.UDPAddrFromAddrPort(numbered(100))); err != nil {
		t.Fatal(err)
	}

	next := r.formd() // an upgrade; the one before hears its end
	if _, _, err := port.Receive(); err == nil {
		t.Error("two have the guest's datagrams")
	}
	if _, err := r.guest.WriteTo([]byte("again"), from); err != nil {
		t.Fatal(err)
	}
	receives(t, next, "again", phone)
	if err := next.Send([]byte("back"), phone); err != nil {
		t.Fatal(err)
	}
	if again := r.hears("back"); again.String() != from.String() {
		t.Errorf("the phone was %s and is %s", from, again)
	}
	if err := next.Send(make([]byte, maxDatagram+1), phone); err != nil { // is lost
		t.Fatal(err)
	}
	largest := strings.Repeat("x", maxDatagram)
	if err := next.Send([]byte(largest), phone); err != nil {
		t.Fatal(err)
	}
	r.hears(largest)
}

// A formd that takes nothing holds up nobody: neither the guest, nor who is there
// after it.
func TestDatagramsOfTheMeshAreDropped(t *testing.T) {
	r := newMeshRig(t)
	r.formd()
	at, _ := r.shim.mesh.table.virtual(addrPort("203.0.113.9:4242"))
	frame := fromGuest("x", at)
	for range 3 * maxMeshQueue {
		if !r.shim.mesh.take(slices.Clone(frame)) {
			t.Fatal("a frame goes elsewhere")
		}
	}
	next := r.formd()
	if !r.shim.mesh.take(slices.Clone(frame)) {
		t.Fatal("a frame goes elsewhere")
	}
	receives(t, next, "x", addrPort("203.0.113.9:4242"))
}

func FuzzMeshDatagram(f *testing.F) {
	f.Add(fromGuest("hello", addrPort("198.18.0.7:51820")))
	f.Add(make([]byte, 34))
	f.Fuzz(func(t *testing.T, frame []byte) {
		if !frameAllowed(frame) || !toMesh(frame) {
			return
		}
		b, to, ok := meshDatagram(frame)
		if ok && (len(b) > maxDatagram || !guest.MeshVirtual.Contains(to.Addr()) || to.Port() == 0) {
			t.Fatalf("%d bytes to %s", len(b), to)
		}
	})
}

// FuzzMeshFrame: whatever arrives is refused, or is what a MeshPort writes.
func FuzzMeshFrame(f *testing.F) {
	var b bytes.Buffer
	p := NewMeshPort(pipeTo{&b})
	if err := errors.Join(p.Send([]byte("hello"), remoteN(1)), p.Locate([]MeshLocation{{[32]byte{1}, remoteN(2)}}), p.Locate(nil)); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	f.Add([]byte{0, 1, 3})
	f.Fuzz(func(t *testing.T, in []byte) {
		r := bytes.NewReader(in)
		b, addr, where, err := readMeshFrame(r)
		if err != nil {
			return
		}
		var again bytes.Buffer
		p := NewMeshPort(pipeTo{&again})
		if addr.IsValid() {
			err = p.Send(b, addr)
		} else {
			err = p.Locate(where)
		}
		if read := in[:len(in)-r.Len()]; err != nil || !bytes.Equal(again.Bytes(), read) || int(binary.BigEndian.Uint16(in)) != len(read)-2 {
			t.Fatalf("%x is written as %x", read, again.Bytes())
		}
	})
}

// pipeTo is a connection that is only written.
type pipeTo struct{ io.Writer }

func (pipeTo) Read([]byte) (int, error)         { return 0, io.EOF }
func (pipeTo) Close() error                     { return nil }
func (pipeTo) LocalAddr() net.Addr              { return nil }
func (pipeTo) RemoteAddr() net.Addr             { return nil }
func (pipeTo) SetDeadline(time.Time) error      { return nil }
func (pipeTo) SetReadDeadline(time.Time) error  { return nil }
func (pipeTo) SetWriteDeadline(time.Time) error { return nil }
