// Package crdt is a network's shared state: what owners want, what nodes are
// and do, and who is a member. It merges signed statements (package stmt) that
// arrive in any order, any number of times, from anybody, into one immutable
// [View] that every reconciler, placement and API reads.
//
//   - [State] is the pure core: bytes and a time in, a View out. No clock, no
//     randomness, no goroutine, no disk.
//   - [Replica] is the thin driver around it: durable log, gossip,
//     anti-entropy, and the one writer of this node's own registers.
//   - [Author] is the owner's side: it makes the statements that create, change
//     and delete instances, from whichever device.
//
// Guarantees:
//
//   - Two States that hold the same statements have equal Views, whatever the
//     order and repetition of their arrival.
//   - Author-bound: a spec or owner statement counts only when the owner signed
//     it, a node or claim register only when that node did, and any of them only
//     while the author is a member (in an open network: always).
//   - A deleted instance stays deleted, and a revoked key revoked, whoever
//     replays what and when. (A peer that never hears of a deletion cannot know
//     of it.)
//   - What [Replica.Submit], SetNode and SetClaims have acknowledged is on disk
//     and survives a crash; a damaged log is cut at the first bad frame and
//     never guessed at. While the disk takes nothing, nothing is acknowledged,
//     and the rest goes on.
//   - State is bounded per author; see the Max constants.
//
// Not guaranteed: agreement between nodes at one moment, any order between
// statements of different authors, delivery of gossip (anti-entropy repairs
// it), and memory bounds or fair quotas in an open network, where identities
// are free.
package crdt
