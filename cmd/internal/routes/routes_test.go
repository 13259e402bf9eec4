package routes

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/names"
	"github.com/formthefog/formation/crdt/policy"
	"github.com/formthefog/formation/crdt/stmt"
	"github.com/formthefog/formation/wg/ingress"
)

// world is a Swarm made by hand.
type world struct {
	specs  []crdt.Spec
	claims []crdt.Claim
}

func (w *world) Instances() []crdt.Spec { return w.specs }
func (w *world) Claims(id string) []crdt.Claim {
	return slices.DeleteFunc(slices.Clone(w.claims), func(c crdt.Claim) bool { return c.Instance != id })
}
func (w *world) MayRun(_ *crdt.Spec, node stmt.Key) bool { return node != key('n', 9) }

func key(kind byte, n int) stmt.Key { return stmt.Key{kind, byte(n)} }

func (w *world) add(id, name string, owner int, expose string, nodes ...int) {
	w.specs = append(w.specs, crdt.Spec{ID: id, Name: name, Owner: key('o', owner), Replicas: 2, Expose: strings.Split(expose, ", ")})
	for slot, n := range nodes {
		w.claims = append(w.claims, crdt.Claim{Node: key('n', n), Instance: id, Owner: key('o', owner), Slot: slot, Generation: 1, Ready: true})
	}
}

// text renders what is served, owners and nodes by their numbers.
func text(d ingress.Desired) string {
	var lines []string
	service := func(s ingress.Service) string {
		out := fmt.Sprintf(":%d", s.Port)
		for _, r := range s.Replicas {
			instance, p, err := ParseReplica(r.ID)
			if err != nil {
				return err.Error()
			}
			out += fmt.Sprintf(" %s/%d@%d", instance, p.Slot, p.Node[1])
			if r.Gone {
				out += "!"
			}
		}
		return out
	}
	for name, s := range d.Sites {
		for n := range 4 {
			name = strings.ReplaceAll(name, names.Label(key('o', n)), fmt.Sprintf("o%d", n))
		}
		lines = append(lines, name+service(s))
	}
	for p, s := range d.Ports {
		lines = append(lines, fmt.Sprintf("%s/%d%s", p.Network, p.Number, service(s)))
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

func TestRoutes(t *testing.T) {
	type change = func(w *world, c *Config)
	for _, tt := range []struct {
		name     string
		change   change
		want     string
		problems string
	}{
		{"as it is", func(*world, *Config) {}, "web.o1.zone:80 a/0@1 a/1@2", ""},
		{"nothing public", func(w *world, _ *Config) { w.specs[0].Expose = []string{"80/tcp", "nonsense"} }, "", ""},
		{"the first public port", func(w *world, _ *Config) {
			w.specs[0].Expose = []string{"1/tcp", "53/udp public", "8080/tcp public", "80/tcp public"}
		}, "web.o1.zone:8080 a/0@1 a/1@2", ""},
		{"a domain", func(_ *world, c *Config) { c.Domains = []string{"example.org"} },
			"web.example.org:80 a/0@1 a/1@2\nweb.o1.zone:80 a/0@1 a/1@2", ""},
		{"a node that is dead", func(_ *world, c *Config) { c.Gone = func(k stmt.Key) bool { return k == key('n', 2) } }, "web.o1.zone:80 a/0@1 a/1@2!", ""},
		{"a replica that is not ready", func(w *world, _ *Config) { w.claims[0].Ready = false }, "web.o1.zone:80 a/1@2", ""},
		{"a node that may not run it", func(w *world, _ *Config) { w.claims[0].Node = key('n', 9) }, "web.o1.zone:80 a/1@2", ""},
		{"none is ready", func(w *world, _ *Config) { w.claims = nil }, "web.o1.zone:80", ""},
		{"ports of the range", func(w *world, c *Config) {
			w.specs[0].Expose = []string{"7000/tcp public", "7001/udp public", "7002/tcp public", "7001/tcp", "6999/tcp public"}
			c.Low, c.High = 7000, 7001
		}, "tcp/7000:7000 a/0@1 a/1@2\nudp/7001:7001 a/0@1 a/1@2\nweb.o1.zone:7000 a/0@1 a/1@2", ""},
		{"two owners", func(w *world, c *Config) {
			w.add("b", "web", 2, "80/tcp public", 3)
			c.Domains = []string{"example.org"}
		}, "web.example.org:80 a/0@1 a/1@2\nweb.o1.zone:80 a/0@1 a/1@2\nweb.o2.zone:80 b/0@3", "web.example.org: another owner has that name"},
		{"two owners, one of the node's", func(w *world, c *Config) {
			w.add("b", "web", 2, "80/tcp public", 3)
			c.Domains, c.First = []string{"example.org"}, []stmt.Key{key('o', 3), key('o', 2)}
		}, "web.example.org:80 b/0@3\nweb.o1.zone:80 a/0@1 a/1@2\nweb.o2.zone:80 b/0@3", "web.example.org: another owner has that name"},
		{"two of one name", func(w *world, c *Config) {
			w.add("b", "web", 1, "80/tcp public", 3)
			w.add("c", "web", 2, "80/tcp public", 3)
			c.Domains = []string{"example.org"}
		}, "web.example.org:80 c/0@3\nweb.o2.zone:80 c/0@3", "web: two instances of its owner have that name; web: two instances of its owner have that name"},
		{"two of one port", func(w *world, c *Config) {
			w.add("b", "db", 1, "7000/tcp public", 3)
			w.add("c", "db", 0, "7000/tcp public, 7000/udp public", 4)
			w.specs[0].Expose, c.Low, c.High, c.Zones = nil, 7000, 7999, nil
		}, "tcp/7000:7000 c/0@4\nudp/7000:7000 c/0@4", "7000/tcp of db: another instance has that port"},
	} {
		w, c := &world{}, Config{Zones: []string{"zone"}}
		w.add("a", "web", 1, "22/tcp, 80/tcp public", 1, 2)
		tt.change(w, &c)
		got, problems := Of(w, c)
		slices.Reverse(w.specs) // in whatever order they come
		again, _ := Of(w, c)
		if text(got) != tt.want || strings.Join(problems, "; ") != tt.problems {
			t.Errorf("%s: got\n%s\n%v\nwant\n%s", tt.name, text(got), problems, tt.want)
		}
		if text(again) != text(got) || !maps.EqualFunc(got.Ports, again.Ports, func(x, y ingress.Service) bool { return x.Port == y.Port }) {
			t.Errorf("%s: in another order\n%s", tt.name, text(again))
		}
	}
}

func TestReplicaID(t *testing.T) {
	want := policy.Place{Slot: 3, Node: key('n', 1)}
	id := ReplicaID("inst", want)
	if instance, got, err := ParseReplica(id); err != nil || instance != "inst" || got != want {
		t.Errorf("%s: %s %v %v", id, instance, got, err)
	}
	for _, bad := range []string{"", "a/b", "a/x/" + want.Node.String(), "a/1/key", id + "/1"} {
		if _, _, err := ParseReplica(bad); err == nil {
			t.Errorf("%q is read", bad)
		}
	}
}
