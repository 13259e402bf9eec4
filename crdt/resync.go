package crdt

import (
	"slices"
	"sync"
	"time"
)

// freshness is how recent what a replica holds is, and who waits for more.
type freshness struct {
	resync chan struct{} // somebody waits for newer than what is held; capacity 1

	mu     sync.Mutex
	synced bool
	upTo   time.Duration // since boot: what others held then is held, if synced
	waits  []syncWait
}

type syncWait struct {
	since time.Duration
	done  chan struct{}
}

// wait returns a channel that is closed once what others held at since is held.
func (f *freshness) wait(since time.Duration) <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	if i := slices.IndexFunc(f.waits, func(w syncWait) bool { return w.since == since }); i >= 0 {
		return f.waits[i].done
	}
	w := syncWait{since, make(chan struct{})}
	if f.synced && f.upTo >= since {
		close(w.done)
		return w.done
	}
	f.waits = append(f.waits, w)
	if f.synced {
		select {
		case f.resync <- struct{}{}:
		default:
		}
	}
	return w.done
}

// reach notes that what others held at began is held.
func (f *freshness) reach(began time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.synced, f.upTo = true, max(f.upTo, began)
	f.waits = slices.DeleteFunc(f.waits, func(w syncWait) bool {
		if w.since > f.upTo {
			return false
		}
		close(w.done)
		return true
	})
}

// longest is the earliest time that somebody waits for.
func (f *freshness) longest() (since time.Duration, waits bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i, w := range f.waits {
		if i == 0 || w.since < since {
			since = w.since
		}
	}
	return since, len(f.waits) > 0
}
