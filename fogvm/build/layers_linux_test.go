package build

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/formthefog/formation/store"
)

// TestDeletions: whiteouts, opaque directories, owners, modes, links and
// attributes become part of a layer in one spelling.
func TestDeletions(t *testing.T) {
	p := newProject(t, map[string]string{"Formfile": `NAME a
NOCOPY
RUN rm /etc/removeme && rm -r /opt/old && mkdir /opt/old && echo new > /opt/old/new
RUN mkdir -m 2775 /srv && chown 33:50 /srv && echo a > /srv/a && ln /srv/a /srv/b && ln -s ../etc /srv/c && chmod 4711 /srv/a
RUN touch /opt/old/new /etc/passwd && cp /etc/group /tmp/g && cp /tmp/g /etc/group && touch /x && rm /x
`})
	res := p.mustBuild()
	if len(res.Layers) != 2 {
		t.Fatalf("%d layers; what only touches files, or makes and deletes them, is none", len(res.Layers))
	}
	t.Log("layers:", roots(res.Layers))
	want := `d0755 0:0 2025-01-01 etc
whiteout 0:0 etc/removeme
d0755 0:0 2025-01-01 opt
d0755 0:0 2025-01-01 opt/old (opaque)
-0644 0:0 2025-01-01 opt/old/new
`
	// The directories above a change are there only as its path.
	if got := p.list(res.Layers[1]); got != want {
		t.Errorf("deletions:\n%s\nwant:\n%s", got, want)
	}
	want = `d2775 33:50 2025-01-01 srv
-4711 0:50 2025-01-01 srv/a
-4711 0:50 2025-01-01 srv/b
l0777 0:50 2025-01-01 srv/c -> ../etc
`
	if got := p.list(res.Layers[0]); got != want {
		t.Errorf("modes and links:\n%s\nwant:\n%s", got, want)
	}
	dir := p.extract(res.Layers[0])
	a, aerr := os.Stat(filepath.Join(dir, "srv/a"))
	b, berr := os.Stat(filepath.Join(dir, "srv/b"))
	if err := errors.Join(aerr, berr); err != nil || !os.SameFile(a, b) {
		t.Errorf("the hard link is none: %v", err)
	}
}

// TestManyLayers: past maxLayers the tail is merged, and means the same.
func TestManyLayers(t *testing.T) {
	const most = 4
	var b strings.Builder
	b.WriteString("NAME a\nNOCOPY\n")
	for i := range most + 4 {
		fmt.Fprintf(&b, "RUN echo %d > /f%d && echo %d > /same\n", i, i, i)
	}
	b.WriteString("RUN rm /f0 /f7 && rm -r /opt/old && mkdir -p /opt/old && echo x > /opt/old/x\nRUN rm /opt/old/x && echo y > /opt/old/y\n")
	p := newProject(t, map[string]string{"Formfile": b.String()})
	p.opts.maxLayers = most
	res := p.mustBuild()
	if len(res.Layers) != most {
		t.Fatalf("%d layers, want %d", len(res.Layers), most)
	}
	t.Log("layers:", roots(res.Layers))
	top := p.list(res.Layers[0])
	var want strings.Builder
	want.WriteString("whiteout 0:0 f0\n")
	for i := most - 1; i < most+3; i++ {
		fmt.Fprintf(&want, "-0644 0:0 2025-01-01 f%d\n", i)
	}
	want.WriteString("d0755 0:0 2025-01-01 opt\nd0755 0:0 2025-01-01 opt/old (opaque)\n-0644 0:0 2025-01-01 opt/old/y\n-0644 0:0 2025-01-01 same\n")
	if top != want.String() {
		t.Errorf("the merged layer:\n%s\nwant:\n%s", top, want.String())
	}
	same, err := os.ReadFile(filepath.Join(p.extract(res.Layers[0]), "same"))
	if err != nil || string(same) != "7\n" {
		t.Errorf("/same holds %q, %v", same, err)
	}
	again := p.mustBuild()
	if again.CID != res.CID || again.CachedSteps != again.Steps {
		t.Errorf("again: %s with %d of %d steps cached, want %s", again.CID, again.CachedSteps, again.Steps, res.CID)
	}
}

// TestInstallFails shows apt's own words.
func TestInstallFails(t *testing.T) {
	p := newProject(t, map[string]string{"Formfile": "NAME a\nNOCOPY\nINSTALL nosuch-package\n"})
	_, err := p.build()
	var step *StepError
	if !errors.As(err, &step) || step.ExitCode != 100 || !strings.Contains(step.Tail, "Unable to locate package nosuch-package") {
		t.Fatalf("got %v", err)
	}
}

// TestInstallNames: a word that is no package's name reaches no apt-get.
func TestInstallNames(t *testing.T) {
	p := newProject(t, map[string]string{"Formfile": "NAME a\nNOCOPY\nINSTALL python3 \\\n  g++ tre. gone\n"})
	_, err := p.build()
	var step *StepError
	if !errors.As(err, &step) || step.ExitCode != aptFails || !strings.HasPrefix(err.Error(), "Formfile:4:7: step 1 of 1 failed") {
		t.Fatalf("got %v", err)
	}
	if !strings.HasSuffix(step.Tail, "E: Unable to locate package tre.\nE: Unable to locate package gone\n") || strings.Contains(step.Tail, "apt-get -q -y") {
		t.Errorf("it said:\n%s", step.Tail)
	}
	p.write(map[string]string{"Formfile": "NAME a\nNOCOPY\nINSTALL python3 g++\n"})
	p.mustBuild()
}

// TestScopes: a variable for a user that nobody makes is refused, at its word,
// and at once where no step can make one.
func TestScopes(t *testing.T) {
	cache := cacheDir(t)
	for _, c := range []struct{ lines, want string }{
		{"USER username:bob\nENV --scope=user:bob A=1 B=2\nENV --scope=user:root A=1\nENV --scope=user:www-data A=1\nENV --scope=service:web A=1", ""},
		{"RUN echo eve:x:7:7::/:/bin/sh >> /etc/passwd\nENV --scope=user:eve A=1", ""},
		{"USER username:bigdog\nENV \\\n --scope=user:bigdg A=1\nENV --scope=\"user:x\" A=1\nCOPY gone /x", "Formfile:6:6: COPY gone: no such file in the context\n" +
			"Formfile:4:10: --scope=user:bigdg: neither the image nor a USER of the Formfile has the name bigdg; did you mean bigdog?\n" +
			"Formfile:5:14: --scope=user:x: neither the image nor a USER of the Formfile has the name x"},
		{"RUN true\nENV --scope=user:eve A=1", "Formfile:3:13: --scope=user:eve: neither the image nor a USER of the Formfile has the name eve"},
	} {
		if !strings.Contains(c.lines, "COPY") {
			c.lines += "\nNOCOPY"
		}
		p := newProject(t, map[string]string{"Formfile": "NAME a\n" + c.lines + "\n"})
		p.opts.CacheDir = cache
		_, err := p.build()
		if got := fmt.Sprint(err); got != c.want && (err != nil || c.want != "") {
			t.Errorf("%s:\ngot  %v\nwant %s", c.lines, err, c.want)
		}
	}
}

// TestManySockets: what is left out is told, but not a million times.
func TestManySockets(t *testing.T) {
	dir := t.TempDir()
	for i := range maxSkipped + 5 {
		l, err := net.Listen("unix", filepath.Join(dir, fmt.Sprint(i)))
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
	}
	rep, err := packLayer(&packRequest{Uppers: []string{dir}}, "")
	if err != nil || len(rep.Warnings) != maxSkipped+1 || rep.Warnings[maxSkipped] != "5 more sockets and devices are left out" {
		t.Errorf("%v, %q", err, rep.Warnings)
	}
}

// TestSquashError: what broke the stream is told, not how mksquashfs took it.
func TestSquashError(t *testing.T) {
	needSandbox(t)
	err := squash(filepath.Join(t.TempDir(), "image"), func(w io.Writer) error {
		return errors.Join(tar.NewWriter(w).WriteHeader(&tar.Header{Name: "x", Format: tar.FormatPAX, PAXRecords: map[string]string{"SCHILY.xattr.user.a=b": "c"}}))
	})
	if err == nil || strings.Contains(err.Error(), "mksquashfs") {
		t.Errorf("got %v", err)
	}
}

// TestLostLayer: a layer that the store no longer has is made again.
func TestLostLayer(t *testing.T) {
	p := newProject(t, map[string]string{"Formfile": "NAME a\nNOCOPY\nRUN echo x > /x\n"})
	first := p.mustBuild()
	if err := os.Remove(p.store.file(first.Layers[0])); err != nil {
		t.Fatal(err)
	}
	second := p.mustBuild()
	if second.CachedSteps != 0 || second.CID != first.CID {
		t.Errorf("%d steps cached, %s instead of %s", second.CachedSteps, second.CID, first.CID)
	}
	if _, err := p.store.Path(second.Layers[0]); err != nil {
		t.Error(err)
	}
}

// TestTornCache: after a reboot, a difference that lost bytes is made again; a
// whole one is used.
func TestTornCache(t *testing.T) {
	p := newProject(t, map[string]string{"Formfile": "NAME a\nNOCOPY\nRUN mkdir /d && echo 1234567890 > /d/x\nRUN rm /etc/removeme && cat /d/x > /y\n"})
	first := p.mustBuild()
	reboot := func() {
		metas, err := filepath.Glob(filepath.Join(p.opts.CacheDir, "steps*", "*", "meta.json"))
		if err != nil || len(metas) != 2 {
			t.Fatalf("%d cached steps, %v", len(metas), err)
		}
		for _, m := range metas {
			b, err := os.ReadFile(m)
			if err != nil {
				t.Fatal(err)
			}
			var c cachedStep
			if err := json.Unmarshal(b, &c); err != nil {
				t.Fatal(err)
			}
			c.Boot = "another"
			if b, err = json.Marshal(c); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(m, b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	reboot()
	if res := p.mustBuild(); res.CachedSteps != 2 || res.CID != first.CID {
		t.Errorf("after a clean reboot %d steps are cached", res.CachedSteps)
	}
	reboot()
	torn, err := filepath.Glob(filepath.Join(p.opts.CacheDir, "steps*", "*", "upper", "d", "x"))
	if err != nil || len(torn) != 1 {
		t.Fatalf("%v, %v", torn, err)
	}
	if err := os.Truncate(torn[0], 0); err != nil {
		t.Fatal(err)
	}
	if res := p.mustBuild(); res.CachedSteps != 1 || res.CID != first.CID {
		t.Errorf("after a crash %d steps are cached, and the pack is %s, want 1 and %s", res.CachedSteps, res.CID, first.CID)
	}
}

// TestEvict: the cache keeps its bound, and what the last build used.
func TestEvict(t *testing.T) {
	p := newProject(t, map[string]string{"Formfile": "NAME a\nNOCOPY\nRUN echo 1234567890 > /x\n"})
	p.mustBuild()
	p.opts.CacheBytes = 1
	p.write(map[string]string{"Formfile": "NAME a\nNOCOPY\nRUN echo other > /x\n"})
	p.mustBuild()
	steps, err := filepath.Glob(filepath.Join(p.opts.CacheDir, "steps*", "*"))
	if err != nil || len(steps) != 1 {
		t.Errorf("%d steps are cached, want only the last: %v", len(steps), err)
	}
	if res := p.mustBuild(); res.CachedSteps != 1 {
		t.Error("the step in use was evicted")
	}
}

// TestUIDConflict: an account that a step makes must not get the number that
// the guest will give to a USER.
func TestUIDConflict(t *testing.T) {
	cache := cacheDir(t)
	for _, c := range []struct{ run, want string }{
		{"RUN echo eve:x:1001:1001::/:/bin/sh >> /etc/passwd", "Formfile:3:1: user bob needs the number 1001"},
		{"RUN echo wheel:x:1001: >> /etc/group", "Formfile:3:1: user bob needs the number 1001 for a group"},
		{"WORKDIR /home/bob\nRUN echo bob:x:7:7::/:/bin/sh >> /etc/passwd", "Formfile:3:1: user bob got the numbers 7:7 from a step, after files were made for 1001:1001"},
	} {
		p := newProject(t, map[string]string{"Formfile": "NAME a\nNOCOPY\nUSER username:bob\n" + c.run + "\n"})
		p.opts.CacheDir = cache
		for range 2 { // the second from the cache
			_, err := p.build()
			var ce *ContextError
			if !errors.As(err, &ce) || !strings.HasPrefix(err.Error(), c.want) {
				t.Errorf("%s: got %v", c.run, err)
			}
		}
	}
}

// TestUsersOfImage: the pack says which numbers the guest gives, also when a
// step made the user, or took the account files away.
func TestUsersOfImage(t *testing.T) {
	cache := cacheDir(t)
	for _, c := range []struct {
		run string
		uid int
	}{
		{"RUN echo bob:x:7:7::/:/bin/sh >> /etc/passwd", 7},
		{"RUN echo x > /etc/other", 1001},
		{"COPY etc /etc\nRUN mv /etc /etc3", 1001},
		{"RUN rm /etc/passwd", 1001},
		{"COPY etc /etc\nRUN cp /etc/passwd /p && rm -r /etc && mkdir /etc && echo bob:x:8:8::/:/bin/sh >> /p && mv /p /etc/passwd", 8},
	} {
		p := newProject(t, map[string]string{"etc/resolv.conf@": "../run/resolv.conf", "Formfile": "NAME a\nUSER username:bob\n" + c.run + "\n"})
		p.opts.CacheDir = cache
		if u := p.mustBuild().Root.Run.Users[0]; u.UID != c.uid {
			t.Errorf("%s: bob has %d, want %d", c.run, u.UID, c.uid)
		}
	}
}

var _ Store = (*store.Store)(nil)
