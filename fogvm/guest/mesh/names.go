package mesh

import (
	"context"
	"net/netip"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/names"
	"github.com/formthefog/formation/crdt/policy"
	"github.com/formthefog/formation/wg"
	"github.com/formthefog/formation/wg/dns"
)

// answerer answers what the names of the owner's instances lead to, from what was
// proved to the guest: a host that lied about a name could have the guest talk to
// somebody outside the mesh.
type answerer struct {
	at     netip.Addr
	server *dns.Server
}

func newAnswerer(pin Pin, space wg.Space) (*answerer, error) {
	scope := names.Label(pin.Owner)
	s, err := dns.New(dns.Config{Zone: pin.Full().Zone, Reverse: []netip.Prefix{space.Prefix4(), space.Prefix6()},
		Scope: func(netip.Addr) string { return scope }})
	return &answerer{space.DNS4(), s}, err
}

// serve answers until ctx ends. Without it the guest is on the mesh all the same.
func (m *Mesh) serve(ctx context.Context) {
	if err := m.cfg.Names(ctx, m.names.server, m.names.at); err != nil && ctx.Err() == nil {
		m.cfg.Log.Warn("mesh: names", "error", err)
	}
}

// setNames has the answers be what is known now. self and theirs are the
// addresses of the guest and of parties. m.mu is held.
func (m *Mesh) setNames(self []netip.Addr, parties []policy.Party, theirs [][]netip.Addr) {
	addresses := map[string][]netip.Addr{string(m.pin.identity()): self}
	for i, p := range parties {
		// Whom the host knows no way to is not there, as far as one can say here.
		if _, ok := m.where[wg.Key(p.Key)]; ok {
			addresses[string(p.Identity())] = theirs[i]
		}
	}
	all, problems := names.OfOwner(proved{m.verifier.believed(), addresses}, names.Config{}, m.pin.Owner)
	out := make([]dns.Name, len(all))
	for i, n := range all {
		out[i].Name = n.Name
		for _, t := range n.Targets {
			out[i].Targets = append(out[i].Targets, dns.Target(t))
		}
		for _, p := range n.Ports {
			out[i].Services = append(out[i].Services, dns.Service{Label: p.Service, Port: p.Port})
		}
	}
	if err := m.names.server.Set(out); err != nil {
		problems = append(problems, err)
	}
	for _, p := range problems {
		m.cfg.Log.Debug("mesh: names", "problem", p)
	}
}

// proved is a names.State of what the guest knows; addresses are by identity.
type proved struct {
	believed
	addresses map[string][]netip.Addr
}

func (p proved) Replicas(spec *crdt.Spec) []policy.Party { return policy.Replicas(p.believed, *spec) }

func (p proved) Addresses(of policy.Party) (a4, a6 netip.Addr) {
	for _, a := range p.addresses[string(of.Identity())] {
		if a.Is4() {
			a4 = a
		} else {
			a6 = a
		}
	}
	return a4, a6
}
