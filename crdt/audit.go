package crdt

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/formthefog/formation/crdt/stmt"
)

// Fate is what becomes of a statement when its log is replayed.
type Fate string

// The fates. Only FateBad is damage: what a log holds was verified once.
const (
	FateHeld       Fate = "held"       // it counts
	FateWaits      Fate = "waits"      // set aside for what it depends on
	FateSuperseded Fate = "superseded" // something later in the log replaces or ends it
	FateRefused    Fate = "refused"    // signed, but against the rules of this version
	FateBad        Fate = "bad"        // not canonical, of another network or forged
)

// Found is one statement of a log.
type Found struct {
	Offset    int64 // of its frame
	Raw       []byte
	Statement *stmt.Statement // nil when Fate is FateBad and it cannot be read
	Fate      Fate
	Err       error // of FateBad, FateRefused and FateWaits
}

// Audit is how a log is as a whole.
type Audit struct {
	Size   int64 // of the file
	Good   int64 // bytes before the first frame that is not whole
	Frames int
	Damage error // why reading stopped at Good; nil when it came to the end
	Resync bool  // state was lost, and no session with a peer has made it good
	View   *View // what the log replays to
}

// AuditLog reads the log in dir, which it locks against a Replica and otherwise
// leaves as it is, and shows each every whole frame in order, after all have been
// replayed. Every signature is checked. Errors wrap fs.ErrNotExist when there is
// no log, and are those of the file system, of a directory in use, of a log of
// another version, and of each.
func AuditLog(dir string, network stmt.NetworkID, root stmt.Key, engine SpecEngine, each func(Found) error) (a Audit, err error) {
	lock, err := lockExisting(dir)
	if err != nil {
		return a, fmt.Errorf("audit: %w", err)
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	f, err := os.Open(filepath.Join(dir, logName))
	if err != nil {
		return a, fmt.Errorf("audit: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return a, fmt.Errorf("audit: %w", err)
	}
	a.Size = info.Size()
	if marker, err := os.Stat(filepath.Join(dir, resyncName)); err == nil {
		a.Resync = marker.Size() > 0
	}
	s := NewState(network, root, engine)
	errs := map[int]error{} // by frame; most have none
	a.Good, a.Damage, err = readFrames(f, func(raw []byte) error {
		st, err := stmt.Verify(raw, network)
		if err == nil {
			_, err = s.applyVerified(st, nil, time.Time{})
		}
		if err != nil {
			errs[a.Frames] = err
		}
		a.Frames++
		return nil
	})
	if err == nil && a.Good == 0 {
		a.Damage = errors.New("not even a whole header")
	}
	if err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		return a, fmt.Errorf("audit: %w", err)
	}
	a.View = s.View()
	waits := s.pending.ids()
	seen := map[stmt.ID]bool{}
	n, offset := 0, int64(len(logMagic))
	_, _, err = readFrames(f, func(raw []byte) error {
		found := Found{Offset: offset, Raw: raw, Err: errs[n]}
		found.Statement, _ = stmt.Peek(raw, network) // Err says why not
		found.Fate, found.Err = s.fate(found.Statement, found.Err, waits)
		if found.Fate == FateHeld && seen[found.Statement.ID] {
			found.Fate = FateSuperseded // the same again
		} else if found.Fate == FateHeld {
			seen[found.Statement.ID] = true
		}
		n++
		offset += frameHeader + int64(len(raw))
		return each(found)
	})
	if err != nil {
		return a, fmt.Errorf("audit: %w", err)
	}
	return a, nil
}

// fate judges a statement by the error it met and by what the state holds in the
// end, and has set aside.
func (s *State) fate(st *stmt.Statement, err error, waits map[stmt.ID]bool) (Fate, error) {
	if st != nil {
		if s.ids.has(st.ID) {
			return FateHeld, nil
		}
		if waits[st.ID] {
			return FateWaits, err
		}
	}
	switch {
	case err == nil, errors.Is(err, ErrStale), errors.Is(err, ErrPending), errors.Is(err, ErrNotMember):
		return FateSuperseded, nil
	case benign(err):
		return FateRefused, err
	}
	return FateBad, err
}

// ErrInUse: another process uses the directory.
var ErrInUse = errors.New("in use by another process")

// lockExisting locks a directory as lockDir does, and makes nothing.
func lockExisting(dir string) (io.Closer, error) {
	f, err := os.Open(filepath.Join(dir, "lock"))
	if errors.Is(err, fs.ErrNotExist) {
		return os.Open(dir) // no Replica was ever here
	}
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("%s is %w: %w", dir, ErrInUse, err), f.Close())
	}
	return f, nil
}
