package store

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"
	"golang.org/x/sys/unix"
)

// onDisk lists the files of a store's images, whole and arriving.
func onDisk(t testing.TB, s *Store) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(s.cfg.Dir, "images", "*"))
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// spaceOf makes a disk say that it has so many bytes free of size.
func spaceOf(s *Store, free, size int64) {
	s.disk.space = func(string) (int64, int64, error) { return free, size, nil }
}

func TestFetchLeavesTheReserve(t *testing.T) {
	const layer, rest = 3 << 20, 600<<10 + 5700 // the base
	for name, tc := range map[string]struct {
		free, size int64
		fits       bool
	}{
		"fits exactly":        {layer + rest + 1<<20, 20 << 20, true},
		"a byte short":        {layer + rest + 1<<20 - 1, 20 << 20, false},
		"large disk":          {layer + rest + 1<<30, 1 << 50, true},
		"large disk, short":   {layer + rest + 1<<30 - 1, 1 << 50, false},
		"less than reserved":  {5, 20 << 20, false},
		"full":                {0, 20 << 20, false},
		"only the layer fits": {layer + 1<<20, 20 << 20, false},
	} {
		t.Run(name, func(t *testing.T) {
			net := newFakeNet()
			origin, node := openStore(t, t.TempDir()), openStore(t, t.TempDir())
			net.join("origin", origin)
			net.join("node", node)
			c := packOf(t, origin, "big", noise(160, layer))
			spaceOf(node, tc.free, tc.size)
			err := node.Fetch(t.Context(), c, FetchOptions{From: []peer.ID{"origin"}})
			if tc.fits {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if !errors.Is(err, ErrNoSpace) {
				t.Fatalf("fetch: %v", err)
			}
			if want := "3765828 bytes are needed"; !strings.Contains(err.Error(), want) {
				t.Errorf("%q does not say %q", err, want)
			}
			if files := onDisk(t, node); len(files) != 0 {
				t.Errorf("left: %v", files)
			}
			if n := net.leavesSent("origin"); n != 0 {
				t.Errorf("%d leaves moved", n)
			}
			spaceOf(node, 1<<40, 1<<41)
			mustFetch(t, node, c, "origin")
		})
	}
}

// A disk that fills up while the parts of a pack are allocated or written gets all
// of it back, and the next fetch succeeds.
func TestFullDiskIsGivenBack(t *testing.T) {
	full := &os.PathError{Op: "write", Err: unix.ENOSPC}
	for name, fail := range map[string]func(s *Store, after int64){
		"allocate": func(s *Store, after int64) {
			var n atomic.Int64
			s.disk.allocate = func(f *os.File, size int64) error {
				if n.Add(1) > after {
					return errors.Join(f.Truncate(size/2), full)
				}
				return allocate(f, size)
			}
		},
		"write": func(s *Store, after int64) {
			var n atomic.Int64
			s.disk.writeAt = func(f *os.File, data []byte, off int64) (int, error) {
				if n.Add(1) > after {
					return 0, full
				}
				return f.WriteAt(data, off)
			}
		},
	} {
		for _, after := range []int64{0, 1, 3} {
			t.Run(name, func(t *testing.T) {
				net := newFakeNet()
				origin, node := openStore(t, t.TempDir()), openStore(t, t.TempDir())
				net.join("origin", origin)
				net.join("node", node)
				layer := noise(161, 4<<20)
				c := packOf(t, origin, "big", layer)
				fail(node, after)
				err := node.Fetch(t.Context(), c, FetchOptions{From: []peer.ID{"origin"}})
				if !errors.Is(err, ErrNoSpace) {
					t.Fatalf("fetch: %v", err)
				}
				for _, f := range onDisk(t, node) {
					if !strings.HasSuffix(f, ".img") { // an image of the pack that was whole before
						t.Errorf("left: %s", f)
					}
				}
				node.disk = realDisk
				mustFetch(t, node, c, "origin")
				checkPack(t, node, c, layer)
			})
		}
	}
}

// A fetch of which nothing came leaves no allocated file; one that got half keeps it.
func TestEmptyPartsGo(t *testing.T) {
	for _, leaves := range []int{0, 6} {
		net := newFakeNet()
		origin, node := openStore(t, t.TempDir()), openStore(t, t.TempDir())
		net.join("origin", origin)
		net.join("node", node)
		c := packOf(t, origin, "big", noise(162, 6<<20))
		ctx, cancel := context.WithCancel(t.Context())
		var n atomic.Int64
		net.get("origin").tamper = func(_ cid.Cid, _ int, data []byte) ([]byte, error) {
			if n.Add(1) > int64(leaves) {
				cancel()
				return nil, errors.New("away")
			}
			return data, nil
		}
		if err := node.Fetch(ctx, c, FetchOptions{From: []peer.ID{"origin"}}); !errors.Is(err, context.Canceled) {
			t.Fatalf("fetch: %v", err)
		}
		if files := onDisk(t, node); (len(files) > 0) != (leaves > 0) {
			t.Errorf("after %d leaves: %v", leaves, files)
		}
	}
}
