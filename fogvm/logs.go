package fogvm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"
)

// followInterval is how often a followed log is looked at for new output.
const followInterval = 200 * time.Millisecond

// openLogs reads a rotating log: its predecessor, then the file itself, and on
// with what is appended when following.
func openLogs(ctx context.Context, path string, o LogOptions) (io.ReadCloser, error) {
	kept, f, err := readKept(path)
	if err != nil {
		return nil, fmt.Errorf("read log: %w", err)
	}
	kept = lastN(kept, o.Tail)
	if !o.Follow {
		if f != nil {
			f.Close()
		}
		return io.NopCloser(bytes.NewReader(kept)), nil
	}
	r, w := io.Pipe()
	go func() {
		tail := &tailer{path: path, f: f}
		defer tail.close()
		_, err := w.Write(kept)
		for err == nil {
			err = tail.copyNew(w)
			if err != nil {
				break
			}
			select {
			case <-ctx.Done():
				err = io.EOF
			case <-time.After(followInterval):
			}
		}
		w.CloseWithError(err)
	}()
	stop := context.AfterFunc(ctx, func() { w.CloseWithError(io.EOF) })
	return &logReader{PipeReader: r, stop: stop}, nil
}

type logReader struct {
	*io.PipeReader
	stop func() bool
}

func (l *logReader) Close() error {
	l.stop()
	return l.PipeReader.Close()
}

// readKept returns what is there and the open current file, positioned after
// it; nil when there is none yet.
func readKept(path string) ([]byte, *os.File, error) {
	old, err := os.ReadFile(path + ".1")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, nil, err
	}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return old, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	now, err := io.ReadAll(io.LimitReader(f, MaxLogBytes))
	if err != nil {
		return nil, nil, errors.Join(err, f.Close())
	}
	return append(old, now...), f, nil
}

// lastN keeps the last n lines; all when n is 0, none when negative.
func lastN(data []byte, n int) []byte {
	if n == 0 {
		return data
	}
	if n < 0 {
		return nil
	}
	end := len(bytes.TrimSuffix(data, []byte("\n")))
	for i := end - 1; i >= 0; i-- {
		if data[i] == '\n' {
			if n--; n == 0 {
				return data[i+1:]
			}
		}
	}
	return data
}

// tailer follows a file across its rotations.
type tailer struct {
	path string
	f    *os.File
}

func (t *tailer) copyNew(w io.Writer) error {
	if t.f != nil {
		if _, err := io.Copy(w, t.f); err != nil {
			return err
		}
	}
	current, err := os.Stat(t.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if t.f != nil {
		mine, err := t.f.Stat()
		if err != nil {
			return err
		}
		if os.SameFile(mine, current) {
			return nil
		}
		// Rotated: what was written to the old file after the copy above.
		if _, err := io.Copy(w, t.f); err != nil {
			return err
		}
		t.f.Close()
	}
	if t.f, err = os.Open(t.path); err != nil {
		t.f = nil
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	_, err = io.Copy(w, t.f)
	return err
}

func (t *tailer) close() {
	if t.f != nil {
		t.f.Close()
	}
}
