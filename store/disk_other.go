//go:build !linux

package store

import "os"

// allocate sizes a file; nothing is reserved.
func allocate(f *os.File, size int64) error { return f.Truncate(size) }

// startWriteback leaves the writing to the next sync.
func startWriteback(*os.File) error { return nil }

// syncData makes a file's data durable.
func syncData(f *os.File) error { return f.Sync() }
