package fogvm

import (
	"cmp"
	"container/list"
	"encoding/binary"
	"net/netip"

	"github.com/formthefog/formation/fogvm/guest"
)

// maxVirtual is how many of the mesh a guest has addresses for at once: those whom
// it was told of, and as many others as have come by themselves.
const maxVirtual = 4 * guest.MaxLocations

// virtuals gives whoever the guest's WireGuard talks with an address in
// guest.MeshVirtual, and keeps it as long as there is room: the one not used for
// longest goes first, those that the guest was told of never. The zero value is
// ready.
type virtuals struct {
	most  int                              // 0: maxVirtual
	of    map[netip.AddrPort]*list.Element // by real address
	at    map[netip.AddrPort]*list.Element // by virtual one
	order list.List                        // of *virtual, least recently used first
	made  int                              // virtual addresses that were ever used
}

type virtual struct {
	real, virtual netip.AddrPort
	told          bool
}

// virtual is the address of whoever is really there; false: there is no room.
func (v *virtuals) virtual(real netip.AddrPort) (netip.AddrPort, bool) {
	if e, ok := v.of[real]; ok {
		v.order.MoveToBack(e)
		return e.Value.(*virtual).virtual, true
	}
	if v.of == nil {
		v.of, v.at = map[netip.AddrPort]*list.Element{}, map[netip.AddrPort]*list.Element{}
	}
	at := numbered(v.made)
	if v.made < cmp.Or(v.most, maxVirtual) {
		v.made++
	} else if e := v.oldest(); e != nil {
		at = e.Value.(*virtual).virtual
		v.remove(e)
	} else {
		return netip.AddrPort{}, false
	}
	e := v.order.PushBack(&virtual{real: real, virtual: at})
	v.of[real], v.at[at] = e, e
	return at, true
}

// real is who has a virtual address.
func (v *virtuals) real(at netip.AddrPort) (netip.AddrPort, bool) {
	e, ok := v.at[at]
	if !ok {
		return netip.AddrPort{}, false
	}
	v.order.MoveToBack(e)
	return e.Value.(*virtual).real, true
}

// tell says whom the guest is told of, all of them.
func (v *virtuals) tell(reals []netip.AddrPort) {
	for e := v.order.Front(); e != nil; e = e.Next() {
		e.Value.(*virtual).told = false
	}
	for _, real := range reals {
		if _, ok := v.virtual(real); ok {
			v.of[real].Value.(*virtual).told = true
		}
	}
}

func (v *virtuals) oldest() *list.Element {
	for e := v.order.Front(); e != nil; e = e.Next() {
		if !e.Value.(*virtual).told {
			return e
		}
	}
	return nil
}

func (v *virtuals) remove(e *list.Element) {
	x := v.order.Remove(e).(*virtual)
	delete(v.of, x.real)
	delete(v.at, x.virtual)
}

// numbered is the n-th address of the prefix, without the first.
func numbered(n int) netip.AddrPort {
	base := guest.MeshVirtual.Addr().As4()
	var a [4]byte
	binary.BigEndian.PutUint32(a[:], binary.BigEndian.Uint32(base[:])+uint32(n)+1)
	return netip.AddrPortFrom(netip.AddrFrom4(a), guest.MeshPort)
}
