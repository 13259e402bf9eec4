//go:build linux

package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// ErrNoFilter says that the kernel cannot be told which packets of an interface to
// drop: it lacks sch_ingress, cls_u32 or act_gact.
var ErrNoFilter = errors.New("the kernel has no filter for what comes in by an interface")

// filter drops what comes out of an interface and is not for its own addresses. It
// is the interface's, and goes with it.
type filter struct {
	links *netlink.Handle
	index int

	mu  sync.Mutex
	own map[netip.Addr]uint16 // by priority
}

// Priorities of rules: each address has one, and all else is dropped last.
const (
	maxOwn   = 16
	dropRest = maxOwn + 1
)

// newFilter drops everything.
func newFilter(links *netlink.Handle, link netlink.Link) (*filter, error) {
	f := &filter{links: links, index: link.Attrs().Index, own: map[netip.Addr]uint16{}}
	q := &netlink.Ingress{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: f.index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_INGRESS}}
	err := links.QdiscAdd(q)
	if err == nil {
		err = links.FilterAdd(f.rule(dropRest, unix.ETH_P_ALL, nil, netlink.TC_ACT_SHOT))
	}
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil, fmt.Errorf("%w: %w", ErrNoFilter, err)
	}
	if err != nil {
		return nil, fmt.Errorf("filter what comes in: %w", err)
	}
	return f, nil
}

// set says what is let in.
func (f *filter) set(addrs []netip.Addr) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(addrs) > maxOwn {
		return fmt.Errorf("wg: %d addresses of an interface, the limit is %d", len(addrs), maxOwn)
	}
	for a, priority := range f.own {
		if slices.Contains(addrs, a) {
			continue
		}
		if err := f.links.FilterDel(f.pass(priority, a)); err != nil {
			return fmt.Errorf("wg: filter %s no more: %w", a, err)
		}
		delete(f.own, a)
	}
	for _, a := range addrs {
		if _, ok := f.own[a]; ok {
			continue
		}
		priority := f.free()
		if err := f.links.FilterAdd(f.pass(priority, a)); err != nil {
			return fmt.Errorf("wg: let %s in: %w", a, err)
		}
		f.own[a] = priority
	}
	return nil
}

// free is a priority that no address has.
func (f *filter) free() uint16 {
	taken := make([]bool, maxOwn+1)
	for _, p := range f.own {
		taken[p] = true
	}
	return uint16(1 + slices.Index(taken[1:], false))
}

// pass lets packets to an address in.
func (f *filter) pass(priority uint16, a netip.Addr) *netlink.U32 {
	protocol, at := uint16(unix.ETH_P_IP), int32(16) // of the destination in the header
	if a.Is6() {
		protocol, at = unix.ETH_P_IPV6, 24
	}
	var keys []netlink.TcU32Key
	for word := range slices.Chunk(a.AsSlice(), 4) {
		keys = append(keys, netlink.TcU32Key{Mask: 0xffffffff, Val: binary.BigEndian.Uint32(word), Off: at})
		at += 4
	}
	return f.rule(priority, protocol, keys, netlink.TC_ACT_OK)
}

// rule is what is done with packets that match all keys.
func (f *filter) rule(priority, protocol uint16, keys []netlink.TcU32Key, do netlink.TcAct) *netlink.U32 {
	r := &netlink.U32{
		FilterAttrs: netlink.FilterAttrs{LinkIndex: f.index, Parent: netlink.MakeHandle(0xffff, 0), Priority: priority, Protocol: protocol},
		Actions:     []netlink.Action{&netlink.GenericAction{ActionAttrs: netlink.ActionAttrs{Action: do}}},
	}
	if len(keys) > 0 {
		r.Sel = &netlink.TcU32Sel{Flags: nl.TC_U32_TERMINAL, Keys: keys}
	}
	return r
}
