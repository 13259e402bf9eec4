package store

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// disk is what fetches ask of the file system; tests make it fail.
type disk struct {
	space    func(dir string) (free, size int64, err error) // bytes this user may write, and of the whole
	allocate func(f *os.File, size int64) error
	writeAt  func(f *os.File, data []byte, off int64) (int, error)
}

var realDisk = disk{space: diskSpace, allocate: allocate, writeAt: (*os.File).WriteAt}

func diskSpace(dir string) (free, size int64, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, 0, err
	}
	return int64(st.Bavail) * int64(st.Bsize), int64(st.Blocks) * int64(st.Bsize), nil
}

// reserve is how much of a file system of so many bytes fetches leave free: what
// else is on it, VM disks and the swarm's state first, must go on.
func reserve(size int64) int64 { return min(size/20, 1<<30) }

// noSpace marks the error of a full disk as ErrNoSpace.
func noSpace(err error) error {
	if errors.Is(err, unix.ENOSPC) {
		return fmt.Errorf("%w: %w", ErrNoSpace, err)
	}
	return err
}

// needSpace is ErrNoSpace unless n more bytes fit beside the reserve.
func (s *Store) needSpace(n int64) error {
	if n <= 0 {
		return nil
	}
	free, size, err := s.disk.space(s.cfg.Dir)
	if err != nil {
		return fmt.Errorf("free space of %s: %w", s.cfg.Dir, err)
	}
	if keep := reserve(size); n > free-keep {
		return fmt.Errorf("%w: %d bytes are needed, %d are free and %d of them stay so", ErrNoSpace, n, free, min(free, keep))
	}
	return nil
}

// unallocated is how many bytes the images of entries will take beyond what they
// have on disk.
func (s *Store) unallocated(entries []Entry) (n int64, err error) {
	for _, e := range entries {
		r, err := s.image(e.Root)
		if err != nil && !errors.Is(err, ErrNotFound) {
			return 0, err
		}
		if r.Whole {
			continue
		}
		var st unix.Stat_t
		if err := unix.Stat(s.partPath(e.Root), &st); err != nil && !errors.Is(err, os.ErrNotExist) {
			return 0, fmt.Errorf("part %s: %w", e.Root, err)
		}
		n += max(0, e.Size-int64(st.Blocks)*512)
	}
	return n, nil
}
