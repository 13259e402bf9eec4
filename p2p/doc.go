// Package p2p connects one node to the other members of its network.
//
// A Node is a libp2p host (Ed25519, QUIC and TCP) with a Kademlia DHT under
// the network's own prefix, gossip, streams, block exchange, discovery on the
// LAN, and a memory of the peers it met. It moves bytes and knows no domain
// type: who may take part is decided by the Admission handed to it.
//
// # Guarantees
//
//   - Every connection, in or out, whatever its transport, proves itself on
//     /formd/hello/1/<network> before any other protocol of this package, the
//     DHT, gossip, relaying or the block exchange is served or used on it. Only
//     libp2p's identify and ping run earlier. A connection that has not proved
//     itself after ten seconds is closed.
//   - A peer that Admission refused is told the reason, and the connection is
//     closed. The other side gets it as a *RefusedError.
//   - Networks never mix: the network's short ID is part of every protocol ID,
//     the DHT prefix, every topic and the mDNS service name.
//   - No address is dialled that was not configured, remembered, announced on
//     the LAN under this network's name, or told by an admitted member. Public
//     libp2p bootstrap nodes and relays are not used.
//   - A gossip message is shown to the topic's validator before it is passed
//     on, and is not passed on when the validator says no.
//   - Peers that were met are redialled for as long as the node runs, with
//     jittered exponential back-off, so that a partition heals by itself.
//
// # Non-guarantees
//
//   - Gossip is best effort: messages are lost under load and while
//     partitioned, and may arrive twice, some time apart. State needs its own
//     repair (crdt does anti-entropy over streams).
//   - Admission is judged once per connection. Revoking a member does not cut
//     it off by itself: call Drop.
//   - Admission says who a peer is, not that it behaves. Limits bound what an
//     admitted peer can cost, they do not make it harmless.
//   - The network's short ID is visible to anyone who can connect.
package p2p
