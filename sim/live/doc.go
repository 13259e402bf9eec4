// Package live runs a swarm of real hosts in virtual time: the production p2p.Node
// with its QUIC, DHT, gossip and redialling, and the production crdt.Replica with
// its log, over a network of this package's own, in one bubble of
// testing/synctest. So what libraries and goroutines really do is seen, hours pass
// in minutes, and nothing leaves the process.
//
// # Guarantees
//
//   - Virtual time passes only while every goroutine waits, so that no machine is
//     too slow for a bound in it.
//   - No socket and no file of the machine is opened.
//   - Losses and delays of a link come from a stream of its own, by the seed.
//
// # Non-guarantees
//
//   - The same seed does not give the same run: goroutines, libraries and their
//     random numbers are real. The discrete-event tier, package des, is the one that
//     repeats itself.
//   - A Swarm exists within one bubble, that of Run.
package live
