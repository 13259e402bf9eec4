// Package scenario says, as data, what happens to a swarm and what must be true of
// it then. A scenario is one YAML file (docs/scenarios.md); with a number of nodes
// and a seed it gives a schedule: a list of steps, each at its time, which any tier
// of the simulator carries out.
//
// Guarantees:
//
//   - The same scenario, nodes and seed give the same steps, on every machine.
//
//   - Each step has a number of its own to draw from for what it leaves open, such
//     as which of the nodes that run something it hits. Leaving one step out changes
//     nothing about the others, so that a schedule can be shrunk.
//
//   - What a file says wrong is refused with the line that says it.
//
// Non-guarantees: whether a tier can carry a step out is the tier's to say.
package scenario
