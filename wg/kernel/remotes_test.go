//go:build linux

package kernel

import (
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// dumb is remotes, as lists: silent for longest first.
type dumb struct {
	half  int
	lists [2][]netip.AddrPort
	place map[netip.AddrPort]netip.AddrPort
}

func (d *dumb) put(a netip.AddrPort, list int) {
	for i := range d.lists {
		d.lists[i] = slices.DeleteFunc(d.lists[i], func(x netip.AddrPort) bool { return x == a })
	}
	if d.lists[list] = append(d.lists[list], a); len(d.lists[list]) > d.half {
		delete(d.place, d.lists[list][0])
		d.lists[list] = d.lists[list][1:]
	}
}

func (d *dumb) list(a netip.AddrPort) int {
	if slices.Contains(d.lists[1], a) {
		return 1
	}
	return 0
}

func TestRemotesAgainstLists(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := &remotes{most: 6}
		d := &dumb{half: 3, place: map[netip.AddrPort]netip.AddrPort{}}
		var places []netip.AddrPort
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			if rapid.Bool().Draw(t, "in") || len(places) == 0 {
				real := netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, 1}), rapid.Uint16Range(1, 9).Draw(t, "port"))
				at, ok := r.virtual(real)
				if old, known := d.place[real]; !ok || known && at != old || !known && slices.Contains(places, at) {
					t.Fatalf("%s is at %s (%v), was at %s (%v)", real, at, ok, old, known)
				}
				d.place[real] = at
				d.put(real, d.list(real))
				places = append(places, at)
				continue
			}
			place, met := rapid.SampledFrom(places).Draw(t, "place"), rapid.Bool().Draw(t, "met")
			var want netip.AddrPort
			for real, at := range d.place { // any order: one has it at most
				if at == place {
					want = real
				}
			}
			if got := r.of(place); got != want {
				t.Fatalf("at %s is %s, want %s", place, got, want)
			}
			got, ok := r.real(place, met)
			if ok != want.IsValid() || got != want {
				t.Fatalf("at %s is %s (%v), want %s", place, got, ok, want)
			}
			if ok {
				d.put(want, max(d.list(want), map[bool]int{true: 1}[met]))
			}
		}
		if len(r.byReal) != len(d.place) || len(r.byPlace) != len(d.place) {
			t.Fatalf("%d and %d are remembered, want %d", len(r.byReal), len(r.byPlace), len(d.place))
		}
	})
}

func TestWhoKeepsHisAddress(t *testing.T) {
	var r remotes
	for in, same := range map[string]bool{
		"[fd12:3456:789a::1]:1": true, "[fd12:3456:789a::1]:2": false, "192.0.2.1:1": false, "[::ffff:192.0.2.1]:1": false,
		"[fe80::1%eth0]:1": false,
	} {
		a := netip.MustParseAddrPort(in)
		at, ok := r.virtual(a)
		back, known := r.real(at, true)
		if !ok || !known || back != a || at == a != same || at.Port() != remotePort || !at.Addr().Is6() {
			t.Errorf("%s is at %s (%v), who is %s (%v)", in, at, ok, back, known)
		}
	}
	for _, none := range []string{"[100::1]:1", "[100::1]:7"} {
		if at, ok := r.virtual(netip.MustParseAddrPort(none)); ok {
			t.Errorf("%s is at %s", none, at)
		}
	}
	if at, ok := r.virtual(netip.AddrPort{}); ok {
		t.Errorf("nobody is at %s", at)
	}
}
