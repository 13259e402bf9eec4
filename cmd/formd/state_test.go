package main

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"flag"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/formthefog/formation/cmd/internal/api"
	"github.com/formthefog/formation/crdt/stmt"
)

var rewrite = flag.Bool("rewrite", false, "write the golden files anew")

// fixedLog is a log of every kind of statement, made from fixed keys.
func fixedLog(t *testing.T) (root stmt.Key, raws [][]byte) {
	t.Helper()
	root, err := stmt.ParseKey("12D3KooWQgUKgJxuRWzxjpfQr7JCfGgkFJ3tHyacvP3x1LftS14W")
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile("testdata/state.log")
	if err != nil {
		t.Fatal(err)
	}
	for b = b[len("formation/log/1\n"):]; len(b) > 0; {
		n := 8 + binary.LittleEndian.Uint32(b)
		raws = append(raws, b[8:n])
		b = b[n:]
	}
	return root, raws
}

// logOf frames statements as docs/wire.md §5 says.
func logOf(raws ...[]byte) []byte {
	b := []byte("formation/log/1\n")
	for _, raw := range raws {
		b = binary.LittleEndian.AppendUint32(b, uint32(len(raw)))
		b = binary.LittleEndian.AppendUint32(b, crc32.Checksum(raw, crc32.MakeTable(crc32.Castagnoli)))
		b = append(b, raw...)
	}
	return b
}

// stateDir is a data directory with this log.
func stateDir(t *testing.T, root stmt.Key, log []byte) string {
	t.Helper()
	dir := t.TempDir()
	m, err := json.Marshal(membership{Name: "test", Root: root})
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "network.json"), m, 0o600)
	}
	if err == nil {
		err = os.Mkdir(filepath.Join(dir, "state"), 0o700)
	}
	if err == nil && log != nil {
		err = os.WriteFile(filepath.Join(dir, "state", "state.log"), log, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *rewrite {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v (write it by: go test ./cmd/formd -run TestState -rewrite)", err)
	}
	if got != string(want) {
		t.Errorf("%s: got\n%s\nwant\n%s", name, got, want)
	}
}

// A log is told frame by frame, damaged or not, and stays as it is.
func TestStateVerify(t *testing.T) {
	root, raws := fixedLog(t)
	whole := logOf(raws...)
	last := len(whole) - len(raws[len(raws)-1])
	forged := bytes.Clone(raws[1])
	forged[len(forged)-1] ^= 1
	flipped := bytes.Clone(whole)
	flipped[last+10] ^= 0x40
	other := stmt.Key{1}
	backwards := slices.Clone(raws)
	slices.Reverse(backwards)
	var all strings.Builder
	for _, tt := range []struct {
		name string
		root stmt.Key
		log  []byte
		code int
	}{
		{"whole", root, whole, api.ExitOK},
		{"everything twice", root, logOf(slices.Concat(raws, raws)...), api.ExitOK},
		{"backwards", root, logOf(backwards...), api.ExitOK},
		{"a flipped bit in the last frame", root, flipped, api.ExitFailed},
		{"a torn tail", root, whole[:len(whole)-3], api.ExitFailed},
		{"a tail of zeros", root, append(bytes.Clone(whole), make([]byte, 32)...), api.ExitFailed},
		{"a forged statement", root, logOf(raws[0], forged, raws[2]), api.ExitFailed},
		{"no statement", root, logOf(raws[0], []byte("junk")), api.ExitFailed},
		{"another network", other, whole, api.ExitFailed},
		{"half a header", root, whole[:7], api.ExitFailed},
		{"another version", root, []byte("formation/log/9\n..."), api.ExitFailed},
		{"no log", root, nil, api.ExitNotFound},
	} {
		dir := stateDir(t, tt.root, tt.log)
		code, stdout, stderr := command("state", "verify", "--data", dir)
		if code != tt.code {
			t.Errorf("%s: exit %d, want %d", tt.name, code, tt.code)
		}
		fmt.Fprintf(&all, "== %s: exit %d\n%s\n", tt.name, code, strings.ReplaceAll(stdout+stderr, dir, "DATA"))
		_, asJSON, _ := command("state", "verify", "--data", dir, "--json")
		var r stateReport
		if len(tt.log) > 20 {
			if err := json.Unmarshal([]byte(asJSON), &r); err != nil || r.OK != (code == api.ExitOK) {
				t.Errorf("%s: %q, %v", tt.name, asJSON, err)
			}
		}
		entries, err := os.ReadDir(filepath.Join(dir, "state"))
		if err != nil || tt.log == nil && len(entries) != 0 || len(entries) > 1 {
			t.Errorf("%s: made %v, %v", tt.name, entries, err)
		}
		if now, err := os.ReadFile(filepath.Join(dir, "state", "state.log")); tt.log != nil && (err != nil || !bytes.Equal(now, tt.log)) {
			t.Errorf("%s: the log was changed, %v", tt.name, err)
		}
	}
	golden(t, "state-verify.txt", all.String())
}

func TestStateDump(t *testing.T) {
	root, raws := fixedLog(t)
	dir := stateDir(t, root, append(logOf(slices.Concat(raws, raws[:1], [][]byte{[]byte("junk")})...), 1, 2, 3))
	code, stdout, stderr := command("state", "dump", "--data", dir)
	if code != api.ExitOK {
		t.Fatalf("exit %d, %s", code, stderr)
	}
	golden(t, "state-dump.jsonl", stdout)
	var lines []dumped
	for line := range strings.Lines(stdout) {
		var d dumped
		if err := json.Unmarshal([]byte(line), &d); err != nil {
			t.Fatal(err)
		}
		lines = append(lines, d)
	}
	if len(lines) != len(raws)+2 {
		t.Fatalf("%d lines, want %d", len(lines), len(raws)+2)
	}
	i := slices.IndexFunc(lines, func(d dumped) bool { return d.Kind == stmt.KindSpec })
	if i < 0 || len(lines[i].Instances) != 1 {
		t.Fatal("no spec, or one about nothing")
	}
	count := func(keep func(dumped) bool) (n int) {
		for _, d := range lines {
			if keep(d) {
				n++
			}
		}
		return n
	}
	for _, tt := range []struct {
		args []string
		want int
	}{
		{[]string{"--kind", "claim"}, count(func(d dumped) bool { return d.Kind == stmt.KindClaim })},
		{[]string{"--author", root.String()}, count(func(d dumped) bool { return d.Author != nil && *d.Author == root })},
		{[]string{"--instance", lines[i].Instances[0]}, count(func(d dumped) bool { return slices.Contains(d.Instances, lines[i].Instances[0]) })},
		{[]string{"--kind", "nothing"}, 0},
	} {
		_, stdout, _ := command(append([]string{"state", "dump", "--data", dir}, tt.args...)...)
		if n := strings.Count(stdout, "\n"); n != tt.want {
			t.Errorf("%v: %d lines, want %d", tt.args, n, tt.want)
		}
	}
	for _, args := range [][]string{{"--author", "nobody"}, {"--instance", "name"}, {"extra"}} {
		if code, _, stderr := command(append([]string{"state", "dump", "--data", dir}, args...)...); code != api.ExitUsage || !strings.Contains(stderr, "hint:") {
			t.Errorf("%v: exit %d, %q", args, code, stderr)
		}
	}
}

// A running node's log is not looked at.
func TestStateOfARunningNode(t *testing.T) {
	root, raws := fixedLog(t)
	dir := stateDir(t, root, logOf(raws...))
	f, err := os.Create(filepath.Join(dir, "state", "lock"))
	if err == nil {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if code, _, stderr := command("state", "verify", "--data", dir); code != api.ExitFailed || !strings.Contains(stderr, "a formd runs on") {
		t.Errorf("exit %d, %q", code, stderr)
	}
	if code, _, _ := command("state", "verify", "--data", t.TempDir()); code != api.ExitNotFound {
		t.Errorf("no data directory: exit %d", code)
	}
}
