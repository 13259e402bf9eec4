package proc

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/stmt"
)

// own are the parts of an answer that differ by who is asked: what its probes say,
// and when it has found something.
var own = []string{"live", "self", "status", "reason", "omitted", "equivocations"}

// shared is an entry of a list without what is the answering node's own.
func shared(one map[string]any) (string, error) {
	for _, k := range own {
		delete(one, k)
	}
	if reps, ok := one["replicas"].([]any); ok {
		for _, rep := range reps {
			if m, ok := rep.(map[string]any); ok {
				delete(m, "live")
			}
		}
	}
	raw, err := json.Marshal(one) // keys are sorted
	return string(raw), err
}

// difference names an entry in which two listings differ.
func difference(a, b map[string]string) string {
	var names []string
	for name := range a { // any order: sorted below
		if a[name] != b[name] {
			names = append(names, name)
		}
	}
	for name := range b { // any order: sorted below
		if _, ok := a[name]; !ok {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return ""
	}
	slices.Sort(names)
	return fmt.Sprintf("%d of %d entries, as %s: %s, and %s", len(names), max(len(a), len(b)), names[0], a[names[0]], b[names[0]])
}

// asSigned says how a listing differs from what an owner's statements say; "": it
// does not.
func asSigned(listed []instance, of stmt.Key, specs []crdt.Spec) string {
	var a, b []string
	for _, i := range listed {
		if i.Owner == of {
			a = append(a, fmt.Sprintf("%s %s ×%d, restart %d, pack %s", i.ID, i.Name, i.Desired.Replicas, i.Spec.Restart, i.Pack))
		}
	}
	for _, s := range specs {
		b = append(b, fmt.Sprintf("%s %s ×%d, restart %d, pack %s", s.ID, s.Name, s.Replicas, s.Restart, s.Pack))
	}
	slices.Sort(a)
	slices.Sort(b)
	if slices.Equal(a, b) {
		return ""
	}
	return fmt.Sprintf("listed:\n\t%s\nsigned:\n\t%s", strings.Join(a, "\n\t"), strings.Join(b, "\n\t"))
}
