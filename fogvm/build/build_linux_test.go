package build

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// describe gives one line of project.list.
func describe(t *testing.T, dir, path string) string {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Fatal(err)
	}
	rel, err := filepath.Rel(dir, path)
	if err != nil {
		t.Fatal(err)
	}
	kind := map[uint32]string{unix.S_IFREG: "-", unix.S_IFDIR: "d", unix.S_IFLNK: "l", unix.S_IFCHR: "c", unix.S_IFIFO: "p"}[st.Mode&unix.S_IFMT]
	s := fmt.Sprintf("%s%04o %d:%d %s %s", kind, st.Mode&0o7777, st.Uid, st.Gid, time.Unix(st.Mtim.Sec, 0).UTC().Format("2006-01-02"), rel)
	if kind == "c" {
		s = fmt.Sprintf("whiteout %d:%d %s", unix.Major(st.Rdev), unix.Minor(st.Rdev), rel)
	}
	if kind == "l" {
		to, err := os.Readlink(path)
		if err != nil {
			t.Fatal(err)
		}
		s += " -> " + to
	}
	if opaque, err := isOpaque(path); err != nil {
		t.Fatal(err)
	} else if opaque {
		s += " (opaque)"
	}
	return s + "\n"
}

const seedFormfile = `NAME hello-server
USER username:bigdog passwd:bigdog123 sudo:true
VCPU 1
MEM 512
DISK 5
COPY ./hello.py /app
INSTALL python3
WORKDIR /app
ENTRYPOINT ["python3", "/app/hello.py"]
`

// TestSeed builds the README's Formfile and shows each layer.
func TestSeed(t *testing.T) {
	p := newProject(t, map[string]string{"Formfile": seedFormfile, "hello.py": "print('hello')\n", "other": "not copied"})
	res := p.mustBuild()
	if got, want := strings.Join(p.out.started, "\n"), "[1/3] COPY ./hello.py /app\n[2/3] INSTALL python3\n[3/3] WORKDIR /app"; got != want {
		t.Errorf("steps:\n%s\nwant:\n%s", got, want)
	}
	if len(res.Layers) != 2 {
		t.Fatalf("%d layers, want those of COPY and INSTALL", len(res.Layers))
	}
	t.Log("layers:", roots(res.Layers))
	wantCopy := `d0755 0:0 2025-01-01 app
-0644 0:0 2025-01-01 app/hello.py
`
	if got := p.list(res.Layers[1]); got != wantCopy {
		t.Errorf("COPY layer:\n%s\nwant:\n%s", got, wantCopy)
	}
	// No log, lock, backup, host key, machine ID, package index, resolv.conf or
	// policy-rc.d; packages keep their times.
	wantInstall := `d0755 0:0 2025-01-01 etc
d0755 0:0 2025-01-01 etc/ssh
d0755 0:0 2025-01-01 usr
d0755 0:0 2025-01-01 usr/bin
-0644 0:0 2020-02-02 usr/bin/python3.program
d0755 0:0 2025-01-01 var
d0755 0:0 2025-01-01 var/cache
d0755 0:0 2025-01-01 var/cache/ldconfig
d0755 0:0 2025-01-01 var/lib
d0755 0:0 2025-01-01 var/lib/dpkg
-0644 0:0 2025-01-01 var/lib/dpkg/status
d0755 0:0 2025-01-01 var/log
d0755 0:0 2025-01-01 var/log/apt
d0755 0:0 2025-01-01 var/log/nginx
`
	if got := p.list(res.Layers[0]); got != wantInstall {
		t.Errorf("INSTALL layer:\n%s\nwant:\n%s", got, wantInstall)
	}
	run := res.Root.Run
	if run.VCPU != 1 || run.MemoryBytes != 512<<20 || run.DiskBytes != 5<<30 || run.Workdir != "/app" || strings.Join(run.Entrypoint, " ") != "python3 /app/hello.py" {
		t.Errorf("run configuration: %+v", run)
	}
	// The base has an account 1000 already.
	if u := run.Users[0]; u.Name != "bigdog" || u.UID != 1001 || !u.Sudo || !strings.HasPrefix(u.PasswordHash, "$6$rounds=50000$") {
		t.Errorf("user: %+v", u)
	}
	if len(res.Warnings) != 1 || !strings.Contains(res.Warnings[0], "Formfile:2:29: warning: the password of bigdog") {
		t.Errorf("warnings: %q", res.Warnings)
	}
}

func TestRepeatable(t *testing.T) {
	formfile := seedFormfile + "RUN date > /etc/now; rm /etc/now; mkdir /srv; touch /srv/a; ln /srv/a /srv/b; ln -s a /srv/c\n"
	p := newProject(t, map[string]string{"Formfile": formfile, "hello.py": "print('hello')\n"})
	first := p.mustBuild()
	q := newProject(t, map[string]string{"Formfile": formfile, "hello.py": "print('hello')\n"})
	old := time.Unix(1e9, 0)
	err := errors.Join(os.Chtimes(filepath.Join(q.opts.Context, "hello.py"), old, old), os.Chmod(filepath.Join(q.opts.Context, "hello.py"), 0o664))
	if err != nil {
		t.Fatal(err)
	}
	second := q.mustBuild()
	if first.CID != second.CID {
		t.Errorf("two builds gave %s and %s, layers %v and %v", first.CID, second.CID, roots(first.Layers), roots(second.Layers))
	}
	q.opts.NoCache = true
	third := q.mustBuild()
	if third.CID != first.CID || third.CachedSteps != 0 {
		t.Errorf("without the cache: %s with %d cached steps, want %s and 0", third.CID, third.CachedSteps, first.CID)
	}
}

func TestEntrypointReusesLayers(t *testing.T) {
	p := newProject(t, map[string]string{"Formfile": seedFormfile, "hello.py": "x"})
	first := p.mustBuild()
	adds := p.store.adds
	p.write(map[string]string{"Formfile": strings.Replace(seedFormfile, `"/app/hello.py"]`, `"-u", "/app/hello.py"]`, 1)})
	second := p.mustBuild()
	if first.CID == second.CID {
		t.Error("the CID does not depend on ENTRYPOINT")
	}
	if !sameLayers(first, second) || p.store.adds != adds || second.CachedSteps != second.Steps {
		t.Errorf("%d of %d steps cached, %d images added", second.CachedSteps, second.Steps, p.store.adds-adds)
	}
}

// TestChangedCopy: what COPY brings changes its layer only, though the steps
// after it run again.
func TestChangedCopy(t *testing.T) {
	p := newProject(t, map[string]string{"Formfile": seedFormfile, "hello.py": "x"})
	first := p.mustBuild()
	p.write(map[string]string{"hello.py": "y"})
	second := p.mustBuild()
	if second.CachedSteps != 0 {
		t.Errorf("%d steps came from the cache", second.CachedSteps)
	}
	if first.Layers[0].Root != second.Layers[0].Root {
		t.Error("the INSTALL layer changed")
	}
	if first.Layers[1].Root == second.Layers[1].Root {
		t.Error("the COPY layer did not change")
	}
}
