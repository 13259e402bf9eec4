package store

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	carv2 "github.com/ipld/go-car/v2"

	"github.com/ipfs/go-cid"
)

func exported(t testing.TB, s *Store, c cid.Cid, opts ...ExportOption) []byte {
	t.Helper()
	var out bytes.Buffer
	if err := s.Export(t.Context(), c, &out, opts...); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestExportImport(t *testing.T) {
	origin := openStore(t, t.TempDir())
	layer := noise(100, 2<<20)
	c := packOf(t, origin, "hello", layer)
	car := exported(t, origin, c)
	for name, r := range map[string]io.Reader{"stream": struct{ io.Reader }{bytes.NewReader(car)}, "file": bytes.NewReader(car)} {
		t.Run(name, func(t *testing.T) {
			s := openStore(t, t.TempDir())
			got, err := s.Import(t.Context(), r)
			if err != nil || got != c {
				t.Fatalf("import: %v, %v", got, err)
			}
			checkPack(t, s, c, layer)
			if again := exported(t, s, c); !bytes.Equal(again, car) {
				t.Error("the export of the import is another file")
			}
			if _, err := s.Import(t.Context(), bytes.NewReader(car)); err != nil {
				t.Errorf("import of what is here: %v", err)
			}
			checkEmptyOfTmp(t, s)
		})
	}
}

func checkEmptyOfTmp(t *testing.T, s *Store) {
	t.Helper()
	for _, pattern := range []string{"*.tmp", "*.part"} {
		files, err := filepath.Glob(filepath.Join(s.cfg.Dir, "images", pattern))
		if err != nil || len(files) > 0 {
			t.Errorf("left over: %v, %v", files, err)
		}
	}
}

func TestExportWithoutBase(t *testing.T) {
	origin := openStore(t, t.TempDir())
	layer := noise(101, 1<<20)
	c := packOf(t, origin, "hello", layer)
	car := exported(t, origin, c, WithoutBase())
	if len(car) > 1<<20+16<<10 {
		t.Errorf("%d bytes", len(car))
	}
	bare := openStore(t, t.TempDir())
	if _, err := bare.Import(t.Context(), bytes.NewReader(car)); !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrIncomplete) {
		t.Errorf("import without the base here: %v", err)
	}
	checkNothing(t, bare)
	other := openStore(t, t.TempDir())
	packOf(t, other, "another", noise(102, 1<<10))
	if _, err := other.Import(t.Context(), bytes.NewReader(car)); err != nil {
		t.Fatalf("import with the base here: %v", err)
	}
	checkPack(t, other, c, layer)
}

// checkNothing: a store that has no pack, image, file or index entry.
func checkNothing(t *testing.T, s *Store) {
	t.Helper()
	infos, err := s.List(t.Context())
	if err != nil || len(infos) > 0 {
		t.Errorf("list: %v, %v", infos, err)
	}
	files, err := os.ReadDir(filepath.Join(s.cfg.Dir, "images"))
	if err != nil || len(files) > 0 {
		t.Errorf("files: %v, %v", files, err)
	}
	keys, err := s.Blocks().AllKeysChan(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for k := range keys {
		t.Errorf("block %s is there", k)
	}
}

func TestChangedCARsAreRefusedWholly(t *testing.T) {
	origin := openStore(t, t.TempDir())
	c := packOf(t, origin, "hello", noise(103, 300<<10))
	car := exported(t, origin, c)
	s := openStore(t, t.TempDir())
	r := rand.New(rand.NewPCG(1, 2))
	spots := []int{0, 1, 5, 20, 40, 60, 61, 62, 63, 64, 100, len(car) - 1}
	for range 40 {
		spots = append(spots, r.IntN(len(car)))
	}
	for _, i := range spots {
		bad := bytes.Clone(car)
		bad[i] ^= 1 << r.IntN(8)
		if got, err := s.Import(t.Context(), bytes.NewReader(bad)); err == nil {
			t.Errorf("byte %d changed, and imported as %s", i, got)
		}
	}
	for _, n := range []int{0, 1, 30, 59, len(car) / 2, len(car) - 1} {
		if _, err := s.Import(t.Context(), bytes.NewReader(car[:n])); !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrIncomplete) {
			t.Errorf("cut after %d bytes: %v", n, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Import(ctx, bytes.NewReader(car)); !errors.Is(err, context.Canceled) {
		t.Errorf("ended context: %v", err)
	}
	checkNothing(t, s)
}

func FuzzImport(f *testing.F) {
	origin := openStore(f, f.TempDir())
	c := packOf(f, origin, "hello", noise(104, 2<<10))
	f.Add(exported(f, origin, c, WithoutBase()))
	f.Add([]byte{})
	s := openStore(f, f.TempDir())
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := s.Import(t.Context(), bytes.NewReader(b))
		if err == nil {
			if whole, err := s.Complete(t.Context(), got); err != nil || !whole {
				t.Errorf("imported %s, complete %v, %v", got, whole, err)
			}
		}
	})
}

// The IPLD project's own reader agrees about the file.
func TestGoCarReadsExports(t *testing.T) {
	s := openStore(t, t.TempDir())
	c := packOf(t, s, "hello", noise(105, 1<<20))
	r, err := carv2.NewBlockReader(bytes.NewReader(exported(t, s, c)))
	if err != nil {
		t.Fatal(err)
	}
	if r.Version != 1 || len(r.Roots) != 1 || r.Roots[0] != c {
		t.Errorf("version %d, roots %v", r.Version, r.Roots)
	}
	n := 0
	for {
		b, err := r.Next() // verifies
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if n == 0 && b.Cid() != c {
			t.Errorf("first block is %s", b.Cid())
		}
		n++
	}
	if n < 8 {
		t.Errorf("%d blocks", n)
	}
}

// Other IPFS tools read it: npm's @ipld/car, installed by "npm ci" in
// testdata/car-js.
func TestJavaScriptReadsExports(t *testing.T) {
	dir := filepath.Join("testdata", "car-js")
	if _, err := os.Stat(filepath.Join(dir, "node_modules", "@ipld", "car")); err != nil {
		if os.Getenv("FORMATION_SLOW") != "" {
			t.Fatalf("run npm ci in store/%s: %v", dir, err)
		}
		t.Skipf("run npm ci in store/%s: %v", dir, err)
	}
	s := openStore(t, t.TempDir())
	layer := noise(106, 3<<20)
	c := packOf(t, s, "hello", layer)
	file := filepath.Join(t.TempDir(), "x.car")
	if err := os.WriteFile(file, exported(t, s, c), 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := s.Pack(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(t.TempDir(), "layer")
	cmd := exec.CommandContext(t.Context(), "node", "read.mjs", file, r.Layers[0].Root.String(), out)
	cmd.Dir = dir
	got, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, got)
	}
	want := "root " + c.String() + " name hello"
	if !strings.Contains(string(got), want) {
		t.Errorf("got %q, want %q", got, want)
	}
	data, err := os.ReadFile(out)
	if err != nil || !bytes.Equal(data, layer) {
		t.Errorf("the layer read by UnixFS is another file (%d bytes), %v", len(data), err)
	}
}
