package build

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/formthefog/formation/store"
)

// A workspace is the cache directory and this build's temporary directory in
// it:
//
//	tmp/ID, tmp/ID.lock      one build; whoever can lock it may remove it
//	steps/KEY                locked, shared, by each build that has it in its stack
//	steps/KEY/meta.json      what a step gave
//	steps/KEY/upper          its difference, as the steps after it see it
//	base/DIGEST              a base, unpacked, where it cannot be mounted
//	base/DIGEST.json         its accounts
//	apt/DIGEST               package indexes and archives, checked by apt
//
// A build as root and one in a user namespace mark differences in ways that do
// not mix, so the latter's directories end in -user.
type workspace struct {
	dir   string
	kind  string // "" or "-user"
	tmp   string
	lock  *os.File
	steps []*os.File // the locks of the steps that this build uses
	spawn *spawner
}

func openWorkspace(ctx context.Context, dir string, s *spawner) (_ *workspace, err error) {
	dir, err = filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	w := &workspace{dir: dir, spawn: s}
	if s.userns {
		w.kind = "-user"
	}
	for _, d := range []string{"", "tmp", "steps" + w.kind, "base" + w.kind, "apt" + w.kind} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o700); err != nil {
			return nil, fmt.Errorf("cache: %w", err)
		}
	}
	if err := w.sweep(ctx); err != nil {
		return nil, fmt.Errorf("cache: remove what a killed build left: %w", err)
	}
	for {
		// The lock comes first, so that nobody sweeps what is not locked yet.
		w.tmp = filepath.Join(dir, "tmp", rand.Text())
		w.lock, err = tryLock(w.tmp + ".lock")
		if errors.Is(err, errLocked) || errors.Is(err, fs.ErrNotExist) {
			continue // a sweep came between the file and its lock
		}
		if err == nil {
			err = os.Mkdir(w.tmp, 0o700)
		}
		if err != nil {
			return nil, fmt.Errorf("cache: %w", err)
		}
		return w, nil
	}
}

// close removes the temporary directory, also when ctx of the build has ended.
func (w *workspace) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	errs := []error{w.remove(ctx, w.tmp), os.Remove(w.lock.Name()), w.lock.Close()}
	for _, f := range w.steps {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}

var errLocked = errors.New("locked by another build")

// tryLock locks a file, which it makes, without waiting.
func tryLock(name string) (*os.File, error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	return f, flock(f, unix.LOCK_EX)
}

// lockStep locks the directory that is a step, without waiting.
func lockStep(dir string, how int) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	return f, flock(f, how)
}

// flock locks f without waiting; if it cannot, f is closed. ErrNotExist says that
// the name is gone, or another file's: who removes or renames one has its lock.
func flock(f *os.File, how int) error {
	err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = errLocked
	}
	if err == nil {
		err = stillNamed(f)
	}
	if err != nil {
		return errors.Join(err, f.Close())
	}
	return nil
}

func stillNamed(f *os.File) error {
	locked, err := f.Stat()
	if err != nil {
		return err
	}
	now, err := os.Stat(f.Name())
	if err == nil && !os.SameFile(locked, now) {
		err = fs.ErrNotExist
	}
	return err
}

// sweep removes the temporary directories of builds that are no more. One
// without a lock file was made this instant, or is very old.
func (w *workspace) sweep(ctx context.Context) error {
	list, err := os.ReadDir(filepath.Join(w.dir, "tmp"))
	if err != nil {
		return err
	}
	for _, e := range list {
		name := filepath.Join(w.dir, "tmp", e.Name())
		if !e.IsDir() {
			if _, err := os.Stat(strings.TrimSuffix(name, ".lock")); !errors.Is(err, fs.ErrNotExist) {
				continue
			}
		} else if _, err := os.Stat(name + ".lock"); errors.Is(err, fs.ErrNotExist) {
			if info, err := e.Info(); err != nil || time.Since(info.ModTime()) < time.Hour {
				continue
			}
		}
		lock, err := tryLock(strings.TrimSuffix(name, ".lock") + ".lock")
		if errors.Is(err, errLocked) || errors.Is(err, fs.ErrNotExist) {
			continue // that build lives, or has just ended by itself
		}
		if err != nil {
			return err
		}
		err = w.remove(ctx, strings.TrimSuffix(name, ".lock"))
		if err := errors.Join(err, os.Remove(lock.Name()), lock.Close()); err != nil {
			return err
		}
	}
	return nil
}

// remove deletes a tree, in the user namespace if its owners are from there.
func (w *workspace) remove(ctx context.Context, dir string) error {
	err := os.RemoveAll(dir)
	if err == nil || !w.spawn.userns {
		return err
	}
	_, err = w.spawn.do(ctx, call{req: request{Mode: modeRemove, Target: dir}})
	return err
}

// stepDir makes the directories of one step or helper: "upper", "work" and
// "mnt" in a new directory.
func (w *workspace) stepDir() (string, error) {
	dir, err := os.MkdirTemp(w.tmp, "s")
	if err != nil {
		return "", err
	}
	for _, d := range []string{"fs", "fs/upper", "fs/work", "mnt"} {
		// The upper directory's mode becomes that of / in the step.
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			return "", err
		}
	}
	return dir, nil
}

// A cachedStep is meta.json.
//
// Nothing here is synced to disk: on a busy machine that would cost more than
// most steps. Within one boot the cache is what was written; the first use
// after another boot compares the difference with Digest, so what a crash tore
// is a miss and not a wrong layer.
type cachedStep struct {
	Entry   *store.Entry `json:"entry"`   // nil if nothing changed
	Bytes   int64        `json:"bytes"`   // of the difference
	Digest  string       `json:"digest"`  // of the difference, as it was packed
	Started int64        `json:"started"` // as it was packed
	Boot    string       `json:"boot"`    // the boot that wrote or last checked it
	Text    string       `json:"text"`    // for people who look

	dir string // holds "upper"; stays until the build ends
}

func (c *cachedStep) upper() string { return filepath.Join(c.dir, "upper") }

// bootID names this boot of the machine.
func bootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b)), err
}

func (w *workspace) stepPath(key string) string {
	return filepath.Join(w.dir, "steps"+w.kind, key)
}

// lookup finds a cached step whose layer the store still has, and keeps it from
// being evicted until the build ends.
func (w *workspace) lookup(key string, st Store) (*cachedStep, bool) {
	dir := w.stepPath(key)
	lock, err := lockStep(dir, unix.LOCK_SH)
	if err != nil {
		return nil, false
	}
	c, ok := readStep(dir, st)
	if !ok {
		_ = lock.Close() // nothing was written
		return nil, false
	}
	w.steps = append(w.steps, lock)
	return c, true
}

func readStep(dir string, st Store) (*cachedStep, bool) {
	meta := filepath.Join(dir, "meta.json")
	b, err := os.ReadFile(meta)
	if err != nil {
		return nil, false
	}
	c := cachedStep{dir: dir}
	if err := json.Unmarshal(b, &c); err != nil {
		return nil, false
	}
	if c.Entry != nil {
		if _, err := st.Path(*c.Entry); err != nil {
			return nil, false
		}
		if _, err := os.Stat(c.upper()); err != nil {
			return nil, false
		}
	}
	now := time.Now()
	_ = os.Chtimes(meta, now, now) // only the order of eviction depends on it
	return &c, true
}

// forget lets go of the step that lookup gave last.
func (w *workspace) forget() error {
	last := len(w.steps) - 1
	lock := w.steps[last]
	w.steps = w.steps[:last]
	return lock.Close()
}

// commit makes the step in dir (from stepDir) the one cached under key. What
// another build uses stays: then the result is this build's own, in dir.
func (w *workspace) commit(ctx context.Context, dir, key string, c *cachedStep) error {
	c.dir = filepath.Join(dir, "fs")
	if err := w.remove(ctx, filepath.Join(c.dir, "work")); err != nil {
		return err
	}
	if c.Entry == nil {
		if err := w.remove(ctx, c.upper()); err != nil {
			return err
		}
	}
	if err := writeMeta(c.dir, c); err != nil {
		return err
	}
	lock, err := lockStep(c.dir, unix.LOCK_SH)
	if err != nil {
		return err
	}
	w.steps = append(w.steps, lock)
	to := w.stepPath(key)
	if err := w.withdraw(to, filepath.Join(dir, "old")); err != nil && !errors.Is(err, errLocked) {
		return err
	}
	if err := os.Rename(c.dir, to); errors.Is(err, fs.ErrExist) {
		return nil
	} else if err != nil {
		return err
	}
	c.dir = to
	return nil
}

// withdraw takes a step that nobody uses out of the cache, to a directory of
// this build; errLocked says that somebody does.
func (w *workspace) withdraw(step, to string) error {
	lock, err := lockStep(step, unix.LOCK_EX)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	return errors.Join(os.Rename(step, to), lock.Close())
}

// writeMeta writes meta.json into dir, marked with this boot. Others may read
// it at the same time.
func writeMeta(dir string, c *cachedStep) (err error) {
	if c.Boot, err = bootID(); err != nil {
		return err
	}
	b, err := json.Marshal(c)
	if err != nil {
		return err
	}
	tmp := filepath.Join(dir, "meta."+rand.Text())
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, filepath.Join(dir, "meta.json"))
}

// evict removes the least recently used steps, but none in use, until the rest
// fits.
func (w *workspace) evict(ctx context.Context, most int64) error {
	list, err := os.ReadDir(filepath.Join(w.dir, "steps"+w.kind))
	if err != nil {
		return err
	}
	type item struct {
		dir   string
		used  time.Time
		bytes int64
	}
	var items []item
	var total int64
	for _, e := range list {
		dir := w.stepPath(e.Name())
		meta := filepath.Join(dir, "meta.json")
		st, err := os.Stat(meta)
		if err != nil {
			continue
		}
		b, err := os.ReadFile(meta)
		if err != nil {
			continue
		}
		var c cachedStep
		if json.Unmarshal(b, &c) != nil {
			c.Bytes = 0
		}
		items = append(items, item{dir, st.ModTime(), c.Bytes})
		total += c.Bytes
	}
	slices.SortFunc(items, func(a, b item) int { return a.used.Compare(b.used) })
	for _, it := range items {
		if total <= most {
			break
		}
		to := filepath.Join(w.tmp, rand.Text())
		if err := w.withdraw(it.dir, to); errors.Is(err, errLocked) {
			continue
		} else if err != nil {
			return err
		}
		if err := w.remove(ctx, to); err != nil {
			return err
		}
		total -= it.bytes
	}
	return nil
}

// aptDirs gives the package cache of a base, or a private one while another
// build uses that. Release must be called.
func (w *workspace) aptDirs(digest string) (lists, debs string, release func() error, err error) {
	dir := filepath.Join(w.dir, "apt"+w.kind, digest)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", "", nil, err
	}
	lock, err := tryLock(filepath.Join(dir, "lock"))
	release = func() error { return nil }
	switch {
	case errors.Is(err, errLocked):
		if dir, err = os.MkdirTemp(w.tmp, "apt"); err != nil {
			return "", "", nil, err
		}
	case err != nil:
		return "", "", nil, err
	default:
		release = lock.Close
	}
	lists, debs = filepath.Join(dir, "lists"), filepath.Join(dir, "debs")
	for _, d := range []string{lists, debs, filepath.Join(lists, "partial"), filepath.Join(debs, "partial")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return "", "", nil, errors.Join(err, release())
		}
	}
	return lists, debs, release, nil
}
