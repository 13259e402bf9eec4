package carrier

import (
	"crypto/sha256"
	"net/netip"

	"github.com/libp2p/go-libp2p/core/peer"
)

// hosts is the prefix of the addresses by which hosts are named: fd and 40 bits
// of SHA-256("formation/carrier/1"), inside a machine and on no wire.
var hosts = func() netip.Prefix {
	sum := sha256.Sum256([]byte("formation/carrier/1"))
	a := [16]byte{0: 0xfd}
	copy(a[1:6], sum[:])
	return netip.PrefixFrom(netip.AddrFrom16(a), 48)
}()

// Address is the address that means a host, whatever path leads to it.
func Address(host peer.ID) netip.AddrPort {
	sum := sha256.Sum256([]byte(host))
	a := hosts.Addr().As16()
	copy(a[6:], sum[:])
	return netip.AddrPortFrom(netip.AddrFrom16(a), 1)
}

// IsHost says whether a is the address of some host.
func IsHost(a netip.AddrPort) bool { return hosts.Contains(a.Addr()) }
