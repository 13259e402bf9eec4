package proc

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"

	"github.com/formthefog/formation/store"
)

// openStore opens a node's store, which it makes if there is none.
func openStore(dir string) (*store.Store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	return store.Open(store.Config{Dir: dir})
}

// seed puts what all instances run into a node's store: a pack of a few kilobytes on
// a base as small, whose images no driver opens. It is the same for the same seed.
func seed(ctx context.Context, dir, scratch string, n uint64) (cid string, err error) {
	s, err := openStore(dir)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	key := newOwner(n, 0).key
	image := func(kind, format string) (e store.Entry, err error) {
		path := filepath.Join(scratch, kind)
		if err := os.WriteFile(path, bytes.Repeat([]byte(kind), 1000), 0o600); err != nil {
			return e, err
		}
		return s.AddImage(ctx, path, kind, format) // which takes the file
	}
	kernel, e1 := image("kernel", "vmlinuz")
	initrd, e2 := image("initrd", "cpio")
	modules, e3 := image("modules", "squashfs")
	rootfs, e4 := image("rootfs", "squashfs")
	layer, e5 := image("layer", "squashfs")
	if err := errors.Join(e1, e2, e3, e4, e5); err != nil {
		return "", err
	}
	base, err := s.PutBase(ctx, store.Base{Name: "sim:1", Kernel: kernel, Initrd: initrd, Modules: modules, Rootfs: rootfs}, key)
	if err != nil {
		return "", err
	}
	pack, err := s.PutPack(ctx, store.Root{Name: "sim", Base: base, Layers: []store.Entry{layer}, Run: store.RunConfig{
		VCPU: 1, MemoryBytes: 256 << 20, DiskBytes: 1 << 30, Entrypoint: []string{"/bin/true"},
	}}, key)
	if err != nil {
		return "", err
	}
	return pack.String(), s.Pin(ctx, pack)
}

// tick is what machines run: something that is seen to run.
const tick = "while :; do echo tick; sleep 0.5; done"

// seedMachine puts what machines run into a node's store, on the base in a CAR file.
func seedMachine(ctx context.Context, dir, car string, n uint64) (cid string, err error) {
	s, err := openStore(dir)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	f, err := os.Open(car)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }() // only read
	base, err := s.Import(ctx, f)
	if err != nil {
		return "", err
	}
	pack, err := s.PutPack(ctx, store.Root{Name: "sim", Base: base, Run: store.RunConfig{
		VCPU: 1, MemoryBytes: 256 << 20, DiskBytes: 1 << 30, Entrypoint: []string{"/bin/sh", "-c", tick},
	}}, newOwner(n, 0).key)
	if err != nil {
		return "", err
	}
	return pack.String(), s.Pin(ctx, pack)
}
