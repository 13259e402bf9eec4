package names

import (
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/formthefog/formation/crdt/stmt"
)

// The label is what other programs print for the same key: `ipfs cid format -b
// base36 -f %s --v 1 --codec libp2p-key 12D3Koo…`.
func TestLabelIsOfIPFS(t *testing.T) {
	key, err := stmt.ParseKey("12D3KooWLjXFZYbC4DKWsYfb8Hp9hjPoxfkKyPUNNBR9NgH3MHfV")
	if err != nil {
		t.Fatal(err)
	}
	want, err := reference(key)
	if err != nil {
		t.Fatal(err)
	}
	if got := Label(key); got != want || !strings.HasPrefix(got, "k51qzi5uqu5d") {
		t.Errorf("label %q, want %q", got, want)
	}
}

func TestLabelsAreReadBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var k stmt.Key
		copy(k[:], rapid.SliceOfN(rapid.Byte(), len(k), len(k)).Draw(t, "key"))
		label := Label(k)
		if got, ok := ParseLabel(label); len(label) != labelLength || !ok || got != k {
			t.Fatalf("%q is read as %v, %v", label, got, ok)
		}
	})
}

func TestParse(t *testing.T) {
	o := owner(1)
	l := Label(o)
	for _, tt := range []struct {
		name string
		want Ref
		ok   bool
	}{
		{"app.dev.formation.cloud", Ref{"app", -1, stmt.Key{}}, true},
		{"APP.Dev.Formation.Cloud.", Ref{"app", -1, stmt.Key{}}, true},
		{"0.app.dev.formation.cloud", Ref{"app", 0, stmt.Key{}}, true},
		{"app." + l + ".dev.formation.cloud", Ref{"app", -1, o}, true},
		{"63.app." + strings.ToUpper(l) + ".dev.formation.cloud", Ref{"app", 63, o}, true},
		{l + ".dev.formation.cloud", Ref{l, -1, stmt.Key{}}, true},
		{"64.app.dev.formation.cloud", Ref{}, false},
		{"00.app.dev.formation.cloud", Ref{}, false},
		{"-1.app.dev.formation.cloud", Ref{}, false},
		{"x.app.dev.formation.cloud", Ref{}, false},
		{"0.0.app.dev.formation.cloud", Ref{}, false},
		{".dev.formation.cloud", Ref{}, false},
		{"dev.formation.cloud", Ref{}, false},
		{"-app.dev.formation.cloud", Ref{}, false},
		{"a p.dev.formation.cloud", Ref{}, false},
		{strings.Repeat("a", 64) + ".dev.formation.cloud", Ref{}, false},
		{strings.Repeat("a.", 150) + "dev.formation.cloud", Ref{}, false},
		{"app.example.org", Ref{}, false},
		{"", Ref{}, false},
	} {
		if got, ok := Parse(tt.name, Zone); got != tt.want || ok != tt.ok {
			t.Errorf("%q: %+v, %v", tt.name, got, ok)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("app.dev.formation.cloud")
	f.Add("0.app." + Label(owner(1)) + ".dev.formation.cloud")
	f.Add("k51.dev.formation.cloud")
	f.Fuzz(func(t *testing.T, name string) {
		r, ok := Parse(name, Zone)
		if !ok {
			return
		}
		if again, ok := Parse(strings.ToUpper(name), Zone); !ok || again != r {
			t.Errorf("%q is %+v, in capitals %+v", name, r, again)
		}
	})
}
