// Package gossip is a model of go-libp2p-pubsub's router (gossipsub v1.2), one topic,
// for all nodes of a swarm at once, so that ten thousand of them cost little: who
// meshes with whom, who sends what to whom, and when it arrives. It has no clock,
// goroutine, socket or unseeded randomness, and takes from its [Env] how long a
// packet is under way.
//
// What is as in the library: connections come first, and the mesh is chosen among
// them by heartbeats (D, Dlo, Dhi, Dscore, Dout), with GRAFT, PRUNE and back-off;
// messages go to the mesh, those of one's own to all peers (flood publish); IHAVE
// goes to some of those outside of the mesh for three heartbeats, IWANT brings what
// is missing; IDONTWANT keeps copies of large messages away; opportunistic grafting
// improves a mesh whose peers score low.
//
// What is not: a router has one topic; peers do not misbehave, so that scores are
// what Env says and no more; queues never overflow; messages are judged in no time;
// control that could travel with a message travels alone.
//
// A heartbeat that would change nothing and tell nobody anything does not happen,
// and a copy that comes to a node after another one is counted and does not happen:
// so what a message costs to simulate follows the number of nodes, and what a silent
// swarm costs, nothing.
package gossip
