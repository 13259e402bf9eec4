package build

import (
	"crypto/ed25519"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/formthefog/formation/store"
	"github.com/formthefog/formation/store/formfile"
)

// TestDebian builds the README's Formfile on the real base, twice without the
// cache: apt's work must give the same bytes. Needs the network, and the store
// and base that make test sets up.
func TestDebian(t *testing.T) {
	dir, name := os.Getenv("FORMATION_STORE"), os.Getenv("FORMATION_BASE")
	if dir == "" || name == "" {
		t.Skip("SKIP: set FORMATION_STORE and FORMATION_BASE to a store directory and a base's CID in it")
	}
	needSandbox(t)
	base, err := cid.Parse(name)
	if err != nil {
		t.Fatalf("FORMATION_BASE: %v", err)
	}
	st, err := store.Open(store.Config{Dir: dir, LockWait: time.Minute})
	if err != nil {
		t.Fatalf("FORMATION_STORE: %v", err)
	}
	t.Cleanup(func() {
		if err := st.Close(); err != nil {
			t.Error(err)
		}
	})
	p := &project{t: t, out: &recorder{}}
	p.opts = Options{
		Context: t.TempDir(), Store: st, Base: base, CacheDir: cacheDir(t), NoCache: true,
		Key: ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize)), Reporter: p.out,
	}
	p.write(map[string]string{"hello.py": "print('hello')\n", "Formfile": seedFormfile +
		"RUN test -d /proc/self && python3 /app/hello.py && python3 -c 'import json, socket' && ! test -e /usr/sbin/policy-rc.d.dpkg-new\n"})
	first := p.mustBuild()
	if !strings.Contains(p.out.output.String(), "hello\n") {
		t.Errorf("python3 did not run:\n%s", p.out.output.String())
	}
	p.opts.CacheDir = cacheDir(t)
	begin := time.Now()
	second := p.mustBuild()
	t.Logf("a build without any cache takes %v; layers %v", time.Since(begin).Round(time.Second), second.Layers)
	if first.CID != second.CID {
		t.Errorf("two builds gave %s and %s: layers %v and %v", first.CID, second.CID, first.Layers, second.Layers)
	}
	p.opts.NoCache = false
	third := p.mustBuild()
	if third.CID != first.CID || third.CachedSteps != third.Steps {
		t.Errorf("from the cache: %s, %d of %d steps cached", third.CID, third.CachedSteps, third.Steps)
	}
	f, err := formfile.Parse("Formfile", []byte("NAME bad\nNOCOPY\nINSTALL no-such-package-at-all\n"))
	if err != nil {
		t.Fatal(err)
	}
	p.opts.File = f
	_, err = p.build()
	var step *StepError
	if !errors.As(err, &step) || step.ExitCode != 100 || !strings.Contains(step.Tail, "no-such-package-at-all") {
		t.Errorf("installing what does not exist: %v", err)
	}
}
