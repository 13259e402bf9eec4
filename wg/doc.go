// Package wg keeps a WireGuard device in step with the peers that somebody
// wants it to have, and knows the addresses of a mesh.
//
// Guarantees:
//   - [Mesh.Set] says all that is wanted; what is programmed follows by
//     differences. A peer that stays is not touched, so its session lives on.
//   - An address belongs to one peer before anything is programmed: WireGuard
//     itself would take it from one peer silently and give it to the last that
//     asks. A peer has host addresses inside the mesh's own prefixes only.
//   - A peer whose key changes keeps the old one until the new one has shown
//     that it works, within bounds.
//   - An IPv6 address follows from an identity ([Space.Address6]); nobody has to
//     be asked, and nobody can claim another's. IPv4 addresses are few and have
//     to be claimed ([Resolve]).
//
// Not guaranteed: that a peer can be reached, that it is who the caller took it
// for, or that it may talk to this machine at all: wg is given keys by somebody
// who knows.
package wg
