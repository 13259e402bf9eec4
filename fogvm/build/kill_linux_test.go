package build

import (
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// TestKilled: when the builder itself is killed, its sandbox dies with it, and
// the next build removes what it left.
func TestKilled(t *testing.T) {
	const marker = "16180339"
	files := map[string]string{"Formfile": "NAME a\nNOCOPY\nRUN sleep " + marker + "\n"}
	if cache := os.Getenv("FORMATION_TEST_KILLED"); cache != "" {
		p := newProject(t, files)
		p.opts.CacheDir = cache
		_, err := p.build()
		t.Fatalf("the build ended by itself: %v", err)
	}
	p := newProject(t, map[string]string{"Formfile": "NAME a\nNOCOPY\n"})
	before := hostState(t, p.opts.CacheDir)
	cmd := exec.Command(os.Args[0], "-test.run=^TestKilled$", "-test.count=1")
	cmd.Env = append(os.Environ(), "FORMATION_TEST_KILLED="+p.opts.CacheDir, "TMPDIR="+t.TempDir())
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	within(t, "the step runs", func() bool { return len(sleepers(t, marker)) > 0 })
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-ended
	within(t, "the step is dead", func() bool { return len(sleepers(t, marker)) == 0 })
	if hostState(t, p.opts.CacheDir) == before {
		t.Error("nothing was left, so this test proves nothing")
	}
	p.mustBuild()
	checkClean(t, before, p.opts.CacheDir, p.store.file(p.store.base.Rootfs), marker)
}

// sleepers are the processes of the step, not the test that carries the marker.
func sleepers(t *testing.T, marker string) []string {
	t.Helper()
	var out []string
	for _, p := range processes(t, marker) {
		if b, err := os.ReadFile(p); err == nil && strings.HasPrefix(string(b), "sleep\x00") {
			out = append(out, p)
		}
	}
	return out
}

// within polls a condition until a deadline that is generous for a busy machine.
func within(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not within 30 s: %s", what)
		}
		time.Sleep(10 * time.Millisecond)
	}
}
