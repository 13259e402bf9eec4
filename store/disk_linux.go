package store

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// allocate reserves size bytes for a file, so that a full disk is noticed before
// anything is fetched; where the file system cannot, the file is only sized.
func allocate(f *os.File, size int64) error {
	err := unix.Fallocate(int(f.Fd()), 0, 0, size)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return f.Truncate(size)
	}
	return err
}

// startWriteback has the system begin to write a file's data to disk.
func startWriteback(f *os.File) error {
	err := unix.SyncFileRange(int(f.Fd()), 0, 0, unix.SYNC_FILE_RANGE_WRITE)
	if errors.Is(err, unix.ENOSYS) {
		return nil
	}
	return err
}

// syncData makes a file's data durable.
func syncData(f *os.File) error { return unix.Fdatasync(int(f.Fd())) }
