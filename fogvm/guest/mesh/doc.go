// Package mesh is the guest as a peer on the mesh. Its WireGuard key is born in
// it; whom it talks with it finds out from signed statements, which its host
// hands it and cannot forge. The host forwards datagrams that it cannot read.
//
// Guarantees:
//   - A peer is one whom the owner's and the nodes' own signatures make one, by
//     the rule of package policy; nothing else that the host says adds a peer,
//     changes a key or an address, or brings back what was taken out.
//   - What the guest is told first, whose network, owner, instance and node it is,
//     is kept on its disk and holds for the life of it; so do the statements of
//     owner and network, so that a reboot forgets none.
//   - What the host can make the guest hold and work is bounded.
//
// Not guaranteed: that the host tells all there is, or that it leaves the guest's
// memory and disk alone: it can be the one replica that it runs itself, and it can
// keep news back. Where a peer is said to be is not proved either; WireGuard finds
// out by itself whether it is there.
package mesh
