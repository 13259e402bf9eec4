// Package live decides who is alive, from this node's point of view: a pure step
// in the manner of SWIM, with Lifeguard's lesson that a slow observer doubts
// itself first. It has no socket, clock, goroutine or unseeded randomness: the
// driver calls [Detector.Step] with the time and what happened, and does what the
// returned effects say.
//
// Each second the detector probes the peers that matter to this node (its
// interest set: holders of the slots it may have to take over), the suspects, and
// one other peer in turn. A probe is a ping; unanswered for a second, it is also
// sent through a few other peers; unanswered for two, the round has failed. One
// failed round makes a suspect, three make the peer dead: with rounds started
// every second that is 4 to 5 s after it fell silent.
//
// What keeps a slow machine from seeing ghosts:
//
//   - Any contact at all, an answer or a request, in time or late, makes a peer
//     alive and forgets its failed rounds.
//   - A step that comes more than a second late voids every open round: the node
//     itself was stopped, so silence proves nothing. One that comes more than five
//     seconds late voids the verdicts as well: a node that slept gives everybody
//     the benefit of the doubt, and measures again.
//   - While the probes of two or more peers fail and none is answered, the node
//     doubts itself and demands three times as many failed rounds. (It does not
//     wait for ever: a node cut off from everyone is its own side of the
//     partition.)
//
// Not guaranteed: agreement between nodes (each has its own view, and nothing
// here is replicated as truth), and detection of peers nobody is interested in
// sooner than their turn among the others comes.
//
// A driver needs three messages, all answered at once by the peer: ping; ping
// request (the helper pings the target and answers whether that worked; either
// answer is a contact of the helper); and nothing else.
package live
