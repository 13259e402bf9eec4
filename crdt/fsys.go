package crdt

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// fileSystem is what the log needs of a disk; tests inject one that fails,
// tears writes and forgets what was not synced.
type fileSystem interface {
	// Open opens or creates a file for reading and appending; with truncate it
	// starts empty.
	Open(name string, truncate bool) (file, error)
	Rename(from, to string) error
	// SyncDir makes creations and renames in the directory durable.
	SyncDir() error
}

// file is an open file of a fileSystem. Writes go to its end.
type file interface {
	io.ReadWriteCloser
	Sync() error
	Truncate(size int64) error
}

// osDir is a directory of the real file system.
type osDir string

func (d osDir) Open(name string, truncate bool) (file, error) {
	flag := os.O_RDWR | os.O_CREATE | os.O_APPEND
	if truncate {
		flag |= os.O_TRUNC
	}
	return os.OpenFile(filepath.Join(string(d), name), flag, 0o600)
}

func (d osDir) Rename(from, to string) error {
	return os.Rename(filepath.Join(string(d), from), filepath.Join(string(d), to))
}

func (d osDir) SyncDir() error {
	f, err := os.Open(string(d))
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// lockDir makes sure that one process at a time uses the directory.
func lockDir(dir string) (io.Closer, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("%s is in use by another process: %w", dir, err), f.Close())
	}
	return f, nil
}

// readSmall reads a whole small file, nil when it does not exist or is empty.
func readSmall(fsys fileSystem, name string, limit int64) ([]byte, error) {
	f, err := fsys.Open(name, false)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(f, limit))
	return b, errors.Join(err, f.Close())
}

// errNotReplaced: writeAtomic failed before it touched the file.
var errNotReplaced = errors.New("crdt: the file is as it was")

// writeAtomic replaces a file so that a crash leaves the old or the new content.
// An error that does not wrap errNotReplaced leaves open which of them.
func writeAtomic(fsys fileSystem, name string, write func(io.Writer) error) error {
	tmp := name + ".tmp"
	f, err := fsys.Open(tmp, true)
	if err != nil {
		return fmt.Errorf("%w: %w", errNotReplaced, err)
	}
	err = write(f)
	if err == nil {
		err = f.Sync()
	}
	if err != nil { // half a file would keep a full disk full
		err = errors.Join(err, f.Truncate(0))
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("%w: %w", errNotReplaced, err)
	}
	if err := fsys.Rename(tmp, name); err != nil {
		return err
	}
	return fsys.SyncDir()
}
