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
	// The lock comes first, so that nobody sweeps what is not locked yet.
	w.tmp = filepath.Join(dir, "tmp", rand.Text())
	if w.lock, err = tryLock(w.tmp + ".lock"); err == nil {
		err = os.Mkdir(w.tmp, 0o700)
	}
	if err != nil {
		return nil, fmt.Errorf("cache: %w", err)
	}
	return w, nil
}

// close removes the temporary directory, also when ctx of the build has ended.
func (w *workspace) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	return errors.Join(w.remove(ctx, w.tmp), os.Remove(w.lock.Name()), w.lock.Close())
}

var errLocked = errors.New("locked by another build")

// tryLock locks a file without waiting.
func tryLock(name string) (*os.File, error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = errLocked
		}
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
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
		if errors.Is(err, errLocked) {
			continue
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
}

// bootID names this boot of the machine.
func bootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b)), err
}

func (w *workspace) stepPath(key string) string {
	return filepath.Join(w.dir, "steps"+w.kind, key)
}

// lookup finds a cached step whose layer the store still has.
func (w *workspace) lookup(key string, st Store) (*cachedStep, bool) {
	meta := filepath.Join(w.stepPath(key), "meta.json")
	b, err := os.ReadFile(meta)
	if err != nil {
		return nil, false
	}
	var c cachedStep
	if err := json.Unmarshal(b, &c); err != nil {
		return nil, false
	}
	if c.Entry != nil {
		if _, err := st.Path(*c.Entry); err != nil {
			return nil, false
		}
		if _, err := os.Stat(filepath.Join(w.stepPath(key), "upper")); err != nil {
			return nil, false
		}
	}
	now := time.Now()
	_ = os.Chtimes(meta, now, now) // only the order of eviction depends on it
	return &c, true
}

// commit makes the step in dir (from stepDir) the one cached under key.
func (w *workspace) commit(ctx context.Context, dir, key string, c *cachedStep) error {
	fsDir := filepath.Join(dir, "fs")
	if err := w.remove(ctx, filepath.Join(fsDir, "work")); err != nil {
		return err
	}
	if c.Entry == nil {
		if err := w.remove(ctx, filepath.Join(fsDir, "upper")); err != nil {
			return err
		}
	}
	if err := writeMeta(fsDir, c); err != nil {
		return err
	}
	to := w.stepPath(key)
	if err := w.remove(ctx, to); err != nil {
		return err
	}
	if err := os.Rename(fsDir, to); errors.Is(err, fs.ErrExist) || errors.Is(err, unix.ENOTEMPTY) {
		return nil // another build was faster, with the same result
	} else if err != nil {
		return err
	}
	return nil
}

// writeMeta writes meta.json into dir, marked with this boot.
func writeMeta(dir string, c *cachedStep) (err error) {
	if c.Boot, err = bootID(); err != nil {
		return err
	}
	b, err := json.Marshal(c)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "meta.json"), b, 0o600)
}

// evict removes the least recently used steps until the rest fits.
func (w *workspace) evict(ctx context.Context, most int64, inUse map[string]bool) error {
	list, err := os.ReadDir(filepath.Join(w.dir, "steps"+w.kind))
	if err != nil {
		return err
	}
	type item struct {
		key   string
		used  time.Time
		bytes int64
	}
	var items []item
	var total int64
	for _, e := range list {
		meta := filepath.Join(w.stepPath(e.Name()), "meta.json")
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
		items = append(items, item{e.Name(), st.ModTime(), c.Bytes})
		total += c.Bytes
	}
	slices.SortFunc(items, func(a, b item) int { return a.used.Compare(b.used) })
	for _, it := range items {
		if total <= most {
			break
		}
		if inUse[it.key] {
			continue
		}
		if err := w.remove(ctx, w.stepPath(it.key)); err != nil {
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
