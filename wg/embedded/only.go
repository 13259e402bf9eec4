package embedded

import (
	"net/netip"
	"sync/atomic"

	"golang.zx2c4.com/wireguard/tun"
)

// Only is a TUN device to which peers send nothing but what is for the addresses
// of [Only.Set]: a machine that forwards packets is no way into its networks. It
// drops the rest, and everything before the first Set.
type Only struct {
	tun.Device
	own atomic.Pointer[map[netip.Addr]bool]
}

// Set says which addresses are the device's own.
func (o *Only) Set(addrs []netip.Addr) {
	own := make(map[netip.Addr]bool, len(addrs))
	for _, a := range addrs {
		own[a] = true
	}
	o.own.Store(&own)
}

// Write implements tun.Device.
func (o *Only) Write(bufs [][]byte, offset int) (int, error) {
	var own map[netip.Addr]bool
	if p := o.own.Load(); p != nil {
		own = *p
	}
	return writeKept(o.Device, bufs, offset, func(b []byte) bool { return own[destination(b)] })
}

// writeKept writes the packets that are to be kept, and says that all are written.
func writeKept(to tun.Device, bufs [][]byte, offset int, keep func(packet []byte) bool) (int, error) {
	for i, b := range bufs {
		if keep(b[offset:]) {
			continue
		}
		kept := append(make([][]byte, 0, len(bufs)-1), bufs[:i]...)
		for _, b := range bufs[i+1:] {
			if keep(b[offset:]) {
				kept = append(kept, b)
			}
		}
		if len(kept) == 0 {
			return len(bufs), nil
		}
		_, err := to.Write(kept, offset)
		return len(bufs), err
	}
	return to.Write(bufs, offset)
}

// destination is where an IP packet goes; the zero Addr: it is none.
func destination(b []byte) netip.Addr {
	switch {
	case len(b) >= 20 && b[0]>>4 == 4:
		return netip.AddrFrom4([4]byte(b[16:20]))
	case len(b) >= 40 && b[0]>>4 == 6:
		return netip.AddrFrom16([16]byte(b[24:40]))
	}
	return netip.Addr{}
}
