package build

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/formthefog/formation/store"
)

// random gives another first layer each time, which the second repeats.
const random = "NAME a\nNOCOPY\nRUN cat /proc/sys/kernel/random/uuid > /a\nRUN cp /a /b\n"

// checkRandom says whether the second layer was made on the first.
func (p *project) checkRandom(res *Result) {
	p.t.Helper()
	text := func(e store.Entry, name string) string {
		b, err := os.ReadFile(filepath.Join(p.extract(e), name))
		if err != nil {
			p.t.Fatal(err)
		}
		return strings.TrimSpace(string(b))
	}
	if a, b := text(res.Layers[1], "a"), text(res.Layers[0], "b"); a != b || a == "" {
		p.t.Errorf("/b is a copy of %q, and /a is %q", b, a)
	}
}

// TestSharedCache: while one build has a step in its stack, what another does
// to the cache leaves that step alone.
func TestSharedCache(t *testing.T) {
	for _, c := range []struct {
		name, formfile string
		cached         bool // the step in use came from the cache
		change         func(*Options)
	}{
		{"made, made again", random, false, func(o *Options) { o.NoCache = true }},
		{"found, made again", random, true, func(o *Options) { o.NoCache = true }},
		{"made, evicted", "NAME b\nNOCOPY\nRUN echo x > /x\n", false, func(o *Options) { o.CacheBytes = 1 }},
		{"found, evicted", "NAME b\nNOCOPY\nRUN echo x > /x\n", true, func(o *Options) { o.CacheBytes = 1 }},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := newProject(t, map[string]string{"Formfile": random})
			if c.cached {
				p.write(map[string]string{"Formfile": strings.TrimSuffix(random, "RUN cp /a /b\n")})
				p.mustBuild()
				p.write(map[string]string{"Formfile": random})
			}
			other := newProject(t, map[string]string{"Formfile": c.formfile})
			other.opts.CacheDir = p.opts.CacheDir
			c.change(&other.opts)
			p.out.start = func(s StepInfo) {
				if s.Index == 2 {
					other.mustBuild()
				}
			}
			p.checkRandom(p.mustBuild())
			p.out.start = nil
			p.checkRandom(p.mustBuild())
		})
	}
}

// TestStepAgain: a step that gives something else when it runs again takes the
// steps after it along.
func TestStepAgain(t *testing.T) {
	p := newProject(t, map[string]string{"Formfile": random})
	p.mustBuild()
	steps, err := filepath.Glob(filepath.Join(p.opts.CacheDir, "steps*", "*", "upper", "a"))
	if err != nil || len(steps) != 1 {
		t.Fatalf("%v, %v", steps, err)
	}
	if err := os.RemoveAll(filepath.Dir(filepath.Dir(steps[0]))); err != nil {
		t.Fatal(err)
	}
	p.checkRandom(p.mustBuild())
}

// TestLockAndSweep: builds that come and go at the same time neither lose their
// locks nor trip over those of others.
func TestLockAndSweep(t *testing.T) {
	dir, s := t.TempDir(), &spawner{}
	var g errgroup.Group
	for range 4 {
		g.Go(func() error {
			for range 200 {
				w, err := openWorkspace(t.Context(), dir, s)
				if err != nil {
					return err
				}
				if err := w.close(); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
	if list, err := os.ReadDir(filepath.Join(dir, "tmp")); err != nil || len(list) > 0 {
		t.Errorf("left: %v, %v", list, err)
	}
}
