package base

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multihash"
	"github.com/u-root/u-root/pkg/cpio"

	"github.com/formthefog/formation/store"
)

var epoch = time.Unix(1_783_764_997, 0).UTC()

type entry struct {
	name, body string
	kind       byte
	link       string
	xattr      string
}

func makeTar(t *testing.T, entries []entry) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, e := range entries {
		h := &tar.Header{Name: e.name, Typeflag: e.kind, Linkname: e.link, Size: int64(len(e.body)), Mode: 0o755, Uid: 7, Uname: "someone", ModTime: time.Now()}
		if e.xattr != "" {
			h.PAXRecords = map[string]string{"SCHILY.xattr.security.capability": e.xattr}
			h.Format = tar.FormatPAX
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, e.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func TestSplit(t *testing.T) {
	in := makeTar(t, []entry{
		{name: "./", kind: tar.TypeDir},
		{name: "./dev/", kind: tar.TypeDir},
		{name: "./dev/null", kind: tar.TypeChar},
		{name: "./.formation/", kind: tar.TypeDir},
		{name: "./.formation/release", kind: tar.TypeReg, body: "6.1\n"},
		{name: "./.formation/tree/", kind: tar.TypeDir},
		{name: "./.formation/tree/vmlinuz", kind: tar.TypeReg, body: "kernel"},
		{name: "./.formation/tree/build", kind: tar.TypeSymlink, link: "/usr/src"},
		{name: "./etc/hostname", kind: tar.TypeReg, body: "formation\n"},
		{name: "./etc/shadow-", kind: tar.TypeReg, body: "old"},
		{name: "./run/utmp", kind: tar.TypeReg, body: "x"},
		{name: "./usr/bin/ping", kind: tar.TypeReg, body: "elf", xattr: "\x01\x00cap"},
		{name: "./usr/bin/gzip", kind: tar.TypeLink, link: "./usr/bin/gunzip"},
		{name: "./var/cache/debconf/config.dat-old", kind: tar.TypeReg, body: "x"},
		{name: "./var/cache/ldconfig/aux-cache", kind: tar.TypeReg, body: "x"},
		{name: "./var/log/apt/", kind: tar.TypeDir},
		{name: "./var/log/dpkg.log", kind: tar.TypeReg, body: "today"},
		{name: "./var/log/wtmp", kind: tar.TypeReg},
	})
	side := &sideTree{dir: t.TempDir(), notes: map[string]string{}}
	var out bytes.Buffer
	if err := split(bytes.NewReader(in), epoch, &out, side); err != nil {
		t.Fatal(err)
	}
	var names []string
	for r := tar.NewReader(&out); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, h.Name)
		if !h.ModTime.Equal(epoch) || h.Uname != "" || h.Uid != 7 {
			t.Errorf("%s: time %v, user %q %d", h.Name, h.ModTime, h.Uname, h.Uid)
		}
		if h.Name == "./usr/bin/ping" && h.PAXRecords["SCHILY.xattr.security.capability"] != "\x01\x00cap" {
			t.Errorf("ping lost its capability: %v", h.PAXRecords)
		}
	}
	want := []string{"./", "./dev/", "./etc/hostname", "./usr/bin/ping", "./usr/bin/gzip", "./var/log/apt/", "./var/log/wtmp"}
	if !slices.Equal(names, want) {
		t.Errorf("root file system holds %q, want %q", names, want)
	}
	if side.notes["release"] != "6.1\n" {
		t.Errorf("notes: %v", side.notes)
	}
	if data, err := os.ReadFile(filepath.Join(side.dir, "tree/vmlinuz")); string(data) != "kernel" {
		t.Errorf("kernel: %q, %v", data, err)
	}
}

func TestSplitRefuses(t *testing.T) {
	for _, e := range []entry{
		{name: "./.formation/tree/sda", kind: tar.TypeBlock},
		{name: "./.formation/tree/link", kind: tar.TypeLink, link: "/etc/shadow"},
	} {
		side := &sideTree{dir: t.TempDir(), notes: map[string]string{}}
		if err := split(bytes.NewReader(makeTar(t, []entry{e})), epoch, io.Discard, side); !errors.Is(err, errBadTree) {
			t.Errorf("%s: %v, want errBadTree", e.name, err)
		}
	}
	whole := makeTar(t, []entry{{name: "./a", kind: tar.TypeReg, body: strings.Repeat("x", 4096)}})
	side := &sideTree{dir: t.TempDir(), notes: map[string]string{}}
	if err := split(bytes.NewReader(whole[:2000]), epoch, io.Discard, side); err == nil {
		t.Error("a tree cut short passed")
	}
}

const dep = `kernel/a/virtio.ko: kernel/a/virtio_ring.ko
kernel/a/virtio_ring.ko:
kernel/a/virtio_net.ko: kernel/n/net_failover.ko kernel/n/failover.ko kernel/a/virtio.ko kernel/a/virtio_ring.ko
kernel/n/net_failover.ko: kernel/n/failover.ko
kernel/n/failover.ko:
kernel/r/virtio-rng.ko: kernel/a/virtio_ring.ko kernel/a/virtio.ko
kernel/x/loop1.ko: kernel/x/loop2.ko
kernel/x/loop2.ko: kernel/x/loop1.ko
`

func TestLoadOrder(t *testing.T) {
	ix, err := parseModules(strings.NewReader(dep), strings.NewReader("kernel/fs/ext4/ext4.ko\n"))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		wanted string
		order  string // base names; "" is an error
	}{
		{"virtio", "virtio_ring.ko virtio.ko"},
		{"virtio_net virtio", "failover.ko net_failover.ko virtio_ring.ko virtio.ko virtio_net.ko"},
		{"virtio_rng", "virtio_ring.ko virtio.ko virtio-rng.ko"},
		{"ext4 failover", "failover.ko"},
		{"nosuch", ""},
		{"loop1", ""},
	} {
		order, err := ix.loadOrder(strings.Fields(c.wanted))
		var got []string
		for _, file := range order {
			got = append(got, filepath.Base(file))
		}
		if strings.Join(got, " ") != c.order || (err != nil) != (c.order == "") {
			t.Errorf("%s: %q, %v; want %q", c.wanted, got, err, c.order)
		}
	}
	if _, err := parseModules(strings.NewReader("kernel/a/virtio.ko.xz:\n"), strings.NewReader("")); err == nil {
		t.Error("compressed modules, which the guest cannot load, passed")
	}
}

func TestInitrd(t *testing.T) {
	release := t.TempDir()
	var lines strings.Builder
	for _, name := range drivers {
		file := strings.ReplaceAll(name, "virtio_rng", "virtio-rng") + ".ko"
		lines.WriteString(file + ":\n")
		if err := os.WriteFile(filepath.Join(release, file), []byte("code of "+name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range map[string]string{"modules.dep": lines.String(), "modules.builtin": ""} {
		if err := os.WriteFile(filepath.Join(release, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var images [2][]byte
	for i := range images {
		image := filepath.Join(t.TempDir(), "initrd")
		if err := writeInitrd(image, release); err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(image)
		if err != nil {
			t.Fatal(err)
		}
		images[i] = data
		later := time.Now().Add(time.Hour)
		if err := os.Chtimes(filepath.Join(release, "overlay.ko"), later, later); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(images[0], images[1]) {
		t.Error("two archives of the same modules differ")
	}
	records, err := cpio.ReadAllRecords(cpio.Newc.Reader(bytes.NewReader(images[0])))
	if err != nil {
		t.Fatal(err)
	}
	archive := cpio.ArchiveFromRecords(records)
	load, ok := archive.Get("lib/modules/load")
	if !ok {
		t.Fatal("no load file")
	}
	text, err := io.ReadAll(io.NewSectionReader(load, 0, int64(load.FileSize)))
	if err != nil {
		t.Fatal(err)
	}
	paths := strings.Fields(string(text))
	if len(paths) != len(drivers) || paths[0] != "/lib/modules/virtio_ring.ko" {
		t.Errorf("load order %q", paths)
	}
	for _, p := range paths {
		if _, ok := archive.Get(strings.TrimPrefix(p, "/")); !ok {
			t.Errorf("%s is to be loaded and is not there", p)
		}
	}
}

func TestReleaseDate(t *testing.T) {
	mirror := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/debian/dists/bookworm/InRelease":
			_, _ = io.WriteString(w, "-----BEGIN PGP SIGNED MESSAGE-----\n\nOrigin: Debian\nDate: Sat, 11 Jul 2026 10:16:37 UTC\n")
		case "/debian/dists/empty/InRelease":
		default:
			http.NotFound(w, r)
		}
	}))
	defer mirror.Close()
	for suite, want := range map[string]time.Time{"bookworm": epoch, "empty": {}, "absent": {}} {
		got, err := releaseDate(t.Context(), mirror.URL+"/debian", suite)
		if !got.Equal(want) || (err != nil) != want.IsZero() {
			t.Errorf("%s: %v, %v; want %v", suite, got, err, want)
		}
	}
}

func TestTail(t *testing.T) {
	log := &tail{}
	for range 2 * tailLines {
		_, _ = io.WriteString(log, "I: noise\n")
	}
	_, _ = io.WriteString(log, "E: the real")
	_, _ = io.WriteString(log, " reason\nlast")
	if !log.failed() || !strings.HasSuffix(log.String(), "E: the real reason\nlast") {
		t.Errorf("tail:\n%s", log)
	}
	if n := strings.Count(log.String(), "\n"); n > tailLines {
		t.Errorf("%d lines kept", n)
	}
}

func TestCheckConfig(t *testing.T) {
	file := filepath.Join(t.TempDir(), "config")
	for _, c := range []struct {
		text string
		ok   bool
	}{
		{strings.Join(builtIn, "=y\n") + "=y\n", true},
		{strings.Join(builtIn[1:], "=y\n") + "=y\n" + builtIn[0] + "=m\n", false},
	} {
		if err := os.WriteFile(file, []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := checkConfig(file); (err == nil) != c.ok {
			t.Errorf("%v, want ok = %v", err, c.ok)
		}
	}
}

// A bootstrap that fails must say why, in mmdebstrap's own words.
func TestErrorsShowTheTail(t *testing.T) {
	if _, err := exec.LookPath("mmdebstrap"); err != nil {
		t.Skip("mmdebstrap is not installed")
	}
	if _, err := os.Stat(keyring); err != nil {
		t.Skip("debian-archive-keyring is not installed")
	}
	nowhere := httptest.NewServer(http.NotFoundHandler())
	defer nowhere.Close()
	_, err := Assemble(t.Context(), Options{Mirror: nowhere.URL, Epoch: epoch}, t.TempDir())
	if err == nil || !strings.Contains(err.Error(), "E: ") {
		t.Errorf("got %v, want mmdebstrap's error", err)
	}
}

// fakeStore names files by their hash and remembers what it was given.
type fakeStore struct {
	kinds []string
	base  store.Base
}

func (f *fakeStore) AddImage(_ context.Context, path, kind, format string) (store.Entry, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return store.Entry{}, err
	}
	f.kinds = append(f.kinds, kind+" "+format)
	hash := sha256.Sum256(data)
	mh, err := multihash.Encode(hash[:], multihash.SHA2_256)
	if err != nil {
		return store.Entry{}, err
	}
	return store.Entry{Kind: kind, Root: cid.NewCidV1(cid.Raw, mh), Size: int64(len(data)), SHA256: hash[:], Format: format}, nil
}

func (f *fakeStore) PutBase(_ context.Context, b store.Base, _ ed25519.PrivateKey) (cid.Cid, error) {
	f.base = b
	return b.Rootfs.Root, nil
}

// The real thing, twice, from the archive: the promise of the package comment.
func TestTwoBuildsAreOne(t *testing.T) {
	if os.Getenv("FORMATION_SLOW") == "" {
		t.Skip("FORMATION_SLOW=1 runs it: two bootstraps from the network, minutes")
	}
	key := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
	var bases [2]store.Base
	for i := range bases {
		work, into := t.TempDir(), &fakeStore{}
		if _, _, err := Build(t.Context(), Options{WorkDir: work, Store: into, Key: key, Out: t.Output()}); err != nil {
			t.Fatal(err)
		}
		bases[i] = into.base
		if want := []string{"kernel vmlinuz", "initrd cpio", "modules squashfs", "rootfs squashfs"}; !slices.Equal(into.kinds, want) {
			t.Errorf("stored %q, want %q", into.kinds, want)
		}
		if left, err := os.ReadDir(work); err != nil || len(left) > 0 {
			t.Errorf("left behind: %v, %v", left, err)
		}
	}
	for i, a := range bases[0].Entries() {
		if b := bases[1].Entries()[i]; !a.Root.Equals(b.Root) {
			t.Errorf("%s differs: %s and %s", a.Kind, a.Root, b.Root)
		}
	}
	if !slices.Equal(bases[0].Packages, bases[1].Packages) || bases[0].Provenance != bases[1].Provenance {
		t.Error("packages or provenance differ")
	}
}
