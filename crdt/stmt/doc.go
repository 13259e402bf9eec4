// Package stmt defines statements: the signed sentences of which a Formation
// network's whole shared state consists. It is pure Go, static and small,
// because the guest agent, the mesh and the command line use it too.
//
// A statement is two byte strings: a payload, which is one canonical DAG-CBOR
// map, and an Ed25519 signature over a domain tag, the kind and that payload.
// docs/wire.md specifies every byte.
//
// Guarantees:
//
//   - [Sign] is the only signer and [Verify] the only verifier. Verify checks
//     size, then shape, then the network, then the signature; it never panics
//     and its cost is bounded by [MaxStatement].
//   - One content has one encoding: integers are shortest, lengths definite,
//     map keys text, unique and sorted length-first; tags and floats do not
//     occur. So an [ID] names a content, whoever encoded it.
//   - A statement is bound to its network and kind; it cannot be replayed in
//     another network or be read as another kind.
//   - Unknown fields are tolerated and preserved: whoever stores or relays a
//     statement keeps its raw bytes.
//
// Not guaranteed: that the author was allowed to say it (package crdt decides
// that), that Time is true (it is for display only), and secrecy (statements
// are readable by every member).
package stmt
