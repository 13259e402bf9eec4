//go:build e2e && linux

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/formthefog/formation/sim/proc"
	"github.com/formthefog/formation/sim/record"
)

// recorded reads what a run has recorded, and counts what there is of each kind.
func recorded(t *testing.T, file string) (*record.Recording, map[string]int) {
	t.Helper()
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	rec, err := record.Read(bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	n := map[string]int{}
	for _, l := range rec.Lines {
		switch {
		case l.Node != nil && slices.Contains(l.Node.Is, record.Down):
			n["down"]++
		case l.Replica != nil && l.Replica.Runs && l.Replica.Name != "":
			n["runs"]++
		case l.Traffic != nil && l.Traffic.Messages[0] > 0 && l.Traffic.Bytes[0] > 0:
			n["traffic"]++
		case l.Step != nil:
			n["step"]++
		case l.Net != nil:
			n["net"]++
		}
	}
	return rec, n
}

// procRun is form sim run SCENARIO --tier proc, as a user has it.
type procRun struct {
	*exec.Cmd
	out   strings.Builder
	talk  []string
	lines chan string
}

func startProc(t *testing.T, scenario string, args ...string) *procRun {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	t.Cleanup(cancel)
	r := &procRun{lines: make(chan string)}
	r.Cmd = exec.CommandContext(ctx, filepath.Join(required(t, "FORMATION_BIN"), "form"), append([]string{"sim", "run", scenario, "--tier", "proc", "--seed", "1"}, args...)...)
	r.Cancel = func() error { return r.Process.Signal(syscall.SIGINT) } // so that it leaves nothing
	r.Stdout = &r.out
	talk, err := r.StderrPipe()
	if err == nil {
		err = r.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	go r.listen(talk)
	return r
}

func (r *procRun) listen(talk io.Reader) {
	defer close(r.lines)
	for sc := bufio.NewScanner(talk); sc.Scan(); {
		r.lines <- sc.Text()
	}
}

// until waits for a line that holds word.
func (r *procRun) until(t *testing.T, word string) {
	t.Helper()
	for line := range r.lines {
		r.talk = append(r.talk, line)
		if strings.Contains(line, word) {
			return
		}
	}
	t.Fatalf("it never says %q:\n%s", word, strings.Join(r.talk, "\n"))
}

// end waits until it has ended, and returns how.
func (r *procRun) end() error {
	for line := range r.lines {
		r.talk = append(r.talk, line)
	}
	return r.Wait()
}

// A minute of real daemons under kill -9, partitions, loss and full disks, after two
// runs that end before their time: one is killed, and one is interrupted. No run
// leaves anything behind but the killed one, and what that has left the next removes.
func TestE2ESoak(t *testing.T) {
	rooted(t)
	before := hostState(t)
	killed := startProc(t, "soak")
	killed.until(t, "daemons run and know each other")
	if err := killed.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = killed.end() // it was killed
	if during := hostState(t); during == before {
		t.Error("a run that was killed leaves nothing: this test sees too little")
	}

	dir := t.TempDir()
	cut := filepath.Join(dir, "cut.jsonl")
	interrupted := startProc(t, "soak", "--jsonl", cut)
	interrupted.until(t, "which was killed")
	interrupted.until(t, "daemons run and know each other")
	if err := interrupted.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := interrupted.end(); interrupted.ProcessState.ExitCode() != 1 {
		t.Errorf("interrupted: %v\n%s", err, strings.Join(interrupted.talk, "\n"))
	}
	if after := hostState(t); after != before {
		t.Errorf("after an interrupt there is\n%s\nand there was\n%s", after, before)
	}

	if rec, _ := recorded(t, cut); !rec.Lines[len(rec.Lines)-1].End.Cut {
		t.Error("the recording of what was interrupted does not say so")
	}

	lines, page := filepath.Join(dir, "run.jsonl"), filepath.Join(dir, "run.html")
	whole := startProc(t, "soak", "--for", "60s", "--json", "--jsonl", lines, "--html", page)
	err := whole.end()
	var res proc.Result
	if jerr := json.Unmarshal([]byte(whole.out.String()), &res); err != nil || jerr != nil {
		t.Fatalf("%v, %v:\n%s\n%s", err, jerr, whole.out.String(), strings.Join(whole.talk, "\n"))
	}
	t.Logf("%d steps in %v, %d statements acknowledged, %d attempts unanswered\n\t%s", res.Steps, res.Real, res.Acknowledged, res.Unanswered, strings.Join(res.Notes, "\n\t"))
	if res.Nodes != 7 || res.Steps < 10 || res.Acknowledged < 10 {
		t.Errorf("too little happened: %+v", res)
	}
	rec, n := recorded(t, lines)
	t.Logf("recorded: %v", n)
	if m := res.Metrics; n["step"] != res.Steps || n["down"] == 0 || n["runs"] == 0 || n["net"] < 2 || n["traffic"] < 50 ||
		m.Repair.Count == 0 || len(m.Traffic) != 1 || !slices.Equal(rec.Unknown, res.Unknown) {
		t.Errorf("recorded too little: %v; %+v", n, m)
	}
	if drawn, err := os.ReadFile(page); err != nil || !bytes.Contains(drawn, []byte("Tier proc does not see events one by one, ")) {
		t.Errorf("its page: %v", err)
	}
	if after := hostState(t); after != before {
		t.Errorf("in the end there is\n%s\nand there was\n%s", after, before)
	}
}

// Real daemons around the world, as far as their packets can tell, over lines that lose,
// repeat and damage: they agree in the end, and the page has them on the map.
func TestE2EFarApart(t *testing.T) {
	rooted(t)
	before := hostState(t)
	lines := filepath.Join(t.TempDir(), "run.jsonl")
	r := startProc(t, "far-apart", "--for", "15s", "--json", "--jsonl", lines)
	err := r.end()
	var res proc.Result
	if jerr := json.Unmarshal([]byte(r.out.String()), &res); err != nil || jerr != nil {
		t.Fatalf("%v, %v:\n%s\n%s", err, jerr, r.out.String(), strings.Join(r.talk, "\n"))
	}
	t.Logf("%v\n\t%s", res.Real, strings.Join(res.Notes, "\n\t"))
	if rec, _ := recorded(t, lines); len(rec.At) != res.Nodes || len(rec.Regions) != 19 {
		t.Errorf("places: %v of %d", rec.At, len(rec.Regions))
	}
	if after := hostState(t); after != before {
		t.Errorf("in the end there is\n%s\nand there was\n%s", after, before)
	}
}

// rooted skips what makes network namespaces and mounts; CI is root.
func rooted(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("network namespaces and mounts need root")
	}
}

// hostState is what a run must leave as it was, line by line: what of the machine has
// the simulator's name, and this namespace's interfaces, routes and firewall.
func hostState(t *testing.T) string {
	t.Helper()
	const script = `
for p in /proc/[0-9]*; do
	if tr '\0' '\n' <"$p/environ" 2>/dev/null | grep -q '^FORMATION_SIM='; then tr '\0' ' ' <"$p/cmdline"; echo; fi
done
ls /run/formsim /run/netns 2>/dev/null | grep formsim-
grep formsim /proc/self/mounts
grep formsim /proc/net/unix
ip -o link | sed 's/ state.*//'
ip route
nft list tables
true`
	out, err := exec.CommandContext(t.Context(), "sh", "-c", script).Output()
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}
