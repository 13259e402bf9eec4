package plan

import (
	"slices"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/stmt"
)

// Electorate is what this node knows of the voters of an instance.
type Electorate struct {
	Spec *crdt.Spec
	Dead []stmt.Key // confirmed by this node, in the spec's order
	Gone []stmt.Key // no member nodes, or away for so long that they count no more
}

// Lost says whether no majority is left, so that nothing of the instance runs by
// what this node sees.
func (e Electorate) Lost() bool {
	return tooFew(len(e.Spec.Voters)-len(e.Dead)-len(e.Gone), e.Spec) != ""
}

// Electorates lists the instances that are to run under a contract that counts
// voters, by ID.
func (w World) Electorates() []Electorate {
	var out []Electorate
	for i := range w.Instances {
		s := &w.Instances[i]
		if !counts(s) || s.Phase == crdt.PhaseStopped {
			continue
		}
		e := Electorate{Spec: s}
		for _, k := range s.Voters {
			switch {
			case w.nodeOf(k) == nil:
				e.Gone = append(e.Gone, k)
			case w.dead(k):
				e.Dead = append(e.Dead, k)
			}
		}
		out = append(out, e)
	}
	return out
}

// Overrun is an owner whose instances are more than its quota allows.
type Overrun struct {
	Owner     stmt.Key
	Over, All int    // replicas
	Why       string // of the first that is over
}

// Overruns lists the owners that are over their quotas, by key.
func (w World) Overruns() []Overrun {
	var owners []stmt.Key
	for i := range w.Instances {
		owners = append(owners, w.Instances[i].Owner)
	}
	slices.SortFunc(owners, stmt.Key.Compare)
	var out []Overrun
	for _, k := range slices.Compact(owners) {
		over := w.overQuota(k)
		if len(over) == 0 {
			continue
		}
		o := Overrun{Owner: k, Over: len(over)}
		for _, sh := range w.shares(k) {
			o.All++
			if e := over[Slot{sh.spec.ID, sh.slot}]; o.Why == "" {
				o.Why = e.why
			}
		}
		out = append(out, o)
	}
	return out
}
