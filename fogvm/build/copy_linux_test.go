package build

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// copied builds "NAME a" and the lines, and gives the layers as text, the
// lowest first.
func copied(t *testing.T, cache string, files map[string]string, lines string) (string, *Result) {
	t.Helper()
	all := map[string]string{"Formfile": "NAME a\n" + lines}
	for k, v := range files {
		all[k] = v
	}
	p := newProject(t, all)
	p.opts.CacheDir = cache
	res := p.mustBuild()
	var b strings.Builder
	for i := len(res.Layers) - 1; i >= 0; i-- {
		// Owners and times are in the other tests.
		for line := range strings.Lines(p.list(res.Layers[i])) {
			b.WriteString(strings.Replace(strings.Replace(line, " 2025-01-01", "", 1), " 0:0", "", 1))
		}
	}
	return b.String(), res
}

func TestCopy(t *testing.T) {
	tree := map[string]string{
		"a.txt": "a", "b.txt": "b", "dir/one": "1", "dir/sub/two": "2", "dir/.hidden": "h",
		"link@": "a.txt", "dirlink@": "dir", "dir/in@": "../a.txt", "dir/out@": "/etc/passwd",
	}
	cache := cacheDir(t)
	for _, c := range []struct{ name, lines, want string }{
		{"a file to a name", "COPY a.txt /x/y", "d0755 x\n-0644 x/y\n"},
		{"a file to a directory", "COPY a.txt /x/", "d0755 x\n-0644 x/a.txt\n"},
		{"a file to a WORKDIR that comes later", "COPY a.txt /x\nWORKDIR /x", "d0755 x\n-0644 x/a.txt\n"},
		{"a file to a parent of a WORKDIR", "COPY a.txt /x\nWORKDIR /x/y", "d0755 x\n-0644 x/a.txt\nd0755 x\nd0755 x/y\n"},
		{"a file to a directory of the image", "COPY a.txt /opt", "d0755 opt\n-0644 opt/a.txt\n"},
		{"through a symlink of the image", "COPY a.txt /bin/", "d0755 usr\nd0755 usr/bin\n-0644 usr/bin/a.txt\n"},
		{"over a file of the image", "COPY a.txt /etc/removeme", "d0755 etc\n-0644 etc/removeme\n"},
		{"relative to WORKDIR", "WORKDIR /w\nCOPY a.txt ./x", "d0755 w\n-0644 w/x\n"},
		{"several files", "COPY a.txt b.txt /x", "d0755 x\n-0644 x/a.txt\n-0644 x/b.txt\n"},
		{"a glob of one", "COPY a* /x/y", "d0755 x\n-0644 x/y\n"},
		{"a glob", "COPY *.txt /x", "d0755 x\n-0644 x/a.txt\n-0644 x/b.txt\n"},
		{"a directory's content", "COPY dir /x", "d0755 x\n-0644 x/.hidden\nl0777 x/in -> ../a.txt\n-0644 x/one\nl0777 x/out -> /etc/passwd\nd0755 x/sub\n-0644 x/sub/two\n"},
		{"a symlink inside is followed", "COPY link dirlink/one /x/", "d0755 x\n-0644 x/link\n-0644 x/one\n"},
		{"chmod", "COPY --chmod=640 dir/sub /x", "d0750 x\n-0640 x/two\n"},
		{"chown by name of the image", "COPY --chown=www-data:staff a.txt /x", "-0644 33:50 x\n"},
		{"chown by number", "COPY --chown=7 a.txt /x", "-0644 7:7 x\n"},
		{"chown by USER", "USER username:bob\nUSER username:eve\nCOPY --chown=eve a.txt /x", "-0644 1002:1002 x\n"},
		{"a home that COPY makes", "USER username:bob\nCOPY a.txt /home/bob/in/", "d0755 home\nd0755 1001:1001 home/bob\nd0755 1001:1001 home/bob/in\n-0644 1001:1001 home/bob/in/a.txt\n"},
		{"a home that WORKDIR makes", "NOCOPY\nUSER username:bob\nWORKDIR /home/bob/in", "d0755 home\nd0755 1001:1001 home/bob\nd0755 1001:1001 home/bob/in\n"},
		{"a home that RUN works in", "NOCOPY\nUSER username:bob\nWORKDIR /home/bob\nRUN echo", "d0755 home\nd0755 1001:1001 home/bob\n"},
		{"a home, for somebody else", "USER username:bob\nCOPY --chown=33 link /home/bob/", "d0755 home\nd0755 33:33 home/bob\n-0644 33:33 home/bob/link\n"},
		{"chown by a name that a step made", "USER username:bob\nRUN echo bob:x:77:50::/:/bin/sh >> /etc/passwd\nCOPY --chown=bob a.txt /x", "d0755 etc\n-0755 etc/passwd\n-0644 77:50 x\n"},
		{"chown by a USER with a group of the image", "USER username:staff\nCOPY --chown=staff a.txt /x", "-0644 1001:50 x\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got, _ := copied(t, cache, tree, c.lines); got != c.want {
				t.Errorf("got:\n%s\nwant:\n%s", got, c.want)
			}
		})
	}
}

// TestCopyEverything: no COPY takes the context, without what is not content.
func TestCopyEverything(t *testing.T) {
	got, res := copied(t, cacheDir(t), map[string]string{
		".git/HEAD": "x", ".formignore": "*.log\nbuild/\n!keep.log\n", "main.py": "x", "a.log": "x", "keep.log": "x",
		"build/out": "x", "sub/build/out": "x", "sub/.env": "SECRET=1", "sub/key.txt": "-----BEGIN OPENSSH PRIVATE KEY-----\n", "sub/.git/x": "x",
	}, "WORKDIR /app")
	want := "d0755 app\n-0644 app/keep.log\n-0644 app/main.py\nd0755 app/sub\n-0644 app/sub/.env\n-0644 app/sub/key.txt\n"
	if got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
	if len(res.Warnings) != 2 || !strings.Contains(res.Warnings[0], "sub/.env looks like a credential") || !strings.Contains(res.Warnings[1], "sub/key.txt looks like a credential") {
		t.Errorf("warnings: %q", res.Warnings)
	}
	if got, _ := copied(t, cacheDir(t), map[string]string{"main.py": "x"}, "NOCOPY\n"); got != "" {
		t.Errorf("NOCOPY copied:\n%s", got)
	}
}

func TestCopyRefused(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "outside")
	if err := os.WriteFile(outside, []byte("the host's"), 0o644); err != nil {
		t.Fatal(err)
	}
	tree := map[string]string{
		"a": "a", "dir/f": "f", ".formignore": "\ufeffsecret\nbuild/\n", "secret": "s", "build/f": "f", ".git/config": "x", "tmp/f": "f",
		"abs@": outside, "up@": "../../../../../../../../etc/hostname", "updir@": "..", "dangling@": "nowhere", "loop@": "loop",
	}
	cache := cacheDir(t)
	for _, c := range []struct{ line, want string }{
		{"COPY missing /x", "no such file in the context"},
		{"COPY nothing* /x", "nothing in the context matches"},
		{"COPY abs /x", "leaves the context or leads nowhere"},
		{"COPY up /x", "leaves the context or leads nowhere"},
		{"COPY updir/x /x", "path escapes"},
		{"COPY updir /x", "leaves the context or leads nowhere"},
		{"COPY a* /x/", "leaves the context or leads nowhere"},
		{"COPY dangling /x", "no such file"},
		{"COPY loop /x", "COPY loop"},
		{"COPY secret /x", "excluded by .formignore"},
		{"COPY build /x", "excluded by .formignore"},
		{"COPY */config /x", "nothing in the context matches"},
		{"COPY dir /etc/removeme", "the image has a file there"},
		{"COPY a /x/etc/\nCOPY dir/f /x/etc/a/f/", "the image has a file there"},
		{"COPY --chown=nobody-here a /x", "has the name nobody-here"},
		{"COPY --chown=root:nogroup-here a /x", "has the group nogroup-here"},
		{"COPY a /opt/old/sub/file/x", "the image has a file there"},
		{"RUN ln -s nowhere /gone\nCOPY a /gone/", "Formfile:3:8: /gone cannot be a directory: the image has a symlink there that leads nowhere"},
		{"RUN ln -s loop /loop\nCOPY a /loop/x", "Formfile:3:8: /loop cannot be a directory: the image has a symlink to itself there"},
		{"RUN ln -s /run /var/run\nCOPY a /var/run/x", "Formfile:3:8: COPY to /var/run/x leads to a folder that is empty"},
		{"RUN ln -s /proc/self/fd /fds\nCOPY a /fds/", "Formfile:3:8: /fds cannot be a directory"},
		{"COPY a /x\nCOPY . /", "Formfile:3:8: COPY of tmp/f to /tmp/f: /tmp is empty whenever the instance starts"},
		{"COPY --chmod=644 --chown=nobody-here a /x", "Formfile:2:26: --chown=nobody-here"},
		{"NOCOPY\nWORKDIR /etc/removeme/x", "Formfile:3:9: WORKDIR /etc/removeme/x: /etc/removeme cannot be a directory: the image has a file there"},
		{"NOCOPY\nWORKDIR /etc/removeme\nRUN true", "Formfile:3:9: WORKDIR /etc/removeme: "},
	} {
		t.Run(c.line, func(t *testing.T) {
			files := map[string]string{"Formfile": "NAME a\n" + c.line + "\n"}
			for k, v := range tree {
				files[k] = v
			}
			p := newProject(t, files)
			p.opts.CacheDir = cache
			before := hostState(t, p.opts.CacheDir)
			_, err := p.build()
			var ce *ContextError
			if !errors.As(err, &ce) || !strings.HasPrefix(err.Error(), "Formfile:") || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got  %v\nwant …%s…", err, c.want)
			}
			if len(p.store.packs) != 0 {
				t.Error("a pack was written")
			}
			checkClean(t, before, p.opts.CacheDir, p.store.file(p.store.base.Rootfs), "")
		})
	}
}

// TestCopyNamed: what is left out comes along when a COPY names it.
func TestCopyNamed(t *testing.T) {
	got, _ := copied(t, cacheDir(t), map[string]string{".git/config": "x", ".git/HEAD": "x"}, "COPY .git/conf* /x\nCOPY .git /y\nCOPY Formfile /z")
	if want := "-0644 x\nd0755 y\n-0644 y/HEAD\n-0644 y/config\n-0644 z\n"; got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}

// TestOtherFormfile: neither the file that is built nor the folder's own goes in.
func TestOtherFormfile(t *testing.T) {
	p := newProject(t, map[string]string{"Formfile": "NAME a\nCOPY . /x\n", "other.form": "x", "sub/Formfile": "x"})
	p.opts.Formfile = "other.form"
	if got, want := p.list(p.mustBuild().Layers[0]), "d0755 0:0 2025-01-01 x\nd0755 0:0 2025-01-01 x/sub\n-0644 0:0 2025-01-01 x/sub/Formfile\n"; got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}

// TestCopyUmask: checkouts with any umask give the same.
func TestCopyUmask(t *testing.T) {
	p := newProject(t, map[string]string{"Formfile": "NAME a\nCOPY d /x\nCOPY --chmod=4750 d/prog /y\n", "d/sub/f": "f", "d/prog": "p"})
	var cids []string
	for _, mask := range []os.FileMode{0o077, 0o027, 0o022, 0o002, 0} {
		for name, perm := range map[string]os.FileMode{"d": 0o777, "d/sub": 0o777, "d/sub/f": 0o666, "d/prog": 0o777} {
			if err := os.Chmod(filepath.Join(p.opts.Context, name), perm&^mask); err != nil {
				t.Fatal(err)
			}
		}
		res := p.mustBuild()
		cids = append(cids, res.CID.String())
		if got, want := p.list(res.Layers[1])+p.list(res.Layers[0]), "d0755 0:0 2025-01-01 x\n-0755 0:0 2025-01-01 x/prog\nd0755 0:0 2025-01-01 x/sub\n-0644 0:0 2025-01-01 x/sub/f\n-4750 0:0 2025-01-01 y\n"; got != want {
			t.Errorf("umask %o: got:\n%s\nwant:\n%s", mask, got, want)
		}
	}
	if len(slices.Compact(cids)) != 1 {
		t.Errorf("different packs: %v", cids)
	}
}

// TestCopyErrors: all of them, each at its word, before a step runs.
func TestCopyErrors(t *testing.T) {
	p := newProject(t, map[string]string{"f": "f", "Formfile": "NAME a\nRUN echo first\nCOPY missing f \\\n  nothing* /x/\nCOPY --chmod=644 gone /y\n"})
	_, err := p.build()
	var ce *ContextError
	if !errors.As(err, &ce) {
		t.Fatalf("got %v", err)
	}
	want := "Formfile:3:6: COPY missing: no such file in the context\n" +
		"Formfile:4:3: COPY nothing*: nothing in the context matches\n" +
		"Formfile:5:18: COPY gone: no such file in the context"
	if err.Error() != want {
		t.Errorf("got:\n%v\nwant:\n%s", err, want)
	}
	if len(p.out.started) != 0 {
		t.Errorf("started %q", p.out.started)
	}
	p.write(map[string]string{"Formfile": "NAME a\nCOPY --chown=ghost f /x\nCOPY --chown=root:ghosts gone /y\nRUN useradd ghost\nCOPY --chown=ghost f /z\n"})
	_, err = p.build()
	want = "Formfile:2:14: --chown=ghost: neither the image nor a USER of the Formfile has the name ghost\n" +
		"Formfile:3:26: COPY gone: no such file in the context\n" +
		"Formfile:3:14: --chown=root:ghosts: neither the image nor a USER of the Formfile has the group ghosts"
	if fmt.Sprint(err) != want {
		t.Errorf("got:\n%v\nwant:\n%s", err, want)
	}
}

// TestCopyStaysInside: a directory that the builder's caller left open is no way
// out of the image.
func TestCopyStaysInside(t *testing.T) {
	host := t.TempDir()
	fd, err := unix.Open(host, unix.O_RDONLY|unix.O_DIRECTORY, 0) // inherited by children
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	p := newProject(t, map[string]string{"evil": "x", "Formfile": "NAME a\nNOCOPY\n"})
	p.mustBuild()
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
	if err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Errorf("helpers inherit descriptor %d: flags %d, %v", fd, flags, err)
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, 0); err != nil {
		t.Fatal(err)
	}
	p.write(map[string]string{"Formfile": fmt.Sprintf("NAME a\nRUN ln -s /proc/self/fd/%d /out\nCOPY evil /out/\n", fd)})
	if _, err := p.build(); err == nil || !strings.HasPrefix(err.Error(), "Formfile:3:11: ") {
		t.Errorf("got %v", err)
	}
	if list, err := os.ReadDir(host); err != nil || len(list) > 0 {
		t.Errorf("written to the host: %v, %v", list, err)
	}
}

// TestCopySpecialFiles: a pipe in the context neither blocks nor is copied.
func TestCopySpecialFiles(t *testing.T) {
	p := newProject(t, map[string]string{"Formfile": "NAME a\nCOPY . /x\n", "f": "f"})
	if err := unix.Mkfifo(filepath.Join(p.opts.Context, "pipe"), 0o644); err != nil {
		t.Fatal(err)
	}
	res := p.mustBuild()
	if got := p.list(res.Layers[0]); strings.Contains(got, "pipe") {
		t.Errorf("got:\n%s", got)
	}
	if len(res.Warnings) != 1 || !strings.Contains(res.Warnings[0], "pipe") {
		t.Errorf("warnings: %q", res.Warnings)
	}
}

// TestCopyChangedDuringBuild: bytes that are not those of the cache key are
// refused.
func TestCopyChangedDuringBuild(t *testing.T) {
	p := newProject(t, map[string]string{"Formfile": "NAME a\nRUN echo go\nCOPY f /x\n", "f": "before"})
	c, err := openContext(p.opts.Context, "Formfile")
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	set, bad := c.resolve(p.opts.File.Steps[1].Copy)
	if len(bad) > 0 {
		t.Fatal(bad)
	}
	for _, text := range []string{"behind", "longer than before", ""} {
		p.write(map[string]string{"f": text})
		if err := c.stream(discard{}, set); err == nil || !strings.Contains(err.Error(), "changed during the build") && text != "" {
			t.Errorf("%q: got %v", text, err)
		}
	}
}

type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }

// TestTwoBuildsAtOnce share one cache directory.
func TestTwoBuildsAtOnce(t *testing.T) {
	p := newProject(t, map[string]string{"Formfile": seedFormfile, "hello.py": "x"})
	q := *p
	q.opts.Reporter = &recorder{}
	type answer struct {
		res *Result
		err error
	}
	answers := make(chan answer, 2)
	for _, opts := range []Options{p.opts, q.opts} {
		go func() {
			res, err := Build(t.Context(), opts)
			answers <- answer{res, err}
		}()
	}
	var cids []string
	for range 2 {
		select {
		case a := <-answers:
			if a.err != nil {
				t.Fatal(a.err)
			}
			cids = append(cids, a.res.CID.String())
		case <-time.After(time.Minute):
			t.Fatal("still building")
		}
	}
	if cids[0] != cids[1] {
		t.Errorf("different packs: %v", cids)
	}
}
