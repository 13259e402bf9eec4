package cli

import (
	"sync"
	"time"

	"github.com/schollz/progressbar/v3"
)

// quietStart is how long something may take before a spinner or bar is drawn.
const quietStart = time.Second

// Task is one running piece of work, shown as a spinner, or as a bar once its
// size is known. Nothing is drawn unless stderr is a terminal and the work
// takes longer than a second. A nil *Task does nothing.
type Task struct {
	p     *Printer
	timer *time.Timer

	mu    sync.Mutex
	title string
	done  int64
	total int64 // bytes; 0 is not known
	bar   *progressbar.ProgressBar
	ended bool
}

// Start begins a task; the caller must call Done. A task that is running
// already is ended.
func (p *Printer) Start(title string) *Task {
	if !p.tty || p.Quiet {
		return nil
	}
	t := &Task{p: p, title: title}
	p.mu.Lock()
	old := p.task
	p.task = t
	p.mu.Unlock()
	old.Done()
	t.timer = time.AfterFunc(quietStart, t.draw)
	return t
}

func (t *Task) draw() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ended {
		return
	}
	size := int64(-1)
	if t.total > 0 {
		size = t.total
	}
	t.bar = progressbar.NewOptions64(size,
		progressbar.OptionSetWriter(t.p.err),
		progressbar.OptionSetDescription(t.title),
		progressbar.OptionShowBytes(t.total > 0),
		progressbar.OptionUseIECUnits(true),
		progressbar.OptionSetWidth(28),
		progressbar.OptionThrottle(100*time.Millisecond),
		progressbar.OptionSpinnerType(14),
		progressbar.OptionSetElapsedTime(true),
		progressbar.OptionClearOnFinish(),
	)
	t.set()
}

// set is called with t.mu held. Drawing errors mean that the terminal is gone.
func (t *Task) set() {
	if t.bar != nil && t.total > 0 {
		_ = t.bar.Set64(min(t.done, t.total-1))
	}
}

// Title changes what is being done.
func (t *Task) Title(title string) {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.title = title
	if t.bar != nil {
		t.bar.Describe(title)
	}
}

// Progress sets how many of how many bytes are done; total 0 is not known.
func (t *Task) Progress(done, total int64) {
	if t == nil {
		return
	}
	t.mu.Lock()
	resized := total != t.total
	t.done, t.total = done, total
	drawn := t.bar != nil
	if drawn && resized {
		_ = t.bar.Exit()
		_ = t.bar.Clear()
		t.bar = nil
	}
	t.set()
	t.mu.Unlock()
	if drawn && resized {
		t.draw()
	}
}

// Done ends the task and clears its line. It may be called again.
func (t *Task) Done() {
	if t == nil {
		return
	}
	t.timer.Stop()
	t.mu.Lock()
	t.ended = true
	if t.bar != nil {
		_ = t.bar.Exit()
		_ = t.bar.Clear()
		t.bar = nil
	}
	t.mu.Unlock()
	t.p.mu.Lock()
	if t.p.task == t {
		t.p.task = nil
	}
	t.p.mu.Unlock()
}

// clear makes room for a line of talk; the bar draws itself again. Called with
// p.mu held.
func (p *Printer) clear() {
	if p.task == nil {
		return
	}
	p.task.mu.Lock()
	defer p.task.mu.Unlock()
	if p.task.bar != nil {
		_ = p.task.bar.Clear()
	}
}
