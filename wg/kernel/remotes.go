//go:build linux

package kernel

import (
	"cmp"
	"container/list"
	"encoding/binary"
	"net/netip"
)

// maxRemotes is how many of the network the device has addresses for at once:
// half of them for those to whom it has sent something.
const maxRemotes = 4096

// numbers is where the device sees what is at an address of the network: on no
// network itself (RFC 6666).
var numbers = netip.MustParsePrefix("100::/64")

// remotes gives everybody an address, of port remotePort, in the namespace of an
// [Apart]. Who has an IPv6 address and that port keeps it: so do the hosts of a
// carrier. Others are numbered, and keep their number as long as there is room: of
// those whom the device has never sent anything, and of the others, the one that
// was silent for longest goes. So no stranger takes the place of a peer. The zero
// value is ready.
type remotes struct {
	most    int // 0: maxRemotes
	byReal  map[netip.AddrPort]*list.Element
	byPlace map[netip.AddrPort]*list.Element
	order   [2]list.List // of *remote, silent for longest first; met ones in the second
	made    uint64       // numbers that were ever used
}

type remote struct {
	real, place netip.AddrPort
	met         int // 1: the device has sent it something
}

// fixed says whether somebody is in the namespace at the same address as on the
// network.
func fixed(a netip.AddrPort) bool {
	return a.Port() == remotePort && a.Addr().Is6() && !a.Addr().Is4In6() && a.Addr().Zone() == "" && !numbers.Contains(a.Addr())
}

// virtual is where the device finds somebody; false: nowhere.
func (r *remotes) virtual(real netip.AddrPort) (netip.AddrPort, bool) {
	if fixed(real) {
		return real, true
	}
	if e, ok := r.byReal[real]; ok {
		r.order[e.Value.(*remote).met].MoveToBack(e)
		return e.Value.(*remote).place, true
	}
	if !real.IsValid() || numbers.Contains(real.Addr()) {
		return netip.AddrPort{}, false
	}
	if r.byReal == nil {
		r.byReal, r.byPlace = map[netip.AddrPort]*list.Element{}, map[netip.AddrPort]*list.Element{}
	}
	r.made++ // no number is anybody else's later: what is sent to it is lost
	place := numbered(r.made)
	r.put(&remote{real: real, place: place})
	return place, true
}

// put remembers somebody in the place of who was silent for longest, if his half is
// full.
func (r *remotes) put(x *remote) {
	half := &r.order[x.met]
	if half.Len() >= cmp.Or(r.most, maxRemotes)/2 {
		old := half.Remove(half.Front()).(*remote)
		delete(r.byReal, old.real)
		delete(r.byPlace, old.place)
	}
	e := half.PushBack(x)
	r.byReal[x.real], r.byPlace[x.place] = e, e
}

// real is who is at an address, to whom the device sends something; met says that
// this makes it no stranger.
func (r *remotes) real(place netip.AddrPort, met bool) (netip.AddrPort, bool) {
	if fixed(place) {
		return place, true
	}
	e, ok := r.byPlace[place]
	if !ok {
		return netip.AddrPort{}, false
	}
	x := e.Value.(*remote)
	if x.met == 1 || !met {
		r.order[x.met].MoveToBack(e)
		return x.real, true
	}
	r.order[0].Remove(e)
	x.met = 1
	r.put(x)
	return x.real, true
}

// of is who is at an address; the zero AddrPort: nobody known.
func (r *remotes) of(place netip.AddrPort) netip.AddrPort {
	if fixed(place) {
		return place
	}
	if e, ok := r.byPlace[place]; ok {
		return e.Value.(*remote).real
	}
	return netip.AddrPort{}
}

func numbered(n uint64) netip.AddrPort {
	a := numbers.Addr().As16()
	binary.BigEndian.PutUint64(a[8:], n)
	return netip.AddrPortFrom(netip.AddrFrom16(a), remotePort)
}
