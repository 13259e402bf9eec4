package base

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// workPrefix begins the names of the work folders in Options.WorkDir.
const workPrefix = "base-"

// A workDir is the folder of one build. It is locked while the build or a
// command of it lives, so that what a killed build left can be told and removed.
type workDir struct {
	path string
	lock *os.File // the folder itself; inherited by mmdebstrap
}

// newWorkDir removes what killed builds left in parent, and makes a folder there.
func newWorkDir(ctx context.Context, parent string) (*workDir, error) {
	if err := sweep(parent); err != nil {
		return nil, fmt.Errorf("remove what a killed build left: %w", err)
	}
	for ctx.Err() == nil {
		path, err := os.MkdirTemp(parent, workPrefix)
		if err != nil {
			return nil, err
		}
		lock, err := lockDir(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue // a sweep of another build was faster than the lock
		}
		return &workDir{path, lock}, err
	}
	return nil, ctx.Err()
}

func (w *workDir) remove() error { return errors.Join(os.RemoveAll(w.path), w.lock.Close()) }

// lockDir locks a directory without waiting. ErrNotExist says that somebody else
// has it, or removed it.
func lockDir(path string) (*os.File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = fs.ErrNotExist
	}
	if err == nil {
		_, err = os.Stat(path) // the names are random, so it is this one
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func sweep(parent string) error {
	list, err := os.ReadDir(parent)
	if err != nil {
		return err
	}
	for _, e := range list {
		if !e.IsDir() || !strings.HasPrefix(e.Name(), workPrefix) {
			continue
		}
		path := filepath.Join(parent, e.Name())
		lock, err := lockDir(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if err := (&workDir{path, lock}).remove(); err != nil {
			return err
		}
	}
	return nil
}

// dieWith makes a command end, and clean up, when this process is killed. The
// caller must stay on one thread until the command has ended: the signal comes
// when the thread that started it does.
func dieWith() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
}
