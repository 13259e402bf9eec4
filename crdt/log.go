package crdt

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"sync"

	"github.com/formthefog/formation/crdt/stmt"
)

const (
	logName   = "state.log"
	epochName = "epoch"
	// logMagic begins every log; another version gets another one.
	logMagic    = "formation/log/1\n"
	frameHeader = 8 // length and CRC-32C, both little endian uint32
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// errLogFailed: an earlier write or sync failed, so nothing can be acknowledged
// any more before the log is opened anew.
var errLogFailed = errors.New("crdt: the state log has failed")

// stateLog is an append-only file of framed statements: length, CRC-32C, raw
// bytes. Reading stops at the first frame that is not whole, and what follows is
// cut off: a tail is never guessed at.
type stateLog struct {
	fsys fileSystem

	mu     sync.Mutex // guards all below
	f      file
	size   int64 // bytes of whole frames appended
	failed error

	syncMu sync.Mutex // one sync at a time; taken before mu
	synced int64      // guarded by mu
}

// appendFrame appends one framed statement to b.
func appendFrame(b, raw []byte) []byte {
	b = binary.LittleEndian.AppendUint32(b, uint32(len(raw)))
	b = binary.LittleEndian.AppendUint32(b, crc32.Checksum(raw, castagnoli))
	return append(b, raw...)
}

// readFrames calls each for every whole frame of r and returns how many bytes
// they and the magic take. cut says why reading stopped before the end.
func readFrames(r io.Reader, each func(raw []byte) error) (good int64, cut error, err error) {
	br := bufio.NewReaderSize(r, 1<<16)
	magic := make([]byte, len(logMagic))
	if n, err := io.ReadFull(br, magic); err != nil || string(magic) != logMagic {
		if n == 0 && errors.Is(err, io.EOF) {
			return 0, nil, nil
		}
		return 0, errors.New("no log header"), nil
	}
	good = int64(len(logMagic))
	for {
		var h [frameHeader]byte
		if _, err := io.ReadFull(br, h[:]); errors.Is(err, io.EOF) {
			return good, nil, nil
		} else if err != nil {
			return good, fmt.Errorf("frame header: %w", err), nil
		}
		n := binary.LittleEndian.Uint32(h[:4])
		// A length of zero is what a file extended by a crash reads as.
		if n == 0 || n > stmt.MaxStatement {
			return good, fmt.Errorf("frame of %d bytes", n), nil
		}
		raw := make([]byte, n)
		if _, err := io.ReadFull(br, raw); err != nil {
			return good, fmt.Errorf("frame: %w", err), nil
		}
		if crc32.Checksum(raw, castagnoli) != binary.LittleEndian.Uint32(h[4:]) {
			return good, errors.New("frame checksum"), nil
		}
		if err := each(raw); err != nil {
			return good, nil, err
		}
		good += frameHeader + int64(n)
	}
}

// openLog reads the log and makes it ready to append. cut is not nil when a bad
// tail was cut off.
func openLog(fsys fileSystem, each func(raw []byte) error) (l *stateLog, cut, err error) {
	f, err := fsys.Open(logName, false)
	if err != nil {
		return nil, nil, fmt.Errorf("open log: %w", err)
	}
	l = &stateLog{fsys: fsys, f: f}
	good, cut, err := readFrames(f, each)
	if err == nil && cut != nil {
		err = f.Truncate(good)
	}
	if err == nil && good == 0 {
		_, err = f.Write([]byte(logMagic))
		good = int64(len(logMagic))
	}
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = fsys.SyncDir()
	}
	if err != nil {
		return nil, cut, fmt.Errorf("open log: %w", errors.Join(err, f.Close()))
	}
	l.size, l.synced = good, good
	return l, cut, nil
}

// append writes statements to the file, not yet to the disk, and returns the
// position to sync to.
func (l *stateLog) append(raws ...[]byte) (int64, error) {
	var b []byte
	for _, raw := range raws {
		b = appendFrame(b, raw)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.failed != nil {
		return 0, l.failed
	}
	if n, err := l.f.Write(b); err != nil || n < len(b) {
		if err == nil {
			err = io.ErrShortWrite
		}
		// What was written of it must not come before later frames.
		if terr := l.f.Truncate(l.size); terr != nil {
			l.failed = fmt.Errorf("%w: %w", errLogFailed, terr)
		}
		return 0, fmt.Errorf("append to log: %w", err)
	}
	l.size += int64(len(b))
	return l.size, nil
}

// syncTo returns when everything before pos is on disk. Callers that wait at the
// same time share one sync.
func (l *stateLog) syncTo(pos int64) error {
	l.syncMu.Lock()
	defer l.syncMu.Unlock()
	l.mu.Lock()
	f, size, synced, failed := l.f, l.size, l.synced, l.failed
	l.mu.Unlock()
	if failed != nil {
		return failed
	}
	if synced >= pos {
		return nil
	}
	err := f.Sync()
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil {
		// After a failed fsync the kernel may drop the pages and report
		// success the next time: never trust this file again.
		l.failed = fmt.Errorf("%w: %w", errLogFailed, err)
		return fmt.Errorf("sync log: %w", err)
	}
	l.synced = max(l.synced, size)
	return nil
}

// flush syncs what is not yet synced.
func (l *stateLog) flush() error {
	l.mu.Lock()
	size := l.size
	l.mu.Unlock()
	return l.syncTo(size)
}

func (l *stateLog) bytes() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.size
}

// compact replaces the log by one that holds just these statements. Positions
// from before count as synced afterwards.
func (l *stateLog) compact(raws [][]byte) error {
	l.syncMu.Lock()
	defer l.syncMu.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.failed != nil {
		return l.failed
	}
	size := int64(len(logMagic))
	err := writeAtomic(l.fsys, logName, func(w io.Writer) error {
		bw := bufio.NewWriterSize(w, 1<<16)
		if _, err := bw.WriteString(logMagic); err != nil {
			return err
		}
		var b []byte
		for _, raw := range raws {
			b = appendFrame(b[:0], raw)
			size += int64(len(b))
			if _, err := bw.Write(b); err != nil {
				return err
			}
		}
		return bw.Flush()
	})
	if err != nil {
		// Which file the name means now is not known: reopening finds out.
		l.failed = fmt.Errorf("%w: compact: %w", errLogFailed, err)
		return l.failed
	}
	f, err := l.fsys.Open(logName, false)
	if err != nil {
		l.failed = fmt.Errorf("%w: compact: %w", errLogFailed, err)
		return l.failed
	}
	err = l.f.Close() // the old file: nothing in it is needed
	l.f, l.size, l.synced = f, size, size
	return err
}

func (l *stateLog) close() error {
	err := l.flush()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.failed = errors.Join(errLogFailed, errors.New("closed"))
	return errors.Join(err, l.f.Close())
}
