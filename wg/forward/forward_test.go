package forward

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/formthefog/formation/wg/wgtest"
)

func clock() time.Duration { return 0 }

// Two tenants' guests and the node's own device share one port; a laptop and
// another host's guest talk with them, both ways, and roam.
func TestOnePortForManyStations(t *testing.T) {
	port := netip.MustParseAddrPort("203.0.113.1:51820")
	table := New(clock)
	inside := map[netip.AddrPort]string{}
	var wire *wgtest.Wire
	inner := map[string]netip.AddrPort{}
	wire = wgtest.NewWire(func(b []byte, from, to netip.AddrPort) bool {
		if name, ok := inside[from]; ok {
			if to == port {
				t.Errorf("%s sends to its own port", name)
			}
			if table.Out(b, name, to) {
				wire.Send(b, port, to)
			}
			return false
		}
		if to == port {
			if name, ok := table.In(b, from); ok {
				wire.Deliver(b, from, inner[name])
			}
			return false
		}
		return true
	})
	names := map[string][32]byte{}
	var stations []*wgtest.Station
	for i, name := range []string{"node", "guest-a", "guest-b"} {
		s := wgtest.NewStation(t, wire, byte(10+i), name)
		inside[s.At], inner[name], names[name] = name, s.At, s.Public
		stations = append(stations, s)
	}
	table.Set(names)
	laptop, far := wgtest.NewStation(t, wire, 1, "laptop"), wgtest.NewStation(t, wire, 2, "far")
	for _, s := range stations {
		for _, o := range []*wgtest.Station{laptop, far} {
			o.Knows(t, s, port)
			s.Knows(t, o)
			o.Echo(t, s)
		}
	}
	laptop.Bind.Move(netip.MustParseAddrPort("198.51.100.77:1234"))
	for _, s := range stations {
		laptop.Echo(t, s) // which takes the answers to the new address
		s.Echo(t, laptop)
		s.Echo(t, far)
	}
}

func message(kind byte, size int, fields ...uint32) []byte {
	b := make([]byte, size)
	b[0] = kind
	for i, f := range fields {
		binary.LittleEndian.PutUint32(b[4+4*i:], f)
	}
	return b
}

var remotes = []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:1"), netip.MustParseAddrPort("192.0.2.2:1"), netip.MustParseAddrPort("192.0.2.3:1")}

func TestWhoGetsADatagram(t *testing.T) {
	table := New(clock)
	table.Set(map[string][32]byte{"a": {1}, "b": {2}})
	data := func(index uint32) []byte { return message(transport, 32, index) }
	expect := func(what string, b []byte, from netip.AddrPort, want string) {
		t.Helper()
		if got, _ := table.In(b, from); got != want {
			t.Errorf("%s: %q, want %q", what, got, want)
		}
	}
	expect("an index that nobody chose", data(7), remotes[0], "")
	table.Out(message(initiation, initiationSize, 7), "a", remotes[0])
	expect("a's index", data(7), remotes[0], "a")
	expect("a's index from a remote that moved", data(7), remotes[1], "a")
	table.Out(message(initiation, initiationSize, 7), "b", remotes[0])
	expect("an index that b takes after a", data(7), remotes[0], "a")
	table.Out(message(initiation, initiationSize, 7), "b", remotes[1])
	expect("an index of two with two remotes", data(7), remotes[1], "b")
	expect("and of the other", data(7), remotes[0], "a")
	expect("and from a third", data(7), remotes[2], "")
	table.Set(map[string][32]byte{"a": {3}, "b": {2}})
	expect("after a's key has changed", data(7), remotes[0], "b")
	if table.Out(message(initiation, initiationSize, 9), "c", remotes[0]) {
		t.Error("a stranger may send")
	}
	for name, b := range map[string][]byte{"nothing": nil, "QUIC": message(0xc3, 1200), "short": message(transport, 31, 7), "odd": message(transport, 33, 7), "long initiation": message(initiation, 149)} {
		if _, ok := table.In(b, remotes[0]); ok || table.Out(b, "b", remotes[0]) {
			t.Errorf("%s passed for WireGuard", name)
		}
	}
}

// initiationFor is what the first MAC makes of random bytes.
func initiationFor(public [32]byte, r *rand.Rand) []byte {
	b := message(initiation, initiationSize, r.Uint32())
	for i := 8; i < len(b); i++ {
		b[i] = byte(r.Uint32())
	}
	key := macKey(public)
	copy(b[initiationSize-2*macSize:], mac(b, &key))
	return b
}

func TestFloodOfInitiations(t *testing.T) {
	now := time.Duration(0)
	table := New(func() time.Duration { return now })
	table.Set(map[string][32]byte{"a": {1}, "b": {2}})
	r := rand.New(rand.NewPCG(1, 2))
	if name, ok := table.In(initiationFor([32]byte{2}, r), remotes[0]); name != "b" || !ok {
		t.Fatalf("initiation for b went to %q", name)
	}
	looked := 0
	for range 10 * trialBurst {
		before := table.trials.left
		if name, ok := table.In(initiationFor([32]byte{9}, r), remotes[1]); ok {
			t.Fatalf("initiation for nobody went to %q", name)
		}
		if table.trials.left < before {
			looked++
		}
	}
	if looked > trialBurst {
		t.Errorf("%d initiations were looked at, at once", looked)
	}
	if _, ok := table.In(initiationFor([32]byte{1}, r), remotes[2]); ok {
		t.Error("a stranger came through the flood: the bound does not hold")
	}
	if name, _ := table.In(initiationFor([32]byte{2}, r), remotes[0]); name != "b" {
		t.Error("who had shaken hands is held up")
	}
	now = time.Second
	if name, _ := table.In(initiationFor([32]byte{1}, r), remotes[2]); name != "a" {
		t.Error("a second later a stranger is still held up")
	}
}

// A station that makes up indices loses its own.
func TestIndicesAreBounded(t *testing.T) {
	now := time.Duration(0)
	table := New(func() time.Duration { return now })
	table.Set(map[string][32]byte{"a": {1}, "b": {2}})
	table.Out(message(initiation, initiationSize, 1<<31), "b", remotes[0])
	for i := range uint32(3 * maxIndices) {
		table.Out(message(initiation, initiationSize, i), "a", remotes[i%3])
	}
	if n := len(table.indices); n > maxIndices+1 {
		t.Errorf("%d indices are held", n)
	}
	if name, _ := table.In(message(transport, 32, 1<<31), remotes[0]); name != "b" {
		t.Error("another station's index is gone")
	}
	now = 3 * indexLife
	table.Out(message(initiation, initiationSize, 5), "a", remotes[0])
	if n := len(table.indices); n != 2 {
		t.Errorf("%d indices are held after their life", n)
	}
}

func FuzzDatagram(f *testing.F) {
	f.Add([]byte{}, []byte{})
	f.Add(message(initiation, initiationSize, 7), message(transport, 48, 7))
	f.Add(message(response, responseSize, 7, 9), message(cookieReply, cookieReplySize, 7))
	table := New(clock)
	table.Set(map[string][32]byte{"a": {1}})
	f.Fuzz(func(t *testing.T, out, in []byte) {
		may := table.Out(out, "a", remotes[0])
		if may != Is(out) {
			t.Errorf("%x may be sent: %v", out, may)
		}
		if name, ok := table.In(in, remotes[0]); ok && (name != "a" || !Is(in)) {
			t.Errorf("%x went to %q", in, name)
		}
	})
}
