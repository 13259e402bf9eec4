// Package sim runs scenarios (package scenario) and holds what happened to what must
// be true: always, and once all is calm. It has the library of scenarios, and shrinks
// the schedule of a run that breaks something.
//
// Guarantees: in the discrete-event tier (package des) a scenario, a number of nodes
// and a seed give the same events; a run is repeated and compared unless told
// otherwise. A shrunk schedule breaks the invariant that the whole one broke.
//
// Non-guarantees: that nothing is broken in a run says nothing about other seeds.
package sim
