package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"
)

// RotatingFile is an append-only log that keeps at most twice max bytes: PATH
// and its predecessor PATH.1. Safe for several goroutines. What feeds it must be
// drained whatever happens, or the program behind it blocks: so a write that
// fails (the disk is full) loses its bytes and is no error, and the next that
// succeeds says how many were lost.
type RotatingFile struct {
	mu     sync.Mutex
	path   string
	max    int64
	f      *os.File // nil after a rotation that failed, and when closed
	size   int64
	lost   int64
	closed bool
}

// OpenRotatingFile opens or creates the file with mode 0640.
func OpenRotatingFile(path string, max int64) (*RotatingFile, error) {
	r := &RotatingFile{path: path, max: max}
	if err := r.open(); err != nil {
		return nil, err
	}
	return r, nil
}

func (r *RotatingFile) open() error {
	f, err := os.OpenFile(r.path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o640)
	if err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return fmt.Errorf("open log: %w", err)
	}
	r.f, r.size = f, info.Size()
	return nil
}

// Write appends p, rotating first when p would go over the limit. The only
// error is os.ErrClosed.
func (r *RotatingFile) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return 0, os.ErrClosed
	}
	if err := r.append(p); err != nil {
		r.lost += int64(len(p))
	}
	return len(p), nil
}

func (r *RotatingFile) append(p []byte) error {
	if r.f == nil {
		if err := r.open(); err != nil {
			return err
		}
	}
	if r.lost > 0 {
		p = append(fmt.Appendf(nil, "\n[%d bytes of output lost]\n", r.lost), p...)
	}
	if r.size > 0 && r.size+int64(len(p)) > r.max {
		if err := r.rotate(); err != nil {
			return err
		}
	}
	n, err := r.f.Write(p)
	r.size += int64(n)
	if err == nil {
		r.lost = 0
	}
	return err
}

func (r *RotatingFile) rotate() error {
	if err := os.Rename(r.path, r.path+".1"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("rotate log: %w", err)
	}
	r.f.Close()
	r.f = nil
	return r.open()
}

// Close closes the file.
func (r *RotatingFile) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	if r.f == nil {
		return nil
	}
	err := r.f.Close()
	r.f = nil
	return err
}

// ring is a bounded buffer between the entrypoint and the host: writers never
// wait, and when the reader is slow the oldest bytes go.
type ring struct {
	mu      sync.Mutex
	buf     []byte
	max     int
	dropped int64
	wake    chan struct{}
	tail    []byte // the last bytes ever written, for failure reasons
}

const tailBytes = 512

func newRing(max int) *ring { return &ring{max: max, wake: make(chan struct{}, 1)} }

func (r *ring) Write(p []byte) (int, error) {
	r.mu.Lock()
	r.buf = append(r.buf, p...)
	if over := len(r.buf) - r.max; over > 0 {
		r.dropped += int64(over)
		r.buf = append(r.buf[:0], r.buf[over:]...)
	}
	r.tail = append(r.tail, p...)
	if over := len(r.tail) - tailBytes; over > 0 {
		r.tail = append(r.tail[:0], r.tail[over:]...)
	}
	r.mu.Unlock()
	select {
	case r.wake <- struct{}{}:
	default:
	}
	return len(p), nil
}

// copyTo moves everything written, and to be written, into w until ctx ends or
// w fails.
func (r *ring) copyTo(ctx context.Context, w io.Writer) error {
	for {
		r.mu.Lock()
		chunk, dropped := r.buf, r.dropped
		r.buf, r.dropped = nil, 0
		r.mu.Unlock()
		if dropped > 0 {
			chunk = append(fmt.Appendf(nil, "[%d bytes of output dropped]\n", dropped), chunk...)
		}
		for len(chunk) > 0 {
			n := min(len(chunk), MaxFrame)
			if _, err := w.Write(chunk[:n]); err != nil {
				return err
			}
			chunk = chunk[n:]
		}
		r.mu.Lock()
		empty := len(r.buf) == 0
		r.mu.Unlock()
		if !empty {
			continue
		}
		select {
		case <-ctx.Done():
			return nil
		case <-r.wake:
		}
	}
}

// last returns the end of the output, for a reason; and forgets it.
func (r *ring) last() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := string(r.tail)
	r.tail = nil
	return s
}
