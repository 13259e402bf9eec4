package record

import (
	"bytes"
	"os"
	"reflect"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// golden is one line of each kind.
func golden() *Recording {
	r := &Recorder{}
	for _, l := range []Line{
		{At: 0, Node: &Node{N: 0, Is: []string{Up}}},
		{At: 1_000_000, Traffic: &Traffic{Messages: []uint64{4, 5}, Bytes: []uint64{400, 900}, Done: 1, Slowest: 120_000}},
		{At: 20_000_000, Step: &Step{N: 0, Text: "0 at 20s: kill node=any", Node: 2}},
		{At: 20_000_000, Node: &Node{N: 2, Is: []string{Gone}}},
		{At: 20_000_000, Replica: &Replica{Instance: "abc", Name: "app-1", Slot: 1, Node: 2}},
		{At: 21_000_000, Net: &Net{Sides: [][]int{{1, 2}}, Cuts: [][2]int{{0, 1}}, Loss: 0.02}},
		{At: 22_000_000, Statement: &Statement{Kind: "claim", By: 1, Made: 21_900_000, Half: 40_000, Most: 80_000, All: 80_001}},
		{At: 15_000_000, Broken: &Broken{Of: "settles", What: "<b>not</b> settled"}},
	} {
		r.Add(l)
	}
	return r.End(Header{
		Scenario: "node-dies", About: "a machine goes away", Tier: "des", Seed: "18446744073709551615", Nodes: 3, Steps: 1,
		Replay:  "form sim replay node-dies --nodes 3 --seed 18446744073709551615",
		Regions: []Region{{"ams", 52.31, 4.76}}, At: []int{0, 0, 0}, Classes: []string{"probes", "gossip"}, Unknown: []string{OfFetches},
	}, 30_000_000, End{Hash: "00ff", Events: 12})
}

func TestGolden(t *testing.T) {
	var got bytes.Buffer
	if err := golden().Write(&got); err != nil {
		t.Fatal(err)
	}
	const file = "testdata/golden.jsonl"
	if os.Getenv("REWRITE") != "" {
		if err := os.WriteFile(file, got.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.Bytes(), want) {
		t.Errorf("REWRITE=1 writes it anew; got:\n%s", got.Bytes())
	}
	back, err := Read(bytes.NewReader(want))
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(back, golden()) {
		t.Errorf("read back: %+v", back)
	}
}

// What is wrong is refused with the line that says it.
func TestRefused(t *testing.T) {
	var whole bytes.Buffer
	if err := golden().Write(&whole); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ from, to, err string }{
		{`"formationRun":1`, `"formationRun":2`, "line 1: format 2"},
		{`"nodes":3`, `"nodes":0`, "line 1: 0 nodes"},
		{`"nodes":3`, `"nodes":10001`, "line 1: 10001 nodes"},
		{`"at":[0,0,0]`, `"at":[0,0]`, "line 1: 2 places"},
		{`"at":[0,0,0]`, `"at":[0,0,1]`, "line 1: region 1 of 1"},
		{`"lat":52.31`, `"lat":152.31`, "line 1: a region"},
		{`"unknown":["fetches"]`, `"unknown":["fetches","weather"]`, "line 1: unknown: \"weather\""},
		{`"unknown":["fetches"]`, `"unknown":["fetches","fetches"]`, "line 1: unknown: \"fetches\""},
		{`"n":2,"is":["gone"]`, `"n":3,"is":["gone"]`, "node 3 of 3"},
		{`["gone"]`, `["weird"]`, "no state"},
		{`"us":20000000,"step"`, `"us":1,"step"`, "before the line before"},
		{`"messages":[4,5]`, `"messages":[4]`, "classes of traffic"},
		{`"sides":[[1,2]]`, `"sides":[[1,2],[1,2]]`, "two sides"},
		{`"cuts":[[0,1]]`, `"cuts":[[0,-1]]`, "node -1"},
		{`"node":{"n":0,"is":["up"]}`, `"node":{"n":0,"is":["up"]},"broken":{}`, "not one thing"},
		{`"step":{`, `"step":{"more":1,`, "unknown field"},
		{`"end":`, `"broken":{}}` + "\n" + `{"us":30000000,"other":`, "unknown field"},
		{"\n{\"us\":30000000", "\n{\"us\":30000000,\"broken\":{}}\n{\"us\":40000000", ""},
	} {
		raw := strings.Replace(whole.String(), c.from, c.to, 1)
		if raw == whole.String() {
			t.Fatalf("%s is not in it", c.from)
		}
		_, err := Read(strings.NewReader(raw))
		if c.err == "" {
			if err != nil {
				t.Errorf("%s: %v", c.to, err)
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: %v, want %s", c.to, err, c.err)
		}
	}
	cut := whole.String()[:strings.LastIndex(strings.TrimSpace(whole.String()), "\n")]
	if _, err := Read(strings.NewReader(cut)); err == nil || !strings.Contains(err.Error(), "no end") {
		t.Errorf("without its end: %v", err)
	}
	if _, err := Read(strings.NewReader(whole.String() + "{}")); err == nil || !strings.Contains(err.Error(), "after the end") {
		t.Errorf("with something after its end: %v", err)
	}
}

// What is above the most of a kind is counted, with when that began, and what is
// written can be read.
func TestWhatIsLeftOutIsSaid(t *testing.T) {
	r := &Recorder{}
	for i := range Most["broken"] + 7 {
		r.Add(Line{At: Micros(i), Broken: &Broken{Of: "settles", What: strings.Repeat("ä", 2*maxText)}})
	}
	rec := r.End(Header{Nodes: 3}, 0, End{})
	end := rec.Lines[len(rec.Lines)-1].End
	if want := (Left{7, Micros(Most["broken"])}); end.Left["broken"] != want || len(rec.Lines) != Most["broken"]+1 {
		t.Errorf("%d lines, left out: %+v", len(rec.Lines), end.Left)
	}
	var out bytes.Buffer
	if err := rec.Write(&out); err != nil {
		t.Fatal(err)
	}
	if _, err := Read(&out); err != nil {
		t.Error(err)
	}
}

func TestMostAddUp(t *testing.T) {
	sum := 2 // header and end
	for _, n := range Most {
		sum += n
	}
	if sum > maxLines {
		t.Errorf("a recording may have %d lines, a reader takes %d", sum, maxLines)
	}
}

// Whatever a Recorder is given, a reader takes.
func TestWhatIsWrittenIsRead(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := &Recorder{}
		for range rapid.IntRange(0, 20).Draw(t, "lines") {
			l := Line{At: Micros(rapid.Int64Range(0, 1<<50).Draw(t, "at"))}
			n := rapid.IntRange(0, 4).Draw(t, "node")
			switch rapid.IntRange(0, 3).Draw(t, "kind") {
			case 0:
				l.Node = &Node{N: n, Is: rapid.SliceOfNDistinct(rapid.SampledFrom(States), 0, 3, rapid.ID).Draw(t, "is")}
			case 1:
				l.Broken = &Broken{Of: "x", What: rapid.String().Draw(t, "what")}
			case 2:
				l.Step = &Step{Text: rapid.StringN(0, 2*maxText, -1).Draw(t, "text"), Node: n - 1}
			case 3:
				l.Replica = &Replica{Instance: "i", Name: rapid.String().Draw(t, "name"), Node: n}
			}
			r.Add(l)
		}
		var first, second bytes.Buffer
		if err := r.End(Header{Nodes: 5, Scenario: rapid.String().Draw(t, "scenario")}, 0, End{}).Write(&first); err != nil {
			t.Fatal(err)
		}
		text := first.String()
		back, err := Read(&first)
		if err != nil {
			t.Fatal(err)
		}
		if err := back.Write(&second); err != nil || second.String() != text {
			t.Fatalf("%v: written again:\n%s\n%s", err, second.String(), text)
		}
	})
}

func FuzzRead(f *testing.F) {
	var whole bytes.Buffer
	if err := golden().Write(&whole); err != nil {
		f.Fatal(err)
	}
	f.Add(whole.Bytes())
	f.Fuzz(func(t *testing.T, raw []byte) {
		r, err := Read(bytes.NewReader(raw))
		if err != nil {
			return
		}
		var out bytes.Buffer
		if err := r.Write(&out); err != nil {
			t.Fatal(err)
		}
		if _, err := Read(&out); err != nil {
			t.Fatalf("what was read is refused when it is written again: %v", err)
		}
	})
}
