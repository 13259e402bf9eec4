// Package carrier moves WireGuard datagrams between hosts: straight through one
// UDP socket that QUIC shares, where a hole in a NAT serves both, and over
// streams that somebody else opens, relayed ones too, where no straight path is.
//
// A host is known by its peer ID, and gets an address of its own that is no
// address of any network ([Address]). Whoever sends to it sends to the host, by
// whatever path; whatever comes from the host by whatever path comes from it. So
// WireGuard sees one endpoint that never moves, but for what comes straight from where
// the host says that it is and has not proved it yet: that comes from there, and what
// is sent there goes to the host once it has.
//
// Guarantees:
//   - A straight path is used only while the host has proved within the last
//     [Trust] that what is sent there reaches it; the proof is a MAC under a key
//     that was told over an authenticated stream.
//   - A path is used before the other is left: no datagram is lost by a change
//     for the better, and at most those of [Trust] when a path dies.
//   - Memory and traffic are bounded for each host and in all; a queue that is
//     full drops.
//   - A host that nobody talks with costs nothing.
//
// Not guaranteed: that a datagram arrives, or arrives once, or that it is what it
// seems: that is WireGuard's affair. Who sees a host's packets can tell who talks
// with whom.
package carrier
