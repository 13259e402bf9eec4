package build

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multihash"

	"github.com/formthefog/formation/store"
	"github.com/formthefog/formation/store/formfile"
)

// TestMain lets the test binary be its own sandbox, as every user of Build must.
func TestMain(m *testing.M) {
	SandboxMain()
	// The race detector makes a process linger for a second at its end, and
	// these tests start hundreds.
	if err := os.Setenv("GORACE", "atexit_sleep_ms=0"); err != nil {
		panic(err)
	}
	code := m.Run()
	if tiny.dir != "" {
		if err := os.RemoveAll(tiny.dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// fakeStore keeps images as files and packs in memory; what it names it names
// by content, as the real one does.
type fakeStore struct {
	dir   string
	base  store.Base
	mu    sync.Mutex
	packs map[cid.Cid]store.Root
	adds  int
}

func cidOf(b []byte) cid.Cid {
	h, err := multihash.Sum(b, multihash.SHA2_256, -1)
	if err != nil {
		panic(err) // sha2-256 is always registered
	}
	return cid.NewCidV1(cid.Raw, h)
}

func newFakeStore(t *testing.T, rootfs string) *fakeStore {
	t.Helper()
	s := &fakeStore{dir: t.TempDir(), packs: map[cid.Cid]store.Root{}}
	e := s.entry(t, rootfs)
	s.base = store.Base{Name: "tiny", Rootfs: e}
	if err := os.Link(rootfs, s.file(e)); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *fakeStore) entry(t *testing.T, file string) store.Entry {
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(b)
	return store.Entry{Kind: "rootfs", Root: cidOf(b), Size: int64(len(b)), SHA256: sum[:], Format: "squashfs"}
}

func (s *fakeStore) file(e store.Entry) string { return filepath.Join(s.dir, e.Root.String()) }

func (s *fakeStore) Base(context.Context, cid.Cid) (*store.Base, error) { return &s.base, nil }

func (s *fakeStore) Path(e store.Entry) (string, error) {
	if _, err := os.Stat(s.file(e)); err != nil {
		return "", store.ErrNotFound
	}
	return s.file(e), nil
}

func (s *fakeStore) AddImage(_ context.Context, path, kind, format string) (store.Entry, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return store.Entry{}, err
	}
	sum := sha256.Sum256(b)
	e := store.Entry{Kind: kind, Root: cidOf(b), Size: int64(len(b)), SHA256: sum[:], Format: format}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.adds++
	return e, os.Rename(path, s.file(e))
}

func (s *fakeStore) PutPack(_ context.Context, r store.Root, _ ed25519.PrivateKey) (cid.Cid, error) {
	b, err := json.Marshal(r)
	if err != nil {
		return cid.Undef, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.packs[cidOf(b)] = r
	return cidOf(b), nil
}

// tiny is a base made of a few of this machine's own programs, once per run.
var tiny struct {
	once       sync.Once
	dir, image string
	err        error
}

// tinyPrograms are in every Debian; the image gets them with their libraries.
var tinyPrograms = []string{
	"sh", "cat", "chmod", "chown", "cp", "date", "env", "grep", "id", "ln", "ls", "mkdir", "mknod", "mv",
	"readlink", "rm", "sleep", "stat", "touch", "hostname", "mktemp",
}

// tinyBase gives the squashfs image of the tiny base.
func tinyBase(t *testing.T) string {
	t.Helper()
	needSandbox(t)
	tiny.once.Do(func() {
		if tiny.dir, tiny.err = os.MkdirTemp("", "formation-build-test"); tiny.err == nil {
			tiny.image, tiny.err = makeTinyBase(tiny.dir)
		}
	})
	if tiny.err != nil {
		t.Fatal(tiny.err)
	}
	return tiny.image
}

// needSandbox skips where no sandbox can be made, and says so.
func needSandbox(t *testing.T) {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skip("SKIP: building needs Linux")
	}
	for _, tool := range []string{"mksquashfs", "unsquashfs"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("SKIP: building needs squashfs-tools: %v", err)
		}
	}
	if _, err := newSpawner(); err != nil {
		t.Skipf("SKIP: %v", err)
	}
}

func makeTinyBase(dir string) (string, error) {
	root := filepath.Join(dir, "root")
	for _, d := range []string{"usr/bin", "usr/sbin", "etc/apt", "home", "root", "proc", "sys", "dev", "run", "tmp", "var/log", "var/lib/apt/lists", "var/cache/apt/archives", "opt/old/sub"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			return "", err
		}
	}
	for link, to := range map[string]string{"bin": "usr/bin", "sbin": "usr/sbin", "lib": "usr/lib", "lib64": "usr/lib64"} {
		if err := os.Symlink(to, filepath.Join(root, link)); err != nil {
			return "", err
		}
	}
	for _, p := range tinyPrograms {
		if err := addProgram(root, p); err != nil {
			return "", err
		}
	}
	files := map[string]string{
		"etc/passwd":         "root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33::/:/bin/sh\ntaken:x:1000:1000::/:/bin/sh\n",
		"etc/group":          "root:x:0:\nwww-data:x:33:\nstaff:x:50:\n",
		"etc/removeme":       "base\n",
		"opt/old/sub/file":   "old\n",
		"opt/old/keep":       "keep\n",
		"usr/bin/apt-get":    fakeApt,
		"usr/bin/apt-cache":  fakeAptCache,
		"var/log/dpkg.log":   "base log\n",
		"etc/apt/apt.conf.d": "",
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(root, name), []byte(text), 0o755); err != nil {
			return "", err
		}
	}
	image := filepath.Join(dir, "tiny.squashfs")
	out, err := exec.Command("mksquashfs", root, image, "-quiet", "-no-progress", "-all-root", "-comp", "zstd").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("mksquashfs: %w: %s", err, out)
	}
	return image, nil
}

// fakeApt behaves like apt-get where it matters to the builder: it leaves
// logs, locks, backups and times that differ from run to run.
const fakeApt = `#!/bin/sh
set -e
grep -q 'Error-Mode "any"' "$APT_CONFIG"
test "$DEBIAN_FRONTEND" = noninteractive
test -x /usr/sbin/policy-rc.d
test -s /etc/resolv.conf
test "$(stat -c %F /var/lib/apt/lists/partial)" = directory
echo "apt-get $*"
case "$*" in
*update) echo index-$(date +%s%N) > /var/lib/apt/lists/index;;
*install*)
	test -f /var/lib/apt/lists/index
	shift 5
	mkdir -p /var/lib/dpkg /var/log/apt /var/cache/ldconfig /etc/ssh /var/log/nginx
	date +%s%N > /var/log/apt/history.log
	date +%s%N >> /var/log/dpkg.log
	date +%s%N > /var/log/nginx/access.log
	date +%s%N > /var/cache/ldconfig/aux-cache
	date +%s%N > /etc/machine-id
	date +%s%N > /etc/ssh/ssh_host_ed25519_key
	date +%s%N > /var/lib/dpkg/status-old
	date +%s%N > /tmp/junk
	date +%s%N > /run/junk
	cp /etc/passwd /etc/passwd-
	for p in "$@"; do
		case "$p" in nosuch*) echo "E: Unable to locate package $p" >&2; exit 100;; esac
		echo "$p" > /usr/bin/$p.program
		echo "$p" >> /var/lib/dpkg/status
		touch -d '2020-02-02 02:02:02 UTC' /usr/bin/$p.program
	done;;
esac
`

// fakeAptCache knows a few packages, once there is an index.
const fakeAptCache = `#!/bin/sh
set -e
test "$*" = "pkgnames --all-names"
test -f /var/lib/apt/lists/index
for p in python3 pkg g++ tree make nosuch-package-of-apt; do echo $p; done
`

// addProgram copies a program of this machine with its libraries.
func addProgram(root, name string) error {
	path, err := exec.LookPath(name)
	if err != nil {
		return err
	}
	if path, err = filepath.EvalSymlinks(path); err != nil {
		return err
	}
	if err := copyProgram(path, filepath.Join(root, "usr/bin", name)); err != nil {
		return err
	}
	out, err := exec.Command("ldd", path).Output()
	if err != nil {
		return fmt.Errorf("ldd %s: %w", path, err)
	}
	for f := range strings.FieldsSeq(string(out)) {
		if !filepath.IsAbs(f) {
			continue
		}
		to := f
		if !strings.HasPrefix(to, "/usr") {
			to = "/usr" + to
		}
		if err := copyProgram(f, filepath.Join(root, to)); err != nil {
			return err
		}
	}
	return nil
}

func copyProgram(from, to string) error {
	if _, err := os.Stat(to); err == nil {
		return nil
	}
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return errors.Join(os.MkdirAll(filepath.Dir(to), 0o755), os.WriteFile(to, b, 0o755))
}

// A project is a context, a store and a cache directory.
type project struct {
	t     *testing.T
	store *fakeStore
	opts  Options
	out   *recorder
}

// newProject writes files (name → content; a name ending in @ is a symlink to
// the content) and parses the Formfile among them.
func newProject(t *testing.T, files map[string]string) *project {
	t.Helper()
	p := &project{t: t, store: newFakeStore(t, tinyBase(t)), out: &recorder{}}
	p.opts = Options{
		Context: t.TempDir(), Store: p.store, Base: cidOf([]byte("base")), CacheDir: cacheDir(t),
		Key: ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize)), Reporter: p.out,
	}
	p.write(files)
	return p
}

// cacheDir is a temporary directory in which a user namespace may own files.
func cacheDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "formation-cache")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if os.RemoveAll(dir) == nil {
			return
		}
		s, err := newSpawner()
		if err == nil {
			_, err = s.do(context.Background(), call{req: request{Mode: modeRemove, Target: dir}})
		}
		if err != nil {
			t.Errorf("remove %s: %v", dir, err)
		}
	})
	return dir
}

func (p *project) write(files map[string]string) {
	p.t.Helper()
	for name, text := range files {
		link := strings.HasSuffix(name, "@")
		file := filepath.Join(p.opts.Context, strings.TrimSuffix(name, "@"))
		err := os.MkdirAll(filepath.Dir(file), 0o755)
		if link {
			err = errors.Join(err, os.Symlink(text, file))
		} else {
			err = errors.Join(err, os.WriteFile(file, []byte(text), 0o644))
		}
		if err != nil {
			p.t.Fatal(err)
		}
	}
	if text, ok := files["Formfile"]; ok {
		f, err := formfile.Parse("Formfile", []byte(text))
		if err != nil {
			p.t.Fatal(err)
		}
		p.opts.File = f
	}
}

func (p *project) build() (*Result, error) {
	p.t.Helper()
	return Build(p.t.Context(), p.opts)
}

func (p *project) mustBuild() *Result {
	p.t.Helper()
	res, err := p.build()
	if err != nil {
		var step *StepError
		if errors.As(err, &step) {
			p.t.Fatalf("%v\n%s", err, step.Tail)
		}
		p.t.Fatal(err)
	}
	return res
}

// list shows a layer as text: type and mode, owner, time, name, and a mark for
// opaque directories, sorted by name.
func (p *project) list(e store.Entry) string {
	p.t.Helper()
	dir := p.extract(e)
	var b strings.Builder
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		b.WriteString(describe(p.t, dir, path))
		return nil
	})
	if err != nil {
		p.t.Fatal(err)
	}
	return b.String()
}

func (p *project) extract(e store.Entry) string {
	p.t.Helper()
	dir := filepath.Join(p.t.TempDir(), "x")
	if out, err := exec.Command("unsquashfs", "-quiet", "-no-progress", "-dest", dir, p.store.file(e)).CombinedOutput(); err != nil {
		p.t.Fatalf("unsquashfs: %v: %s", err, out)
	}
	return dir
}

// recorder remembers what a build reports.
type recorder struct {
	mu      sync.Mutex
	started []string
	done    []StepOutcome
	output  strings.Builder
	seen    func(output string)
	start   func(StepInfo)
}

func (r *recorder) StepStarted(s StepInfo) {
	if r.start != nil {
		r.start(s)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.started = append(r.started, fmt.Sprintf("[%d/%d] %s", s.Index, s.Total, s.Text))
}

func (r *recorder) Output(b []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.output.Write(b)
	if r.seen != nil {
		r.seen(r.output.String())
	}
}

func (r *recorder) StepDone(_ StepInfo, o StepOutcome) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.done = append(r.done, o)
}

func roots(es []store.Entry) []string {
	var out []string
	for _, e := range es {
		out = append(out, e.Root.String())
	}
	return out
}

func sameLayers(a, b *Result) bool { return slices.Equal(roots(a.Layers), roots(b.Layers)) }
