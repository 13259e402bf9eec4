// Package names says what names the mesh has: a pure function of what is known.
//
// Names are relative to a zone. <app>.<owner> is an instance's, with an address
// for each slot; <slot>.<app>.<owner> is one replica's. <owner> is a key in the
// form of [Label]. Whoever has a scope, which is an owner, leaves out the <owner>
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
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/policy"
	"github.com/formthefog/formation/crdt/stmt"
)

// State is what the names are a function of; *crdt.View is one.
type State interface {
	policy.Claims
	Instances() []crdt.Spec
}

// Config is what a State does not say.
type Config struct {
	// Addresses are a replica's own: those that it claims and that nobody else
	// has; the zero Addr: none.
	Addresses func(policy.Party) (a4, a6 netip.Addr)
	// Alive says whether a node is there, as far as one knows; nil: all are.
	Alive func(node stmt.Key) bool
}

// Name is what a name means.
type Name struct {
	Name    string // relative to the zone: "hello.k51q…", "0.hello.k51q…"
	Targets []Target
	Ports   []Port // at every target
}

// Target is a replica.
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
	specs := slices.Clone(s.Instances())
	slices.SortStableFunc(specs, func(a, b crdt.Spec) int { return a.Owner.Compare(b.Owner) })
	for of := range chunks(specs, func(a, b crdt.Spec) bool { return a.Owner == b.Owner }) {
		names, wrong := ofOwner(s, cfg, of)
		out, problems = append(out, names...), append(problems, wrong...)
	}
	return out, problems
}

// OfOwner returns the names of an owner's instances, as [Of] does.
func OfOwner(s State, cfg Config, owner stmt.Key) ([]Name, []error) {
	return ofOwner(s, cfg, slices.DeleteFunc(slices.Clone(s.Instances()), func(i crdt.Spec) bool { return i.Owner != owner }))
}

// ofOwner is of the instances of one owner by ID; it reorders them.
func ofOwner(s State, cfg Config, specs []crdt.Spec) (out []Name, problems []error) {
	if len(specs) == 0 {
		return nil, nil
	}
	owner := specs[0].Owner
	if len(specs) > MaxInstances {
		problems = append(problems, fmt.Errorf("names: %d instances of %s, the limit is %d", len(specs), owner, MaxInstances))
		specs = specs[:MaxInstances]
	}
	label := Label(owner)
	slices.SortStableFunc(specs, func(a, b crdt.Spec) int { return cmp.Compare(a.Name, b.Name) })
	for same := range chunks(specs, func(a, b crdt.Spec) bool { return a.Name == b.Name }) {
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

// chunks yields the longest runs of what is alike.
func chunks(all []crdt.Spec, alike func(a, b crdt.Spec) bool) func(yield func([]crdt.Spec) bool) {
	return func(yield func([]crdt.Spec) bool) {
		for len(all) > 0 {
			n := 1
			for n < len(all) && alike(all[0], all[n]) {
				n++
			}
			if !yield(all[:n:n]) {
				return
			}
			all = all[n:]
		}
	}
}

// ofInstance is the instance's name, and one of each of its slots.
func ofInstance(s State, cfg Config, spec crdt.Spec, name string) []Name {
	out := make([]Name, 1, 1+spec.Replicas)
	out[0] = Name{Name: name, Ports: ports(spec.Expose)}
	for slot := range spec.Replicas {
		out = append(out, Name{Name: strconv.Itoa(slot) + "." + name})
	}
	for _, p := range policy.Replicas(s, spec) {
		at := &out[1+p.Slot]
		if len(at.Targets) > 0 || !p.Ready || cfg.Alive != nil && !cfg.Alive(p.Node) {
			continue
		}
		a4, a6 := cfg.Addresses(p)
		if !a4.IsValid() && !a6.IsValid() {
			continue
		}
		at.Targets = []Target{{Host: at.Name, Addr4: a4, Addr6: a6}}
		out[0].Targets = append(out[0].Targets, at.Targets...)
	}
	return out
}

// ports is SSH, and what the instance exposes ("8080/tcp"); what is not of that
// form is left out.
func ports(expose []string) []Port {
	out := []Port{{"_ssh._tcp", 22}}
	for _, e := range expose[:min(len(expose), maxPorts)] {
		number, proto, _ := strings.Cut(e, "/")
		n, err := strconv.ParseUint(number, 10, 16)
		p := Port{"_" + number + "._" + proto, uint16(n)}
		if err != nil || n == 0 || number[0] == '0' || proto != "tcp" && proto != "udp" || slices.Contains(out, p) {
			continue
		}
		out = append(out, p)
	}
	return out
}
