package proc

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/formthefog/formation/sim/des"
)

// watchEvery is how often it is looked whether machines tick, and tickPause more than
// lies between two ticks of one that runs: a busy machine ticks late.
const (
	watchEvery = 50 * time.Millisecond
	tickPause  = 5 * time.Second
)

// watcher sees which machines tick, by what their shims write to files.
type watcher struct {
	Ticks
	end   chan struct{}
	ended chan struct{}
}

func watch(nodes []*node) *watcher {
	w := &watcher{Ticks: Ticks{Pause: tickPause}, end: make(chan struct{}), ended: make(chan struct{})}
	go func() {
		defer close(w.ended)
		tick := time.NewTicker(watchEvery)
		defer tick.Stop()
		size, looked := map[string]int64{}, time.Now()
		for {
			for _, n := range nodes {
				for path, is := range n.logs() { // any order: each is by itself
					if was, known := size[path]; is != was && (known || is > 0) {
						instance, slot := replicaOf(path)
						w.Ticked(n.i, instance, slot, looked, time.Now())
					}
					size[path] = is
				}
			}
			looked = time.Now()
			select {
			case <-w.end:
				return
			case <-tick.C:
			}
		}
	}()
	return w
}

func (w *watcher) stop() {
	close(w.end)
	<-w.ended
}

// logs are the files with what each machine of a node has said, and their sizes.
func (n *node) logs() map[string]int64 {
	out := map[string]int64{}
	paths, err := filepath.Glob(filepath.Join(n.h.disk(n.i), "data", "vms", "*", "app.log"))
	if err != nil {
		return out // the pattern is ours, and right
	}
	for _, p := range paths {
		if info, err := os.Stat(p); err == nil { // it may go between the two
			out[p] = info.Size()
		}
	}
	return out
}

// replicaOf is whose machine writes a log: its folder is INSTANCE-SLOT.
func replicaOf(path string) (instance string, slot int) {
	dir := filepath.Base(filepath.Dir(path))
	at := max(0, strings.LastIndexByte(dir, '-'))
	slot, _ = strconv.Atoi(strings.TrimPrefix(dir[at:], "-")) // formd names it; 0 where it is none
	return dir[:at], slot
}

// machines are the processes of a node's machines.
func (n *node) machines() ([]int, error) {
	pids, err := n.h.on(n.i)
	return slices.DeleteFunc(pids, func(pid int) bool {
		name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		return err != nil || !strings.HasPrefix(string(name), "qemu-system")
	}), err
}

// powerOff ends all there is of a node at once, as when its plug is pulled: but what
// was written is kept.
func (n *node) powerOff() error {
	n.killed, n.off = true, time.Now()
	if err := n.h.killThose(func() ([]int, error) { return n.h.on(n.i) }); err != nil {
		return fmt.Errorf("n%d: %w", n.i, err)
	}
	if n.cmd != nil {
		<-n.done
	}
	return nil
}

// freeze has all there is of a node stand still, or go on.
func (n *node) freeze(on bool) error {
	if err := n.stop(on); err != nil {
		return err
	}
	n.asleep = on && n.stopped
	s := syscall.SIGCONT
	if on {
		s = syscall.SIGSTOP
	}
	pids, err := n.h.on(n.i)
	for _, pid := range pids {
		if kerr := syscall.Kill(pid, s); kerr != nil && !errors.Is(kerr, syscall.ESRCH) {
			err = errors.Join(err, fmt.Errorf("signal process %d of n%d: %w", pid, n.i, kerr))
		}
	}
	return err
}

// wakeLimit is how long a machine may run after its host woke past a lease: what a
// guest does before its shim has seen what time it is.
const wakeLimit = 2 * time.Second

// wake has a node go on that stands still.
func (r *run) wake(n *node) error {
	slept := n.stopped
	if err := n.freeze(false); err != nil || !slept || r.ticks == nil {
		return err
	}
	woke := time.Now()
	r.after(wakeLimit+time.Second, func(context.Context) error {
		r.ticks.Forgive(n.i, woke, woke.Add(wakeLimit))
		return nil
	})
	return nil
}

// fences holds every fenced instance to having run once at most, at every moment, by
// what its machines wrote.
func (r *run) fences() {
	for _, o := range r.owners {
		for name, id := range o.named { // any order: each is said by itself
			if !r.fenced[id] {
				continue
			}
			if len(r.ticks.Spans(id)) == 0 {
				r.fail(Settles, "%s (%.8s): it was never seen to run, so that nothing is known of whether it ran twice", name, id)
			}
			for _, what := range r.ticks.Twice(id) {
				r.fail(des.FencedOnce, "%s (%.8s): %s", name, id, what)
			}
		}
	}
}
