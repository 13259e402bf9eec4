package policy

import (
	"fmt"
	"testing"

	"github.com/formthefog/formation/crdt"
)

func TestParsePort(t *testing.T) {
	for word, want := range map[string]Port{
		"8080/tcp": {8080, "tcp", false}, "53/udp public": {53, "udp", true}, "65535/tcp public": {65535, "tcp", true},
	} {
		if got, ok := ParsePort(word); !ok || got != want || got.String() != word {
			t.Errorf("%q: %v %v", word, got, ok)
		}
	}
	for _, bad := range []string{"", "8080", "0/tcp", "08/tcp", "65536/tcp", "-1/tcp", "+1/tcp", "80/sctp", "80/tcp private", "80/tcp public ", "80/tcp public public", "80 public/tcp", "80/TCP"} {
		if got, ok := ParsePort(bad); ok {
			t.Errorf("%q is %v", bad, got)
		}
	}
}

func TestPublicPorts(t *testing.T) {
	spec := crdt.Spec{Expose: []string{"22/tcp", "8080/tcp public", "nonsense", "8080/tcp public", "53/udp public", "53/tcp"}}
	if got := fmt.Sprint(PublicPorts(&spec)); got != "[8080/tcp public 53/udp public]" {
		t.Error(got)
	}
	for _, tt := range []struct {
		proto  string
		number int
		want   bool
	}{{"tcp", 8080, true}, {"udp", 53, true}, {"tcp", 53, false}, {"tcp", 22, false}, {"udp", 8080, false}, {"", 8080, false}, {"tcp", 0, false}} {
		if got := IsPublic(&spec, tt.proto, tt.number); got != tt.want {
			t.Errorf("%d/%s: %v", tt.number, tt.proto, got)
		}
	}
	for n := range 100 {
		spec.Expose = append(spec.Expose, fmt.Sprintf("%d/tcp public", 1000+n))
	}
	if got := len(PublicPorts(&spec)); got > maxExposed {
		t.Errorf("%d ports count", got)
	}
}

func TestServing(t *testing.T) {
	a := id('o', 1)
	for _, tt := range []struct {
		name   string
		change func(w *world)
		want   string
	}{
		{"as it is", func(*world) {}, "0@1 1@2"},
		{"a guest that is not on the mesh", func(w *world) { w.claims[0].MeshKey = "" }, "0@1 1@2"},
		{"one is not ready", func(w *world) { w.claims[0].Ready = false }, "1@2"},
		{"node 2 may not run it", func(w *world) { w.barred[id('n', 2)] = true }, "0@1"},
		{"scaled down", func(w *world) { w.specs[0].Replicas = 1 }, "0@1"},
		{"a claim in another's name", func(w *world) { w.claims[1].Owner = id('o', 2) }, "0@1"},
		{"a replica has moved", func(w *world) { w.claims = append(w.claims, claim("app", a, 1, 3, 2)) }, "0@1 1@3 1@2"},
		{"many claim a slot", func(w *world) {
			for n := range 5 {
				w.claims = append(w.claims, claim("app", a, 1, 3+n, 2))
			}
		}, "0@1 1@7 1@6"},
	} {
		w := two()
		tt.change(w)
		got := ""
		for i, p := range Serving(w, w.specs[0]) {
			if i > 0 {
				got += " "
			}
			got += fmt.Sprintf("%d@%d", p.Slot, p.Node[1])
		}
		if got != tt.want {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}

// What is read is written the same, and nothing else is read.
func FuzzParsePort(f *testing.F) {
	for _, word := range []string{"8080/tcp", "53/udp public", "08/tcp", "80/tcp  public", "65536/udp", "+1/tcp"} {
		f.Add(word)
	}
	f.Fuzz(func(t *testing.T, word string) {
		p, ok := ParsePort(word)
		if ok && (p.String() != word || p.Number < 1 || p.Number > 65535 || p.Proto != "tcp" && p.Proto != "udp") {
			t.Fatalf("%q is read as %q", word, p)
		}
	})
}
