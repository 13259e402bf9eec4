// Package agent is a developer's device on the mesh: WireGuard in user space, which
// needs no rights, for all of a user's forms at once. Two processes with one
// WireGuard key cut each other off, so one process, the agent, has it; a form starts
// it, asks it for connections over a unix socket, and it ends by itself when nobody
// has asked for a while.
//
// Guarantees: nobody becomes a peer but who the owner's and the nodes' own signed
// statements say is one; they are verified here, and what a node answers beside
// them is not believed. The agent has the device's key and never the owner's. Its
// socket is its user's alone.
//
// Not guaranteed: that a node tells all it knows: it can withhold a replica, or that
// one is gone. In an open network, where anybody is a node, anybody can claim to run
// a replica whose spec names no operators.
package agent
