// Package routes says what an ingress node serves: a pure function of what is
// known.
//
// The first public TCP port of an instance, in the order of its pack, is a site:
// <app>.<owner>.<zone> for each of the node's zones (<owner> is names.Label of the
// owner's key), and <app>.<domain> for each of its domains. A public port whose
// number is in the node's range is served under that number.
//
// Guarantees: two nodes that know the same, and are configured the same, serve the
// same. An owner's name leads to that owner's instance only; two instances of one
// owner that share a name have none. Where several owners want <app>.<domain>, or
// a port's number, the owners that the node names first have it, in that order,
// and else the one with the lowest key: who must not depend on that uses the name
// with the owner in it.
//
// Not guaranteed: that a replica answers: it says that it is ready.
package routes

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/names"
	"github.com/formthefog/formation/crdt/policy"
	"github.com/formthefog/formation/crdt/stmt"
	"github.com/formthefog/formation/wg/ingress"
)

// Config is how a node serves. Names are in lower case.
type Config struct {
	Zones   []string   // of names with the owner
	Domains []string   // of names without
	First   []stmt.Key // owners who come before others
	// Low and High are the range of plain ports; 0: none is served.
	Low, High int
	// Gone says whether a node is known to be dead; nil: none is.
	Gone func(stmt.Key) bool
}

// Swarm is what is known; *crdt.View is one.
type Swarm interface {
	policy.Claims
	Instances() []crdt.Spec
}

// ReplicaID is how a replica is called as a [ingress.Replica].
func ReplicaID(instance string, p policy.Place) string {
	return instance + "/" + strconv.Itoa(p.Slot) + "/" + p.Node.String()
}

// ParseReplica reads what ReplicaID has written.
func ParseReplica(id string) (instance string, p policy.Place, err error) {
	parts := strings.Split(id, "/")
	if len(parts) != 3 {
		return "", p, fmt.Errorf("%q is no replica", id)
	}
	if p.Slot, err = strconv.Atoi(parts[1]); err == nil {
		p.Node, err = stmt.ParseKey(parts[2])
	}
	if err != nil {
		return "", p, fmt.Errorf("%q is no replica: %w", id, err)
	}
	return parts[0], p, nil
}

// Of returns what to serve, and what cannot be because somebody else has it.
func Of(s Swarm, c Config) (ingress.Desired, []string) {
	b := builder{c: c, s: s, out: ingress.Desired{Sites: map[string]ingress.Service{}, Ports: map[ingress.Port]ingress.Service{}}}
	specs := slices.Clone(s.Instances())
	slices.SortFunc(specs, func(x, y crdt.Spec) int {
		return cmp.Or(cmp.Compare(b.rank(x.Owner), b.rank(y.Owner)), x.Owner.Compare(y.Owner), cmp.Compare(x.Name, y.Name), cmp.Compare(x.ID, y.ID))
	})
	for i := 0; i < len(specs); {
		j := i + 1
		for j < len(specs) && specs[j].Owner == specs[i].Owner && specs[j].Name == specs[i].Name {
			j++
		}
		for k := i; k < j; k++ {
			b.add(&specs[k], j-i == 1)
		}
		i = j
	}
	return b.out, b.problems
}

type builder struct {
	c        Config
	s        Swarm
	out      ingress.Desired
	problems []string
}

func (b *builder) rank(owner stmt.Key) int {
	if i := slices.Index(b.c.First, owner); i >= 0 {
		return i
	}
	return len(b.c.First)
}

// add serves an instance; named says whether no other has its name.
func (b *builder) add(spec *crdt.Spec, named bool) {
	ports := policy.PublicPorts(spec)
	if len(ports) == 0 {
		return
	}
	replicas := b.replicas(spec)
	site := slices.IndexFunc(ports, func(p policy.Port) bool { return p.Proto == "tcp" })
	switch {
	case site < 0:
	case !named:
		b.problem("%s: two instances of its owner have that name", spec.Name)
	case spec.Name != "":
		service := ingress.Service{Port: ports[site].Number, Replicas: replicas}
		for _, zone := range b.c.Zones {
			b.out.Sites[spec.Name+"."+names.Label(spec.Owner)+"."+zone] = service
		}
		for _, domain := range b.c.Domains {
			name := spec.Name + "." + domain
			if _, taken := b.out.Sites[name]; taken {
				b.problem("%s: another owner has that name", name)
				continue
			}
			b.out.Sites[name] = service
		}
	}
	for _, p := range ports {
		if p.Number < b.c.Low || p.Number > b.c.High {
			continue
		}
		at := ingress.Port{Network: p.Proto, Number: p.Number}
		if _, taken := b.out.Ports[at]; taken {
			b.problem("%d/%s of %s: another instance has that port", p.Number, p.Proto, spec.Name)
			continue
		}
		b.out.Ports[at] = ingress.Service{Port: p.Number, Replicas: replicas}
	}
}

func (b *builder) replicas(spec *crdt.Spec) (out []ingress.Replica) {
	for _, p := range policy.Serving(b.s, *spec) {
		out = append(out, ingress.Replica{ID: ReplicaID(spec.ID, p), Gone: b.c.Gone != nil && b.c.Gone(p.Node)})
	}
	return out
}

// maxProblems bounds what is told.
const maxProblems = 64

func (b *builder) problem(format string, args ...any) {
	if len(b.problems) < maxProblems {
		b.problems = append(b.problems, fmt.Sprintf(format, args...))
	}
}
