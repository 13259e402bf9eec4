// Package live decides who is alive, from this node's point of view: a pure step
// in the manner of SWIM, with Lifeguard's lesson that a slow observer doubts
// itself first. It has no socket, clock, goroutine or unseeded randomness: the
// driver calls [Detector.Step] with the time and what happened, and does what the
// returned effects say.
//
// Each second the detector probes the peers that matter to this node (its
// interest set: holders of the slots it may have to take over), those first that
// it has not heard of for longest; the suspects; and one other peer in turn. A
// probe is a ping; unanswered for a second, it is also sent through a few other
// peers; unanswered for two, the round has failed. One failed round makes a
// suspect, three make the peer dead: with rounds started every second that is 4 to
// 5 s after it fell silent.
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
//     doubts itself, tells nobody of its suspicions, and demands three times as
//     many failed rounds. (It does not wait for ever: a node cut off from everyone
//     is its own side of the partition.) This is Lifeguard's multiplier with two
//     steps. That others suspect the node is no reason for it to doubt itself, or a
//     hostile member could slow it down.
//
// # Hints
//
// A suspicion that has lasted two failed rounds is told to everybody, once in ten
// seconds and peer, unless three others have told of it. Whom it names contradicts
// at once, with a higher [Incarnation]; that is a contact, as the word of the peer
// itself. To whom the suspect matters the hint is a reason to probe it at once, and
// every second from then on; three failed rounds of its own remain what makes it
// dead. A hint never does: the most a hostile member achieves is some probes.
//
// # Cost and times
//
// With I peers of interest a node sends, per second, at most min(I, 32) pings to
// them, 16 to suspects and 1 to another, and answers as many on average: a number
// that does not grow with the swarm. A peer that probes this node is not probed
// back in the same half second. Of interest are the holders of instances for which
// the node ranks first, so I follows what a node may run, not how many there are.
// For each node that dies few more than three hints are told, and each reaches
// everybody once.
//
// A node whose death matters here is probed within max(1.5, I/32) s and dead 4.25 s
// later: after 6 s for I up to 48, 7.4 s for 100 and 10 s for 184, without any hint.
// Hints keep it below 10 s for more: the first of those that watch the node finds it
// suspect, tells after 3 s, and the others need 4.25 s from then.
//
// Not guaranteed: agreement between nodes (each has its own view, and nothing
// here is replicated as truth), and detection of peers nobody is interested in
// sooner than their turn among the others comes.
//
// A driver needs three messages, of which two are answered at once by the peer:
// ping; ping request (the helper pings the target and answers whether that worked;
// either answer is a contact of the helper); and the hint, signed and spread by
// gossip, of which it passes on no more than it passes in, and that is bounded per
// author and per subject.
package live
