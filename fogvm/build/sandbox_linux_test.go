package build

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// othersMount says whether a line of mountinfo is what tests of other packages make,
// which run at the same time: below their own folders, or a network namespace.
func othersMount(t *testing.T, line string) bool {
	f := strings.Fields(line)
	if len(f) < 5 {
		return false
	}
	mine, _, _ := strings.Cut(t.Name(), "/")
	tests := filepath.Join(os.TempDir(), "Test")
	return strings.HasPrefix(f[4], tests) && !strings.HasPrefix(f[4], filepath.Join(os.TempDir(), mine)) || strings.HasPrefix(f[4], "/run/netns")
}

// hostState is what a build must leave as it was.
func hostState(t *testing.T, cache string) string {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	tmp, err := os.ReadDir(filepath.Join(cache, "tmp"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	lines := strings.SplitAfter(string(mounts), "\n")
	s := strings.Join(slices.DeleteFunc(lines, func(l string) bool { return othersMount(t, l) }), "")
	for _, e := range tmp {
		s += "left in tmp: " + e.Name() + "\n"
	}
	return s
}

// checkClean waits for what the kernel frees in the background (loop devices),
// then compares.
func checkClean(t *testing.T, before, cache, image, marker string) {
	t.Helper()
	if after := hostState(t, cache); after != before {
		t.Errorf("the build left something behind.\nbefore:\n%s\nafter:\n%s", before, after)
	}
	if marker != "" {
		if pids := processes(t, marker); len(pids) > 0 {
			t.Errorf("processes left: %v", pids)
		}
	}
	within(t, "the loop devices are free", func() bool { return len(loopsOf(t, image)) == 0 })
}

func processes(t *testing.T, marker string) []string {
	t.Helper()
	names, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, n := range names {
		// A process may end while we look.
		if b, err := os.ReadFile(n); err == nil && strings.Contains(string(b), marker) {
			out = append(out, n)
		}
	}
	return out
}

func loopsOf(t *testing.T, image string) []string {
	t.Helper()
	names, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(names, func(n string) bool {
		b, err := os.ReadFile(n)
		return err != nil || strings.TrimSpace(string(b)) != image
	})
}

func TestFailingStep(t *testing.T) {
	p := newProject(t, map[string]string{"Formfile": `NAME a
NOCOPY
RUN echo fine > /fine
RUN echo first line && echo and the last >&2; sleep 31415926 & exit 42
RUN echo never
`})
	before := hostState(t, p.opts.CacheDir)
	_, err := p.build()
	var step *StepError
	if !errors.As(err, &step) {
		t.Fatalf("got %v", err)
	}
	if step.Index != 2 || step.Total != 3 || step.ExitCode != 42 || step.Tail != "first line\nand the last\n" || step.Step.Pos.Line != 4 {
		t.Errorf("got %+v", step)
	}
	if want := "Formfile:4:1: step 2 of 3 failed with exit code 42: RUN echo first line"; !strings.HasPrefix(err.Error(), want) {
		t.Errorf("got  %v\nwant %s…", err, want)
	}
	if len(p.out.started) != 2 || len(p.store.packs) != 0 {
		t.Errorf("started %q, %d packs", p.out.started, len(p.store.packs))
	}
	checkClean(t, before, p.opts.CacheDir, p.store.file(p.store.base.Rootfs), "31415926")
}

func TestCancel(t *testing.T) {
	p := newProject(t, map[string]string{"Formfile": "NAME a\nNOCOPY\nRUN sleep 27182818 & echo started; sleep 27182818\n"})
	before := hostState(t, p.opts.CacheDir)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	p.out.seen = func(out string) {
		if strings.Contains(out, "started") {
			cancel()
		}
	}
	if _, err := Build(ctx, p.opts); !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
	checkClean(t, before, p.opts.CacheDir, p.store.file(p.store.base.Rootfs), "27182818")
}

// TestSweep: what a killed build left is removed by the next one, what a
// running one uses is not.
func TestSweep(t *testing.T) {
	p := newProject(t, map[string]string{"Formfile": "NAME a\nNOCOPY\n"})
	tmp := filepath.Join(p.opts.CacheDir, "tmp")
	for _, d := range []string{"dead/x", "alive/x"} {
		if err := os.MkdirAll(filepath.Join(tmp, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(tmp, "dead.lock"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	lock, err := tryLock(filepath.Join(tmp, "alive.lock"))
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	p.mustBuild()
	list, err := os.ReadDir(tmp)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range list {
		names = append(names, e.Name())
	}
	if want := []string{"alive", "alive.lock"}; !slices.Equal(names, want) {
		t.Errorf("tmp holds %q, want %q", names, want)
	}
}

// TestSandbox looks around from inside. Each command must succeed.
func TestSandbox(t *testing.T) {
	t.Setenv("http_proxy", "http://proxy.test:3128")
	secret := filepath.Join(t.TempDir(), "host-secret")
	if err := os.WriteFile(secret, []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	p := newProject(t, nil)
	checks := map[string]string{
		"no host path is visible":         `test ! -e ` + secret + ` && test ! -e /work && test ! -e /.dockerenv`,
		"own process IDs":                 `test "$(cat /proc/1/comm)" = exe || grep -q formation /proc/1/cmdline`,
		"few processes":                   `set -- /proc/[0-9]*; test $# -lt 8`,
		"own host name":                   `test "$(hostname)" = build`,
		"no new privileges":               `grep -q 'NoNewPrivs:.1' /proc/self/status`,
		"bounded capabilities":            `grep -q 'CapBnd:.00000000a00404fb' /proc/self/status`,
		"no devices but the usual":        `test -c /dev/null && test ! -e /dev/vda && test ! -e /dev/kvm && ! mknod /root/disk b 8 0`,
		"settings of the kernel are off":  `! echo x > /proc/sys/kernel/hostname; ! echo h > /proc/sysrq-trigger || test ! -s /proc/sysrq-trigger`,
		"process 1 cannot be looked at":   `! readlink /proc/1/root && ! readlink /proc/1/exe && ! cat /proc/1/environ && ! cat /proc/1/fd/3`,
		"no file is open but those of ls": `set -- $(ls /proc/self/fd); test "$*" = "0 1 2 3"`,
		"no sysfs":                        `set -- /sys/*; test "$*" = "/sys/*"`,
		"working directory":               `test "$PWD" = /srv/app`,
		"ENV":                             `test "$A" = "b c" && test "$LATER" = ""`,
		"time of files":                   `test "$SOURCE_DATE_EPOCH" = 1735689600`,
		"proxy":                           `test "$http_proxy" = http://proxy.test:3128`,
		"name servers":                    `test -s /etc/resolv.conf`,
		"input is empty":                  `test "$(cat)" = ""`,
		"umask":                           `test "$(umask)" = 0022`,
		"temporary directories":           `echo x > /tmp/x && echo x > /run/x`,
	}
	var b strings.Builder
	b.WriteString("NAME a\nNOCOPY\nWORKDIR /srv/app\nENV A=\"b c\"\n")
	names := make([]string, 0, len(checks))
	for name := range checks {
		names = append(names, name)
	}
	slices.Sort(names)
	b.WriteString("RUN ")
	for _, name := range names {
		b.WriteString("{ " + checks[name] + "; } 2>/tmp/err || { echo FAILED: " + name + "; cat /tmp/err; failed=1; }; ")
	}
	b.WriteString("exit $failed\nENV LATER=x\n")
	p.write(map[string]string{"Formfile": b.String()})
	res := p.mustBuild()
	if len(res.Layers) != 1 {
		t.Fatalf("%d layers", len(res.Layers))
	}
	if got, want := p.list(res.Layers[0]), "d0755 0:0 2025-01-01 srv\nd0755 0:0 2025-01-01 srv/app\n"; got != want {
		t.Errorf("the steps left:\n%swant:\n%s", got, want)
	}
}

// TestLongReply: a helper that says more than is read ends all the same.
func TestLongReply(t *testing.T) {
	needSandbox(t)
	s, err := newSpawner()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if _, err := s.do(ctx, call{req: request{Mode: strings.Repeat("x", 2*maxReply)}}); err == nil || ctx.Err() != nil {
		t.Errorf("got %v, %v", err, ctx.Err())
	}
}

// TestEnvWins: of the host's, the builder's and the Formfile's variables a command
// sees the last, and each once.
func TestEnvWins(t *testing.T) {
	t.Setenv("http_proxy", "http://proxy.test:3128")
	p := newProject(t, map[string]string{"Formfile": "NAME a\nNOCOPY\nENV http_proxy=mine TZ=Mars A=1\nENV A=2 PATH=/bin\nRUN [\"env\"]\n"})
	p.mustBuild()
	lines := strings.Split(p.out.output.String(), "\n")
	for _, want := range []string{"http_proxy=mine", "TZ=Mars", "A=2", "PATH=/bin"} {
		key, _, _ := strings.Cut(want, "=")
		has := slices.DeleteFunc(slices.Clone(lines), func(l string) bool { return !strings.HasPrefix(l, key+"=") })
		if !slices.Equal(has, []string{want}) {
			t.Errorf("%s: %q", key, has)
		}
	}
}

// TestNetworks: only INSTALL and RUN share the host's network.
func TestNetworks(t *testing.T) {
	p := newProject(t, map[string]string{"Formfile": "NAME a\nNOCOPY\nRUN readlink /proc/self/ns/net\n"})
	p.mustBuild()
	host, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.TrimSpace(p.out.output.String()); got != host {
		t.Errorf("RUN is in %s, not in the host's network %s", got, host)
	}
	if cmd := helperCommand(t.Context(), false, true); cmd.SysProcAttr.Cloneflags&syscall.CLONE_NEWNET == 0 {
		t.Error("the other steps have no network namespace of their own")
	}
}
