package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/formthefog/formation/cmd/form/internal/cli"
	"github.com/formthefog/formation/sim"
	"github.com/formthefog/formation/sim/live"
	"github.com/formthefog/formation/sim/proc"
	"github.com/formthefog/formation/sim/record"
	"github.com/formthefog/formation/sim/scenario"
)

// soon is a context that ends after it was asked so often whether it has.
type soon struct {
	context.Context
	left int
}

func (c *soon) Err() error {
	if c.left--; c.left < 0 {
		return context.Canceled
	}
	return nil
}

// Ctrl-C ends a simulation, wherever it is, and what there was until then is said and
// written, whole.
func TestSimIsInterrupted(t *testing.T) {
	for _, c := range []struct {
		about string
		args  []string
		asked int // whether it is to end
		cut   bool
	}{
		{"before it begins", nil, 0, true},
		{"in the midst", nil, 40, true},
		{"in the second run, which is to give the same", nil, 200, false},
		{"in the first of many seeds", []string{"--seeds", "1000"}, 40, true},
	} {
		t.Run(c.about, func(t *testing.T) {
			dir := t.TempDir()
			lines, html := filepath.Join(dir, "run.jsonl"), filepath.Join(dir, "run.html")
			var out, talk bytes.Buffer
			a := &app{p: cli.NewPrinter(&out, &talk), stdout: &out, stderr: &talk, getenv: func(string) string { return "" }}
			root := newRoot(a)
			root.SetArgs(append([]string{"sim", "run", "node-dies", "--nodes", "6", "--seed", "3", "--json", "--jsonl", lines, "--html", html}, c.args...))
			ctx := &soon{t.Context(), c.asked}
			if code := a.end(root.ExecuteContext(ctx)); code != 1 || !strings.Contains(talk.String(), "error: interrupted\n") {
				t.Fatalf("exits %d: %s", code, &talk)
			}
			if ctx.left > -1 || ctx.left < -40 {
				t.Errorf("was told %d times to end", -ctx.left)
			}
			var r sim.Result
			if err := json.Unmarshal(out.Bytes(), &r); err != nil {
				t.Fatal(err)
			}
			if r.Cut != c.cut || len(r.Bad) > 0 {
				t.Errorf("cut %v, bad %v", r.Cut, r.Bad)
			}
			raw, err := os.ReadFile(lines)
			if err != nil {
				t.Fatal(err)
			}
			rec, err := record.Read(bytes.NewReader(raw))
			if err != nil {
				t.Fatal(err)
			}
			if end := rec.Lines[len(rec.Lines)-1].End; end.Cut != c.cut || end.Hash != r.Hash {
				t.Errorf("its recording ends with %+v", end)
			}
			page, err := os.ReadFile(html)
			if err != nil {
				t.Fatal(err)
			}
			if strings.Contains(string(page), "The run was cut short") != c.cut || !strings.HasSuffix(strings.TrimSpace(string(page)), "</script>") {
				t.Error("its page does not say so, or has no end")
			}
			if left, err := os.ReadDir(dir); err != nil || len(left) != 2 {
				t.Errorf("leaves %v, %v", left, err)
			}
		})
	}
}

// Ctrl-C ends real hosts in virtual time as well, and what there was until then is said
// and written.
func TestSimLiveIsInterrupted(t *testing.T) {
	dir := t.TempDir()
	file, lines := filepath.Join(dir, "days.yaml"), filepath.Join(dir, "run.jsonl")
	const days = `about: nobody waits for its end
nodes: 6
tiers: [live]
workload: {instances: 2, replicas: 1, changes: 1s}
schedule: [{at: 1s, do: bounce, node: up, for: 5s}]
until: 2000h
expect: {settle: 1m}
`
	if err := os.WriteFile(file, []byte(days), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	form := exec.CommandContext(ctx, "form", "sim", "replay", file, "--seed", "1", "--tier", "live", "--json", "--jsonl", lines)
	var out bytes.Buffer
	form.Stdout = &out
	talk, err := form.StderrPipe()
	if err == nil {
		err = form.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	said := bufio.NewReader(talk)
	if line, err := said.ReadString('\n'); err != nil || !strings.Contains(line, "step 0 at 1s: bounce") {
		t.Fatalf("says %q, %v", line, err)
	}
	if err := form.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	rest, err := io.ReadAll(said)
	if err != nil {
		t.Fatal(err)
	}
	if err := form.Wait(); form.ProcessState.ExitCode() != 1 || !bytes.HasSuffix(rest, []byte("error: interrupted\n")) {
		t.Fatalf("%v: %s", err, rest)
	}
	var r live.Result
	if err := json.Unmarshal(out.Bytes(), &r); err != nil || !r.Cut || len(r.Bad) > 0 {
		t.Errorf("%v: cut %v, bad %v", err, r.Cut, r.Bad)
	}
	raw, err := os.ReadFile(lines)
	if err != nil {
		t.Fatal(err)
	}
	rec, err := record.Read(bytes.NewReader(raw))
	if err != nil || !rec.Lines[len(rec.Lines)-1].End.Cut {
		t.Errorf("%v: its recording does not say that it was cut short", err)
	}
}

// docs/scenarios.md says which verbs and expectations each tier carries out, by what it
// refuses.
func TestTiersAreDocumented(t *testing.T) {
	refuses := map[string]func(*scenario.Plan) error{
		tierDES: func(*scenario.Plan) error { return nil },
		tierLive: func(p *scenario.Plan) error {
			if live.Ignores(p.Expect) {
				return errors.New("it does not look at it")
			}
			return live.Refuses(p)
		},
		tierProc: func(p *scenario.Plan) error { return proc.Refuse(p, tierProc) },
		tierVM:   func(p *scenario.Plan) error { return proc.Refuse(p, tierVM) },
	}
	var b strings.Builder
	row := func(what string, p func(tier string) *scenario.Plan) {
		fmt.Fprintf(&b, "| `%s` |", what)
		for _, tier := range scenario.Tiers {
			mark := " – |"
			if refuses[tier](p(tier)) == nil {
				mark = " ✓ |"
			}
			b.WriteString(mark)
		}
		b.WriteString("\n")
	}
	head := func(of string) {
		fmt.Fprintf(&b, "| %s | `%s` |\n|---|%s\n", of, strings.Join(scenario.Tiers, "` | `"), strings.Repeat(":-:|", len(scenario.Tiers)))
	}
	head("Verb")
	for _, v := range scenario.Verbs {
		row(v.Name, func(tier string) *scenario.Plan {
			return &scenario.Plan{Scenario: &scenario.Scenario{Tiers: []string{tier}}, Nodes: 6, Steps: []scenario.Step{{Action: scenario.Action{Do: v.Name}}}}
		})
	}
	b.WriteString("\n")
	head("Expectation")
	for _, e := range []struct {
		name string
		is   scenario.Expect
	}{
		{"settle", scenario.Expect{Settle: 1}}, {"agree", scenario.Expect{Agree: 1}}, {"deaths", scenario.Expect{Deaths: 1}}, {"moves", scenario.Expect{Moves: "none"}},
		{"takeovers", scenario.Expect{Takeovers: "some"}}, {"takeover-budget", scenario.Expect{Budget: true}}, {"no-false-deaths", scenario.Expect{Alive: true}},
		{"side-serves", scenario.Expect{Sides: 1}}, {"side-stops", scenario.Expect{Stops: 1}}, {"served-always", scenario.Expect{Always: true}},
		{"sleepers-take-nothing", scenario.Expect{Slept: true}}, {"delivery-p99", scenario.Expect{Delivery: 1}}, {"sends", scenario.Expect{Sends: 1}},
	} {
		row(e.name, func(tier string) *scenario.Plan {
			return &scenario.Plan{Scenario: &scenario.Scenario{Tiers: []string{tier}, Expect: e.is}, Nodes: 6}
		})
	}
	const file = "../../docs/scenarios.md"
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	const begin, end = "TestTiersAreDocumented -->\n", "<!-- end of tiers -->"
	before, rest, ok := strings.Cut(string(raw), begin)
	_, after, closed := strings.Cut(rest, end)
	if !ok || !closed {
		t.Fatal("no place for the tiers in it")
	}
	want := before + begin + b.String() + end + after
	if string(raw) == want {
		return
	}
	if os.Getenv("REWRITE") == "" {
		t.Fatal("what tiers do has changed: REWRITE=1 go test ./cmd/form -run TestTiersAreDocumented")
	}
	if err := os.WriteFile(file, []byte(want), 0o644); err != nil {
		t.Fatal(err)
	}
}
