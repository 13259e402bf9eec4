package mesh

import (
	"github.com/formthefog/formation/crdt/names"
	"github.com/formthefog/formation/crdt/stmt"
	"github.com/formthefog/formation/wg/dns"
)

// Names are those of everybody in the book, as a DNS server takes them, and what
// is wrong with some of them. alive says whether a node is there, as far as one
// knows; nil: all are.
func (b *Book) Names(alive func(node stmt.Key) bool) ([]dns.Name, []error) {
	cfg := names.Config{Alive: alive}
	all, problems := names.Of(b, cfg)
	all = append(all, names.OfNodes(b, cfg, b.nodes)...)
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
	return out, problems
}
