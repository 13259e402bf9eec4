// Package des runs many nodes in virtual time: the steps that production runs
// (crdt.State, crdt.Registers, live.Detector, plan.Plan, plan.Tenant, lease.Voter)
// over a simulated network, simulated disks and simulated virtual machines, as one sequence of
// events. It has no clock, goroutine, socket or unseeded randomness.
//
// Guarantees:
//
//   - A seed and a sequence of calls give the same events, and so the same hash,
//     on every machine. Every node and every link draws from a stream of its own:
//     one more node does not change what the others draw.
//
//   - Statements are signed and verified as in production, each once; every node
//     merges them by itself. A message that the network damaged is verified anew.
//
//   - Nodes hold equal states as one, copied when they part. What a node believes
//     is never taken from another.
//
//   - Daemons and owners' tools are of two versions, of which the later says what the
//     earlier does not know.
//
//   - Two virtual machines of a fenced instance never run at once: that is held
//     after every event. Which they do is asked of the machines, not of the state.
//
// Nodes may lie (see Sim.Corrupt), but by statements that they can sign: nobody
// forges another's.
//
// What is a model, and so proves nothing about the real thing: the network
// (delay, loss, duplication, damage, cuts; on a stream a loss only delays, by what QUIC
// waits, and holds up nothing behind it), gossip (package gossip: gossipsub's meshes,
// GRAFT, PRUNE, IHAVE and IWANT over one topic for all), connections (who dialled whom is
// drawn; one over which nothing comes ends after 30 seconds, and who has few dials
// others; streams beside gossip need none), disks (what is not
// synced is lost by a crash; a voter's promises are synced before it answers),
// clocks (each at its own steady rate, begun anew by a boot), packs (who has one
// whole gives it at the speed of its line, shared among those who fetch), virtual
// machines (they take a drawn time to boot and to stop), and what keeps a fenced one: it
// pauses it up to two seconds late, and before the guest goes on when the host has slept.
//
// A [Mutant] breaks one of these things, so that a scenario can show that its
// invariants notice.
package des
