package routes

import (
	"cmp"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"

	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"github.com/formthefog/formation/cmd/internal/config"
	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/names"
	"github.com/formthefog/formation/crdt/policy"
	"github.com/formthefog/formation/crdt/stmt"
)

// Labels by which an ingress says what it serves: its first domain, or "on"; the
// ports of its sites; its range of plain ports.
const (
	labelDomain = config.ReservedLabel + "ingress"
	labelHTTP   = config.ReservedLabel + "ingress.http"
	labelHTTPS  = config.ReservedLabel + "ingress.https"
	labelPorts  = config.ReservedLabel + "ingress.ports"
)

// noDomain is for an ingress without one, or with one that is longer than a label.
const noDomain = "on"

// Labels are those of a node's register; nil where it is no ingress.
func Labels(c config.Config) map[string]string {
	if !c.Ingress {
		return nil
	}
	out := map[string]string{labelDomain: noDomain}
	if len(c.IngressDomain) > 0 && len(c.IngressDomain[0]) <= 63 {
		out[labelDomain] = c.IngressDomain[0]
	}
	for label, address := range map[string]string{labelHTTP: c.IngressHTTP, labelHTTPS: c.IngressHTTPS} {
		// Port 0 is another at each start, and for tests.
		if _, port, err := net.SplitHostPort(address); err == nil && port != "0" {
			out[label] = port
		}
	}
	if c.IngressPorts != "" {
		out[labelPorts] = c.IngressPorts
	}
	return out
}

// front is an ingress as its node's register has it.
type front struct {
	node        stmt.Key
	domain      string // "": none
	address     string // of the machine; "": not known
	http, https int    // 0: not served
	low, high   int
}

// frontOf reads a register; false: the node is no ingress. What is no port or no
// domain is as if it were not said: the node may say anything.
func frontOf(n *crdt.Node) (front, bool) {
	domain, ok := n.Labels[labelDomain]
	if !ok {
		return front{}, false
	}
	f := front{node: n.Key, address: outsideOf(n.Addrs), http: port(n.Labels[labelHTTP]), https: port(n.Labels[labelHTTPS])}
	if domain != noDomain && config.ValidDomain(domain) {
		f.domain = domain
	}
	if low, high, err := config.ParsePorts(n.Labels[labelPorts]); err == nil {
		f.low, f.high = low, high
	}
	return f, true
}

func port(word string) int {
	n, err := strconv.Atoi(word)
	if err != nil || n < 1 || n > 65535 {
		return 0
	}
	return n
}

// outsideOf is where others reach a machine: the first of its public addresses,
// else the first of all.
func outsideOf(addrs []string) string {
	var first netip.Addr
	for _, a := range addrs {
		m, err := ma.NewMultiaddr(a)
		if err != nil {
			continue
		}
		ip, err := manet.ToIP(m)
		if err != nil {
			continue
		}
		at, ok := netip.AddrFromSlice(ip)
		if _, circuit := m.ValueForProtocol(ma.P_CIRCUIT); !ok || circuit == nil {
			continue // of somebody who relays
		}
		if manet.IsPublicAddr(m) {
			return at.Unmap().String()
		}
		if !first.IsValid() {
			first = at.Unmap()
		}
	}
	if !first.IsValid() {
		return ""
	}
	return first.String()
}

// URL is one by which everybody reaches an instance: https, http, tcp or udp.
type URL struct {
	URL   string
	Nodes []stmt.Key // that serve it, in the order of their keys
	// Addresses are theirs, in the same order without those that are not known: what
	// a name must lead to.
	Addresses []string
}

// maxURLs bounds those of an instance: nodes may say that they are an ingress.
const maxURLs = 64

// Public returns the URLs of each instance that has some, by what ingress nodes
// say of themselves; zone is the network's, for those without a domain. Two nodes that know the same return the same. A site goes by
// the name with its owner in it; what several owners want, or two instances of
// one, is left out: who has it, the ingress decides.
func Public(s Swarm, nodes []crdt.Node, zone string) map[string][]URL {
	var fronts []front
	for i := range nodes {
		if f, ok := frontOf(&nodes[i]); ok {
			fronts = append(fronts, f)
		}
	}
	slices.SortFunc(fronts, func(a, b front) int { return a.node.Compare(b.node) })
	out := map[string][]URL{}
	if len(fronts) == 0 {
		return out
	}
	specs := s.Instances()
	wanted := countWanted(specs)
	for i := range specs {
		site, ports := wanted.left(&specs[i])
		by := map[string]*URL{}
		for _, f := range fronts {
			for _, u := range f.urls(&specs[i], site, ports, zone) {
				if by[u] == nil {
					by[u] = &URL{URL: u}
				}
				by[u].add(f)
			}
		}
		all := slices.SortedFunc(maps.Values(by), func(a, b *URL) int { return cmp.Compare(a.URL, b.URL) })
		for _, u := range all[:min(len(all), maxURLs)] {
			out[specs[i].ID] = append(out[specs[i].ID], *u)
		}
	}
	return out
}

// wanted counts who wants what.
type wanted struct {
	names map[ownName]int
	ports map[policy.Port]int
}

type ownName struct {
	owner stmt.Key
	name  string
}

func countWanted(specs []crdt.Spec) wanted {
	w := wanted{map[ownName]int{}, map[policy.Port]int{}}
	for i := range specs {
		w.names[ownName{specs[i].Owner, specs[i].Name}]++
		for _, p := range policy.PublicPorts(&specs[i]) {
			w.ports[p]++
		}
	}
	return w
}

// left is what of an instance nobody else wants: whether it has a site, and its
// ports.
func (w wanted) left(spec *crdt.Spec) (site bool, ports []policy.Port) {
	for _, p := range policy.PublicPorts(spec) {
		if p.Proto == "tcp" && spec.Name != "" && w.names[ownName{spec.Owner, spec.Name}] == 1 {
			site = true
		}
		if w.ports[p] == 1 {
			ports = append(ports, p)
		}
	}
	return site, ports
}

func (u *URL) add(f front) {
	u.Nodes = append(u.Nodes, f.node)
	if f.address != "" {
		u.Addresses = append(u.Addresses, f.address)
	}
}

// urls are those of an instance at one ingress.
func (f *front) urls(spec *crdt.Spec, site bool, ports []policy.Port, zone string) (out []string) {
	name := spec.Name + "." + names.Label(spec.Owner) + "." + cmp.Or(f.domain, zone)
	switch {
	case !site:
	case f.https != 0:
		out = append(out, "https://"+hostPort(name, f.https, 443))
	case f.http != 0:
		out = append(out, "http://"+hostPort(name, f.http, 80))
	}
	host := f.address
	if f.domain != "" && spec.Name != "" {
		host = name
	}
	for _, p := range ports {
		if host != "" && p.Number >= f.low && p.Number <= f.high {
			out = append(out, p.Proto+"://"+hostPort(host, p.Number, 0))
		}
	}
	return out
}

// hostPort leaves a scheme's own port out.
func hostPort(host string, port, own int) string {
	if port == own {
		return host
	}
	return net.JoinHostPort(host, strconv.Itoa(port))
}
