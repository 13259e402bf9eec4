package page

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/formthefog/formation/sim/record"
)

// sample is a recording of a run: nodes start, some fall, replicas move. Its texts are
// what a hostile scenario may have.
func sample(nodes int) *record.Recording {
	var r record.Recorder
	add := func(s float64, l record.Line) {
		l.At = record.Micros(s * 1e6)
		r.Add(l)
	}
	h := record.Header{
		Scenario: hostile + "1", About: hostile + "2", Replay: hostile + "3", Tier: "des", Seed: "7", Nodes: nodes, Steps: nodes / 10,
		Regions: []record.Region{{Name: hostile, Lat: 50, Lon: 8}, {Name: "sjc", Lat: 37, Lon: -121}}, Classes: []string{hostile},
	}
	for i := range nodes {
		h.At = append(h.At, i%2)
		add(0, record.Line{Node: &record.Node{N: i, Is: []string{record.Up}}})
		add(0, record.Line{Replica: &record.Replica{Instance: fmt.Sprint("i", i), Name: hostile, Node: i, Runs: true}})
	}
	for k := range nodes / 10 {
		at := 10 + float64(k)/float64(nodes)*100
		add(at, record.Line{Step: &record.Step{N: k, Text: hostile, Node: k}})
		add(at, record.Line{Node: &record.Node{N: k, Is: []string{[]string{record.Down, record.Gone}[k%2]}}})
		add(at, record.Line{Replica: &record.Replica{Instance: fmt.Sprint("i", k), Node: k}})
		add(at+8, record.Line{Replica: &record.Replica{Instance: fmt.Sprint("i", k), Node: nodes - 1 - k, Runs: true}})
	}
	add(15, record.Line{Net: &record.Net{Sides: [][]int{{0, 1, 2}}, Cuts: [][2]int{{3, 4}}, Loss: 0.25}})
	add(20, record.Line{Net: &record.Net{}})
	add(18, record.Line{Broken: &record.Broken{Of: "settles", What: hostile}})
	for i := range 30 {
		add(float64(i+1), record.Line{Traffic: &record.Traffic{Messages: []uint64{uint64(i)}, Bytes: []uint64{1}, Slowest: record.Micros(i * 1000)}})
	}
	return r.End(h, 40e6, record.End{Hash: hostile, Left: nil})
}

const hostile = `</script><script>document.title="taken"</script><img src=x onerror=alert(1)>'"{{.}}`

// Nothing that a recording says is markup, and the page asks for nothing.
func TestTextIsText(t *testing.T) {
	var out bytes.Buffer
	if err := Write(&out, sample(10)); err != nil {
		t.Fatal(err)
	}
	page := out.String()
	if n := strings.Count(page, "</script"); n != 2 {
		t.Errorf("%d ends of a script, not 2", n)
	}
	for _, bad := range []string{"<img", "<script>document"} {
		if strings.Contains(page, bad) {
			t.Errorf("%s is in it", bad)
		}
	}
	if m := regexp.MustCompile(`(?i)(src|href)\s*=\s*"?[a-z]*:?//|url\(|@import|fetch\(|XMLHttpRequest`).FindString(page); m != "" {
		t.Errorf("it asks for something: %s", m)
	}
}

// What a tier does not know is no figure of the page: it says what that is.
func TestUnknownIsLeftOut(t *testing.T) {
	r := sample(10)
	said := func() string {
		var out bytes.Buffer
		if err := Write(&out, r); err != nil {
			t.Fatal(err)
		}
		return out.String()
	}
	all := len(figures(r, r.Lines[len(r.Lines)-1].End))
	if strings.Contains(said(), "does not see") {
		t.Error("something is unknown of which nobody says so")
	}
	for _, c := range []struct {
		of    string
		left  int
		hides string
	}{
		{record.OfEvents, 1, ""}, {record.OfStatements, 2, "<figure hidden>"}, {record.OfSends, 1, ""}, {record.OfReplicas, 2, "<div hidden>"},
		{record.OfFetches, 1, ""}, {record.OfDeaths, 2, ""},
	} {
		r.Unknown = []string{c.of}
		page := said()
		if n := all - len(figures(r, r.Lines[len(r.Lines)-1].End)); n != c.left {
			t.Errorf("without %s there are %d figures less, not %d", c.of, n, c.left)
		}
		if words[c.of] == "" || !strings.Contains(page, "does not see "+words[c.of]) {
			t.Errorf("it does not say that %s are unknown", c.of)
		}
		if hides := strings.Contains(page, "<figure hidden>") || strings.Contains(page, "<div hidden>"); hides != (c.hides != "") || !strings.Contains(page, c.hides) {
			t.Errorf("without %s it hides %v, want %q", c.of, hides, c.hides)
		}
	}
	if len(words) != len(record.Unknowns) {
		t.Errorf("%d words for %d things", len(words), len(record.Unknowns))
	}
}

// at is what holds of a recording at a time, found by reading all of it.
func at(r *record.Recording, us record.Micros) map[string]string {
	is, on, failed, sides, loss := map[int][]string{}, map[string]bool{}, 0, 1, 0.0
	for _, l := range r.Lines {
		if l.At > us {
			break
		}
		switch {
		case l.Node != nil:
			is[l.Node.N] = l.Node.Is
		case l.Replica != nil:
			key := fmt.Sprint(l.Replica.Instance, l.Replica.Slot, l.Replica.Node)
			if delete(on, key); l.Replica.Runs {
				on[key] = true
			}
		case l.Broken != nil:
			failed++
		case l.Net != nil:
			sides, loss = 1+len(l.Net.Sides), l.Net.Loss
		}
	}
	up := 0
	for _, s := range is { // any order: counting
		if slices.Contains(s, record.Up) {
			up++
		}
	}
	return map[string]string{
		"up": fmt.Sprint(up), "down": fmt.Sprint(r.Nodes - up), "replicas": fmt.Sprint(len(on)), "failures": fmt.Sprint(failed),
		"sides": fmt.Sprint(sides), "loss": fmt.Sprint(loss*100, " %"),
	}
}

// A browser without any error shows at each time what the recording says of it.
func TestInABrowser(t *testing.T) {
	browser, err := exec.LookPath("chromium")
	if err != nil {
		t.Skip("no chromium: scripts/setup.sh test")
	}
	for nodes, times := range map[int][]record.Micros{9: {12e6}, 10: {0, 12e6, 18e6, 40e6}, 1000: {14e6, 40e6}} {
		r := sample(nodes)
		if nodes == 9 { // what is hidden is no error
			r.Unknown = record.Unknowns
		}
		dir := t.TempDir()
		file := filepath.Join(dir, "run.html")
		var out bytes.Buffer
		if err := Write(&out, r); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, out.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
		for _, us := range times {
			dom := shown(t, browser, dir, fmt.Sprintf("file://%s#t=%v", file, float64(us)/1e6))
			for id, want := range at(r, us) {
				m := regexp.MustCompile(`id="` + id + `"[^>]*>([^<]*)<`).FindStringSubmatch(dom)
				if m == nil || m[1] != want {
					t.Errorf("%d nodes at %d µs: %s: %q, want %s", nodes, us, id, m, want)
				}
			}
			if !strings.Contains(dom, `data-ready="true"`) || strings.Contains(dom, "<title>taken") {
				t.Errorf("%d nodes at %d µs: the script has not come to its end, or another ran", nodes, us)
			}
		}
	}
}

// shown is what is in the page once its script has run.
func shown(t *testing.T, browser, dir, url string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, browser, "--headless", "--no-sandbox", "--disable-gpu", "--user-data-dir="+filepath.Join(dir, "profile"),
		"--window-size=1280,800", "--virtual-time-budget=2000", "--enable-logging=stderr", "--dump-dom", url)
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v: %v\n%s", cmd.Args, err, said.String())
	}
	for _, line := range strings.Split(said.String(), "\n") {
		if strings.Contains(line, "CONSOLE") {
			t.Errorf("%s: %s", url, line)
		}
	}
	return out.String()
}
