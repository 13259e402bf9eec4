// Package names says what names the mesh has: a pure function of what is known.
//
// Names are relative to a zone. <app>.<owner> is an instance's, with an address
// for each slot; <slot>.<app>.<owner> is one replica's, <node>.node a node's.
// <owner> and <node> are keys in the form of [Label]. Whoever has a scope, which is an owner, leaves out the <owner>
// of its own: that is up to who answers.
//
// Guarantees: a name leads to replicas only that say they are ready, on nodes
// that are there, whose claims count ([policy.Replicas]), and of a slot to one: a
// replica that moves is answered where it was until it is ready where it goes. A
// name whose replicas are all down is there and leads nowhere, so that nobody is
// sent to what does not answer and nobody takes the name for a mistake. Two
// instances of one owner that share a name have none: neither is guessed.
//
// Not guaranteed: that who asks may talk to whom a name leads to; the policy says
// that.
package names

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/policy"
	"github.com/formthefog/formation/crdt/stmt"
)

// State is what the names are a function of.
type State interface {
	Instances() []crdt.Spec
	// Replicas are those of an instance, as [policy.Replicas] says.
	Replicas(spec *crdt.Spec) []policy.Party
	// Addresses are a party's own: those that it claims and that nobody else has;
	// the zero Addr: none.
	Addresses(policy.Party) (a4, a6 netip.Addr)
}

// Config is what a State does not say.
type Config struct {
	// Alive says whether a node is there, as far as one knows; nil: all are.
	Alive func(node stmt.Key) bool
}

// Name is what a name means.
type Name struct {
	Name    string // relative to the zone: "hello.k51q…", "0.hello.k51q…"
	Targets []Target
	Ports   []Port // at every target
}

// Target is a machine.
type Target struct {
	Host  string // its own name, relative to the zone
	Addr4 netip.Addr
	Addr6 netip.Addr
}

// Port is where a service is.
type Port struct {
	Service string // "_ssh._tcp", "_8080._tcp"
	Port    uint16
}

// Bounds of what one owner and one instance put into a zone.
const (
	MaxInstances = 4096 // of an owner; the first by ID
	maxPorts     = 32
)

// Of returns the names of all instances, sorted, and what is wrong with some of
// them.
func Of(s State, cfg Config) (out []Name, problems []error) {
	specs, of := s.Instances(), map[stmt.Key][]*crdt.Spec{}
	for i := range specs {
		of[specs[i].Owner] = append(of[specs[i].Owner], &specs[i])
	}
	for _, owner := range slices.SortedFunc(maps.Keys(of), stmt.Key.Compare) {
		names, wrong := ofOwner(s, cfg, of[owner])
		out, problems = append(out, names...), append(problems, wrong...)
	}
	return out, problems
}

// Nodes is below which name nodes have theirs. No owner's label is that short.
const Nodes = "node"

// OfNodes returns the names of nodes, as [policy.Nodes] lists them.
func OfNodes(s State, cfg Config, nodes []policy.Party) []Name {
	out := make([]Name, len(nodes))
	for i, p := range nodes {
		out[i].Name = Label(p.Node) + "." + Nodes
		out[i].Targets = cfg.targets(s, out[i].Name, p)
	}
	return out
}

// targets is the party, when somebody can be sent there.
func (cfg Config) targets(s State, host string, p policy.Party) []Target {
	if !p.Ready || cfg.Alive != nil && !cfg.Alive(p.Node) {
		return nil
	}
	a4, a6 := s.Addresses(p)
	if !a4.IsValid() && !a6.IsValid() {
		return nil
	}
	return []Target{{Host: host, Addr4: a4, Addr6: a6}}
}

// OfOwner returns the names of an owner's instances, as [Of] does.
func OfOwner(s State, cfg Config, owner stmt.Key) ([]Name, []error) {
	all, of := s.Instances(), []*crdt.Spec(nil)
	for i := range all {
		if all[i].Owner == owner {
			of = append(of, &all[i])
		}
	}
	return ofOwner(s, cfg, of)
}

// ofOwner is of the instances of one owner by ID; it reorders them.
func ofOwner(s State, cfg Config, specs []*crdt.Spec) (out []Name, problems []error) {
	if len(specs) == 0 {
		return nil, nil
	}
	owner := specs[0].Owner
	if len(specs) > MaxInstances {
		problems = append(problems, fmt.Errorf("names: %d instances of %s, the limit is %d", len(specs), owner, MaxInstances))
		specs = specs[:MaxInstances]
	}
	label := Label(owner)
	slices.SortStableFunc(specs, func(a, b *crdt.Spec) int { return cmp.Compare(a.Name, b.Name) })
	for same := range sameName(specs) {
		spec, name := same[0], same[0].Name+"."+label
		if len(same) > 1 {
			problems = append(problems, fmt.Errorf("names: %s is the name of %d instances of %s, so it leads to none", spec.Name, len(same), owner))
			out = append(out, Name{Name: name})
			continue
		}
		out = append(out, ofInstance(s, cfg, spec, name)...)
	}
	return out, problems
}

// sameName yields the instances of one name after the other.
func sameName(sorted []*crdt.Spec) func(yield func([]*crdt.Spec) bool) {
	return func(yield func([]*crdt.Spec) bool) {
		for len(sorted) > 0 {
			n := 1
			for n < len(sorted) && sorted[n].Name == sorted[0].Name {
				n++
			}
			if !yield(sorted[:n:n]) {
				return
			}
			sorted = sorted[n:]
		}
	}
}

// ofInstance is the instance's name, and one of each of its slots.
func ofInstance(s State, cfg Config, spec *crdt.Spec, name string) []Name {
	out := make([]Name, 1, 1+spec.Replicas)
	out[0] = Name{Name: name, Ports: ports(spec.Expose)}
	for slot := range spec.Replicas {
		out = append(out, Name{Name: strconv.Itoa(slot) + "." + name})
	}
	for _, p := range s.Replicas(spec) {
		at := &out[1+p.Slot]
		if len(at.Targets) > 0 {
			continue
		}
		at.Targets = cfg.targets(s, at.Name, p)
		out[0].Targets = append(out[0].Targets, at.Targets...)
	}
	return out
}

// ports is SSH, and what the instance exposes; what is not of that form is left
// out.
func ports(expose []string) []Port {
	out := []Port{{"_ssh._tcp", 22}}
	for _, e := range expose[:min(len(expose), maxPorts)] {
		x, ok := policy.ParsePort(e)
		p := Port{"_" + strconv.Itoa(x.Number) + "._" + x.Proto, uint16(x.Number)}
		if ok && !slices.Contains(out, p) {
			out = append(out, p)
		}
	}
	return out
}
