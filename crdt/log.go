package crdt

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"sync"
	"time"

	"github.com/formthefog/formation/crdt/stmt"
)

const (
	logName   = "state.log"
	epochName = "epoch"
	// cutName keeps what was cut off the log last, at most maxCut bytes of it.
	cutName = "state.log.cut"
	maxCut  = 16 << 20
	// logMagic begins every log; another version gets another one.
	logMagic    = "formation/log/1\n"
	frameHeader = 8 // length and CRC-32C, both little endian uint32
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// errLogFailed: an earlier write or sync failed, so nothing can be acknowledged
// any more before the log is opened anew.
var errLogFailed = errors.New("crdt: the state log has failed")

// errForeignLog: there is a log, but not one of this version.
var errForeignLog = errors.New("crdt: the state log is of another version, or its header is damaged; " +
	"run the version that wrote it, or move the file away: peers give back what they hold")

// Recovery is how a Replica found its log.
type Recovery int

// What is lost of a log that is not whole was on disk and may have been
// acknowledged.
const (
	LogWhole  Recovery = iota // read to its end
	LogCut                    // damaged, and cut at the first bad frame
	LogAbsent                 // none, or not even a whole header
)

func (r Recovery) String() string { return [...]string{"whole", "cut", "absent"}[r] }

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
// they and the magic take: 0 when there is not even a whole magic. cut says why
// reading stopped before the end.
func readFrames(r io.Reader, each func(raw []byte) error) (good int64, cut error, err error) {
	br := bufio.NewReaderSize(r, 1<<16)
	magic := make([]byte, len(logMagic))
	if _, err := io.ReadFull(br, magic); errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return 0, nil, nil
	} else if err != nil {
		return 0, nil, err
	}
	if string(magic) != logMagic {
		return 0, nil, fmt.Errorf("%w (it begins with %q, not %q)", errForeignLog, magic, logMagic)
	}
	good = int64(len(logMagic))
	for {
		var h [frameHeader]byte
		switch _, err := io.ReadFull(br, h[:]); {
		case err == nil:
		case errors.Is(err, io.EOF):
			return good, nil, nil
		case errors.Is(err, io.ErrUnexpectedEOF):
			return good, fmt.Errorf("frame header: %w", err), nil
		default: // it cannot be read now, which says nothing of what is there
			return good, nil, fmt.Errorf("read log: %w", err)
		}
		n := binary.LittleEndian.Uint32(h[:4])
		// A length of zero is what a file extended by a crash reads as.
		if n == 0 || n > stmt.MaxStatement {
			return good, fmt.Errorf("frame of %d bytes", n), nil
		}
		raw := make([]byte, n)
		switch _, err := io.ReadFull(br, raw); {
		case err == nil:
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return good, fmt.Errorf("frame: %w", err), nil
		default:
			return good, nil, fmt.Errorf("read log: %w", err)
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

// openLog reads the log and makes it ready to append. lost is called before a
// log that is not whole is changed, with why when it is damaged; its error is
// openLog's.
func openLog(fsys fileSystem, each func(raw []byte) error, lost func(Recovery, error) error) (*stateLog, error) {
	f, err := fsys.Open(logName, false)
	if err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	good, cut, err := readFrames(f, each)
	switch {
	case err != nil:
	case good == 0:
		if err = lost(LogAbsent, nil); err == nil {
			good = int64(len(logMagic))
			f, err = beginLog(fsys, f)
		}
	case cut != nil:
		if err = lost(LogCut, errors.Join(cut, keepTail(fsys, good))); err == nil {
			err = f.Truncate(good)
		}
	}
	if err == nil {
		err = errors.Join(f.Sync(), fsys.SyncDir())
	}
	if err != nil {
		return nil, fmt.Errorf("open log: %w", errors.Join(err, f.Close()))
	}
	return &stateLog{fsys: fsys, f: f, size: good, synced: good}, nil
}

// beginLog puts a new log in the place of old, in one step: no crash leaves half
// a header, which would look like another version's.
func beginLog(fsys fileSystem, old file) (file, error) {
	err := writeAtomic(fsys, logName, func(w io.Writer) error {
		_, err := io.WriteString(w, logMagic)
		return err
	})
	if err != nil {
		return old, err
	}
	f, err := fsys.Open(logName, false)
	if err != nil {
		return old, err
	}
	return f, old.Close()
}

// keepTail copies what is going to be cut off the log, for whoever wants to know
// what it was.
func keepTail(fsys fileSystem, good int64) error {
	f, err := fsys.Open(logName, false)
	if err != nil {
		return fmt.Errorf("keep what is cut off: %w", err)
	}
	_, err = io.CopyN(io.Discard, f, good)
	if err == nil {
		err = writeAtomic(fsys, cutName, func(w io.Writer) error {
			_, err := io.Copy(w, io.LimitReader(f, maxCut))
			return err
		})
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("keep what is cut off: %w", err)
	}
	return nil
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

// framedSize is how large a log of just these statements is.
func framedSize(raws [][]byte) int64 {
	n := int64(len(logMagic))
	for _, raw := range raws {
		n += frameHeader + int64(len(raw))
	}
	return n
}

// compact replaces the log by one that holds just these statements. Positions
// from before count as synced afterwards. An error that wraps errNotReplaced
// leaves the log as it was, and in use.
func (l *stateLog) compact(raws [][]byte) error {
	l.syncMu.Lock()
	defer l.syncMu.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.failed != nil {
		return l.failed
	}
	err := writeAtomic(l.fsys, logName, func(w io.Writer) error {
		bw := bufio.NewWriterSize(w, 1<<16)
		if _, err := bw.WriteString(logMagic); err != nil {
			return err
		}
		var b []byte
		for _, raw := range raws {
			b = appendFrame(b[:0], raw)
			if _, err := bw.Write(b); err != nil {
				return err
			}
		}
		return bw.Flush()
	})
	if errors.Is(err, errNotReplaced) {
		return fmt.Errorf("compact log: %w", err)
	}
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
	_ = l.f.Close() // the old file: nothing in it is needed, and nothing was written that it could lose
	l.f, l.size, l.synced = f, framedSize(raws), framedSize(raws)
	return nil
}

func (l *stateLog) close() error {
	err := l.flush()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.failed = errors.Join(errLogFailed, errors.New("closed"))
	return errors.Join(err, l.f.Close())
}

const (
	compactAbove  = 1 << 20 // bytes of log that are never worth compacting
	compactFactor = 3       // and how much it grows before it is compacted at once
	// compactSlack is how much it may have grown, in percent, when there was no
	// compaction for compactEvery: a state at rest is not three times as large.
	compactSlack = 25
	compactEvery = 10 * time.Minute
	// maxBacklog bounds the statements that wait for the disk to take them, in
	// bytes. Over it the log is written anew from the state instead.
	maxBacklog = 1 << 20
	// retryRewrite is how soon a log is written anew after that failed.
	retryRewrite = 5 * time.Second
)

// errBehind: the disk does not take what the state has accepted.
var errBehind = errors.New("crdt: the state log is behind")

// backlog is what is in the state and not in the log. Nothing may be acknowledged
// before it is: later statements may depend on it.
type backlog struct {
	raws    [][]byte
	size    int
	failing bool      // the last append failed
	rewrite bool      // it grew over its bound: only a whole new log will do
	retry   time.Time // when to write one again
}

func (b *backlog) add(raw []byte) {
	if b.rewrite {
		return
	}
	b.raws, b.size = append(b.raws, raw), b.size+len(raw)
	if b.size > maxBacklog {
		b.raws, b.size, b.rewrite = nil, 0, true
	}
}

// record takes what the state has accepted into the log and wakes the watchers.
// While the disk fails it waits for the next commit or tick. Under mu.
func (r *Replica) record() (news []*stmt.Statement) {
	news = r.state.takeNews()
	if len(news) > 0 {
		r.stats.applied.Add(uint64(len(news)))
		r.wake()
	}
	r.takeOmitted()
	r.takeDoubled()
	for _, st := range news {
		r.backlog.add(st.Raw)
	}
	if !r.backlog.failing {
		_, _ = r.catchUp() // it reports; nothing is acknowledged here
	}
	return news
}

// wake tells the watchers that there is a new View. Under mu.
func (r *Replica) wake() {
	close(r.changed)
	r.changed = make(chan struct{})
}

// catchUp appends the backlog; pos is what to sync to. Under mu.
func (r *Replica) catchUp() (pos int64, err error) {
	b := &r.backlog
	if b.rewrite {
		return 0, errBehind
	}
	pos, err = r.log.append(b.raws...)
	if err == nil {
		b.raws, b.size = nil, 0
	}
	switch {
	case err != nil && !b.failing:
		r.cfg.Logger.Error("the state log cannot be written", "err", err)
	case err == nil && b.failing:
		r.cfg.Logger.Info("the state log is written again")
	}
	b.failing = err != nil
	return pos, err
}

// flush brings what others said to the disk, and compacts the log when superseded
// statements make up most of it. Its error means that the log has failed.
func (r *Replica) flush() error {
	r.mu.Lock()
	if r.backlog.failing && !r.backlog.rewrite {
		_, _ = r.catchUp() // it reports; the next tick tries again
	}
	r.mu.Unlock()
	if err := r.log.flush(); err != nil {
		return err
	}
	return r.compact(time.Now())
}

// compact writes the log anew from the state when that is due. A disk with no
// room for it is no failure while the old log is intact.
func (r *Replica) compact(now time.Time) error {
	size := r.log.bytes()
	r.mu.Lock()
	defer r.mu.Unlock()
	b := &r.backlog
	if r.liveSize == 0 && size >= compactAbove { // at the first tick: Open need not wait for it
		r.liveSize = framedSize(r.state.index().statements())
	}
	if most := r.mostLog(now); (!b.rewrite && size < max(compactAbove, most)) || now.Before(b.retry) {
		return nil
	}
	err := r.log.compact(r.state.index().statements())
	if errors.Is(err, errNotReplaced) {
		b.retry = now.Add(retryRewrite)
		r.cfg.Logger.Warn("the state log cannot be compacted", "err", err)
		return nil
	}
	if err != nil {
		return err
	}
	r.liveSize, r.compacted = r.log.bytes(), now
	r.backlog = backlog{} // the state had it
	return nil
}

// mostLog is how large the log may be now. Under mu.
func (r *Replica) mostLog(now time.Time) int64 {
	if now.Sub(r.compacted) < compactEvery {
		return compactFactor * r.liveSize
	}
	return r.liveSize + r.liveSize*compactSlack/100
}
