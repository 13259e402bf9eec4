package p2p

import "sync"

// tasks counts what must have ended before Run returns. Unlike a WaitGroup it
// may be entered while somebody waits; it then refuses.
type tasks struct {
	mu     sync.Mutex
	n      int
	closed bool
	idle   chan struct{} // closed when closed and n is 0
}

func newTasks() *tasks { return &tasks{idle: make(chan struct{})} }

func (t *tasks) enter() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return false
	}
	t.n++
	return true
}

func (t *tasks) leave() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.n--; t.n == 0 && t.closed {
		close(t.idle)
	}
}

// run starts f in a goroutine, unless the tasks are closed.
func (t *tasks) run(f func()) {
	if t.enter() {
		go func() {
			defer t.leave()
			f()
		}()
	}
}

// close refuses new tasks. It may be called once.
func (t *tasks) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	if t.n == 0 {
		close(t.idle)
	}
}

// wait blocks until the tasks are closed and have all left.
func (t *tasks) wait() { <-t.idle }
