package routes

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/formthefog/formation/cmd/internal/config"
	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/names"
	"github.com/formthefog/formation/crdt/stmt"
)

// urls renders what Public has, owners and nodes by their numbers.
func urls(by map[string][]URL) string {
	var lines []string
	for id, all := range by {
		for _, u := range all {
			line := id + " " + u.URL
			for n := range 4 {
				line = strings.ReplaceAll(line, names.Label(key('o', n)), fmt.Sprintf("o%d", n))
			}
			for _, n := range u.Nodes {
				line += fmt.Sprintf(" @%d", n[1])
			}
			lines = append(lines, strings.Join(append([]string{line}, u.Addresses...), " "))
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// ingressNode is a node with the labels of a configuration.
func ingressNode(n int, c config.Config, addrs ...string) crdt.Node {
	c.Ingress = true
	return crdt.Node{Key: key('n', n), Labels: Labels(c), Addrs: addrs}
}

func TestPublic(t *testing.T) {
	own := config.Config{IngressHTTP: ":80", IngressHTTPS: ":443", IngressDomain: []string{"apps.example.org"}, IngressPorts: "7000-7999"}
	change := func(f func(*config.Config)) config.Config {
		c := own
		f(&c)
		return c
	}
	const circuit = "/p2p/12D3KooWLjXFZYbC4DKWsYfb8Hp9hjPoxfkKyPUNNBR9NgH3MHfV/p2p-circuit"
	all := []string{"80/tcp public", "7000/tcp public", "7001/udp public", "8000/tcp public", "7002/tcp"}
	for _, tt := range []struct {
		name  string
		nodes []crdt.Node
		more  func(w *world)
		want  string
	}{
		{"no ingress", []crdt.Node{{Key: key('n', 1)}}, nil, ""},
		{"one", []crdt.Node{ingressNode(1, own, "/ip4/10.0.0.7/tcp/1", "/ip4/44.0.0.1/udp/1/quic-v1")}, nil,
			"a https://web.o1.apps.example.org @1 44.0.0.1\na tcp://web.o1.apps.example.org:7000 @1 44.0.0.1\na udp://web.o1.apps.example.org:7001 @1 44.0.0.1"},
		{"two behind one name, and another with an address alone", []crdt.Node{
			ingressNode(3, change(func(c *config.Config) {
				c.IngressDomain, c.IngressHTTPS, c.IngressPorts = nil, "off", "7000"
			}), "/ip6/2a00::1/tcp/1"),
			ingressNode(2, own), ingressNode(1, own, "/ip4/44.0.0.1/tcp/1"+circuit, "/ip4/10.0.0.7/tcp/1")}, nil,
			"a http://web.o1.dev.formation.cloud @3 2a00::1\na https://web.o1.apps.example.org @1 @2 10.0.0.7\na tcp://[2a00::1]:7000 @3 2a00::1\n" +
				"a tcp://web.o1.apps.example.org:7000 @1 @2 10.0.0.7\na udp://web.o1.apps.example.org:7001 @1 @2 10.0.0.7"},
		{"other ports", []crdt.Node{ingressNode(1, change(func(c *config.Config) { c.IngressHTTPS, c.IngressPorts = "127.0.0.1:8443", "" }))}, nil,
			"a https://web.o1.apps.example.org:8443 @1"},
		{"no sites, and nothing known of it", []crdt.Node{ingressNode(1, change(func(c *config.Config) {
			c.IngressHTTP, c.IngressHTTPS, c.IngressDomain = "off", "127.0.0.1:0", nil
		}))}, nil, ""},
		{"a long domain", []crdt.Node{ingressNode(1, change(func(c *config.Config) {
			c.IngressDomain, c.IngressPorts = []string{strings.Repeat("a.", 40) + "org"}, ""
		}))}, nil, "a https://web.o1.dev.formation.cloud @1"},
		{"a node that says nonsense", []crdt.Node{{Key: key('n', 1), Addrs: []string{"x", "/dns4/x/tcp/1"}, Labels: map[string]string{
			labelDomain: "evil.org/?", labelHTTP: "80", labelHTTPS: "443@evil.org", labelPorts: "1-65535"}}}, nil,
			"a http://web.o1.dev.formation.cloud @1"},
		{"what others want", []crdt.Node{ingressNode(1, own)}, func(w *world) { w.add("b", "web", 2, "7001/udp public, 81/tcp public", 3) },
			"a https://web.o1.apps.example.org @1\na tcp://web.o1.apps.example.org:7000 @1\nb https://web.o2.apps.example.org @1"},
		{"two of one name", []crdt.Node{ingressNode(1, own)}, func(w *world) { w.add("b", "web", 1, "81/tcp public", 3) },
			"a tcp://web.o1.apps.example.org:7000 @1\na udp://web.o1.apps.example.org:7001 @1"},
	} {
		w := &world{}
		w.add("a", "web", 1, strings.Join(all, ", "), 1, 2)
		if tt.more != nil {
			tt.more(w)
		}
		if got := urls(Public(w, tt.nodes, names.Zone)); got != tt.want {
			t.Errorf("%s: got\n%s\nwant\n%s", tt.name, got, tt.want)
		}
		slices.Reverse(w.specs)
		slices.Reverse(tt.nodes)
		if got := urls(Public(w, tt.nodes, names.Zone)); got != tt.want {
			t.Errorf("%s, in another order:\n%s", tt.name, got)
		}
	}
}

// Every node may say that it is an ingress: what is told of an instance is bounded.
func TestPublicIsBounded(t *testing.T) {
	w := &world{}
	w.add("a", "web", 1, "80/tcp public", 1)
	var nodes []crdt.Node
	for i := range 3 * maxURLs {
		n := ingressNode(0, config.Config{IngressHTTPS: ":443", IngressDomain: []string{fmt.Sprintf("d%d.org", i)}})
		n.Key = stmt.Key{byte(i), byte(i >> 8)}
		nodes = append(nodes, n)
	}
	if got := Public(w, nodes, names.Zone)["a"]; len(got) != maxURLs {
		t.Errorf("%d URLs, want %d", len(got), maxURLs)
	}
}
