//go:build e2e

package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"
)

// tickingROM is firmware that writes dots to the serial console for ever.
func tickingROM() []byte {
	rom := make([]byte, 64<<10)
	copy(rom, []byte{
		0xba, 0xf8, 0x03, // mov dx, COM1
		0xb0, '.', //        mov al, '.'
		0xee,             // out dx, al
		0xbb, 0x20, 0x00, // mov bx, 32
		0xb9, 0xff, 0xff, // mov cx, 65535
		0x49, 0x75, 0xfd, // dec cx; jnz
		0x4b, 0x75, 0xf7, // dec bx; jnz
		0xeb, 0xec, //       jmp 0
	})
	copy(rom[0xfff0:], []byte{0xe9, 0x0d, 0x00}) // jmp 0
	return rom
}

// tickingQEMU puts a qemu-system-x86_64 before the real one: it takes from the
// command line of a VM what its shim needs (monitor, console, -S) and runs
// tickingROM, which needs no boot.
func tickingQEMU(t *testing.T) {
	real, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "form-qemu-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	rom := filepath.Join(dir, "rom")
	script := `#!/bin/sh
s=
for a in "$@"; do [ "$a" = -S ] && s=-S; done
case "$*" in
*-name\ guest=*) exec ` + real + ` -name guest=ticker -nodefaults -no-user-config -display none -machine q35 -accel tcg -m 16M -bios ` + rom + ` \
	-chardev socket,id=qmp,fd=3 -mon chardev=qmp,mode=control -chardev socket,id=console,fd=4 -serial chardev:console $s ;;
*) exec ` + real + ` "$@" ;;
esac
`
	err = errors.Join(os.Chmod(dir, 0o755), os.WriteFile(rom, tickingROM(), 0o644),
		os.WriteFile(filepath.Join(dir, "qemu-system-x86_64"), []byte(script), 0o755))
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
}

// span is a time in which a node's VM ran: it was seen to tick at its ends and at
// least every tickPause between them.
type span struct {
	node     int // in fleet.nodes
	from, to time.Time
}

// watch sees which nodes' VMs tick, by what their shims write to the console's
// log.
type watch struct {
	mu    sync.Mutex
	spans []span // in the order of from
	end   chan struct{}
	ended chan struct{}
}

const (
	tickEvery = 20 * time.Millisecond   // how often watch looks
	tickPause = 1500 * time.Millisecond // two ticks of one run are not further apart
)

func (f *fleet) watch() *watch {
	w := &watch{end: make(chan struct{}), ended: make(chan struct{})}
	tick := time.NewTicker(tickEvery)
	go func() {
		defer close(w.ended)
		defer tick.Stop()
		size, looked := make([]int64, len(f.nodes)), time.Now()
		for {
			for i, m := range f.nodes {
				if n := m.console(); n != size[i] {
					if n > 0 {
						w.ticked(i, looked, time.Now())
					}
					size[i] = n
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

// ticked takes note that a node's VM ran at some moment from then to now.
func (w *watch) ticked(node int, then, now time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := range w.spans {
		if s := &w.spans[i]; s.node == node && then.Sub(s.to) < tickPause {
			s.to = now
			return
		}
	}
	w.spans = append(w.spans, span{node, then, now})
}

// runs says whether a node's VM has ticked since then.
func (w *watch) runs(node int, then time.Time) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.ContainsFunc(w.spans, func(s span) bool { return s.node == node && s.to.After(then) })
}

// runner is whose VM, of those not left out, has ticked since then; -1: nobody's.
func (w *watch) runner(f *fleet, then time.Time, not ...int) int {
	for i := range f.nodes {
		if !slices.Contains(not, i) && w.runs(i, then) {
			return i
		}
	}
	return -1
}

func (w *watch) stop() []span {
	close(w.end)
	<-w.ended
	return w.spans
}

// console is the size of the log of what the node's VM writes; 0: there is none.
func (m *member) console() (size int64) {
	logs, err := filepath.Glob(filepath.Join(m.dir, "data", "vms", "*", "console.log"))
	if err != nil {
		return 0
	}
	for _, path := range logs {
		if info, err := os.Stat(path); err == nil { // it may go between the two
			size += info.Size()
		}
	}
	return size
}

// paused says whether the shim of the node's VM says that it is paused.
func (m *member) paused() error {
	states, err := filepath.Glob(filepath.Join(m.dir, "data", "vms", "*", "state.json"))
	if err != nil || len(states) != 1 {
		return fmt.Errorf("%d VMs: %v", len(states), err)
	}
	b, err := os.ReadFile(states[0])
	if err != nil {
		return err
	}
	var s struct {
		Phase string `json:"phase"`
		Ready bool   `json:"ready"`
	}
	if err := json.Unmarshal(b, &s); err != nil || s.Phase != "unhealthy" || s.Ready {
		return fmt.Errorf("%s %v", b, err)
	}
	return nil
}

// signal sends a signal to everything of a node.
func (m *member) signal(s syscall.Signal) {
	m.f.t.Helper()
	for _, pid := range m.processes("") {
		if err := syscall.Kill(pid, s); err != nil && !errors.Is(err, syscall.ESRCH) {
			m.f.t.Fatal(err)
		}
	}
}

// TestE2EFence: of a fenced instance one VM runs at any moment, by its console and
// not by what anybody says, with the lease that networks have, under real shims:
// when the holder's formd is killed, and when all of the holder's host stands
// still and goes on.
func TestE2EFence(t *testing.T) {
	if !virtual(t) {
		return
	}
	tickingQEMU(t)
	f := newFleet(t, 3, "--accel", "tcg", "--takeover-delay", "1s")
	me := f.via(f.nodes[0])
	me.must("kit", "init", "--yes", "--ticket", f.ticket)
	me.must("base", "import", required(t, "FORMATION_BASE"))
	app := t.TempDir()
	form := "NAME ticker\nNOCOPY\nPARTITION fence\nREPLICAS 3\nMEM 256\nDISK 1\nENTRYPOINT [\"/bin/true\"]\n"
	if err := os.WriteFile(filepath.Join(app, "Formfile"), []byte(form), 0o644); err != nil {
		t.Fatal(err)
	}
	w := f.watch()
	defer func() {
		if spans := w.stop(); !t.Failed() {
			f.apart(t, spans)
		}
	}()
	begun := time.Now()
	me.must("ship", last(me.must("pack", "build", app)))
	next := func(what string, since time.Time, not ...int) (node int) {
		t.Helper()
		f.eventually(4*time.Minute, what, func() error {
			if node = w.runner(f, since, not...); node < 0 {
				return errors.New("nothing ticks")
			}
			return nil
		})
		return node
	}
	first := next("the first VM to run", begun)

	f.nodes[first].kill()
	killed := time.Now()
	second := next("another VM to run after formd was killed", killed, first)
	if err := f.nodes[first].paused(); err != nil {
		t.Errorf("the VM of the killed formd does not say that it is paused: %v", err)
	}
	f.nodes[first].run()
	f.eventually(2*time.Minute, "the first VM to end", func() error { return f.nodes[first].idle() })

	asleep := f.nodes[second]
	asleep.signal(syscall.SIGSTOP)
	stopped := time.Now()
	third := next("another VM to run after the host stood still", stopped.Add(tickPause), second)
	asleep.signal(syscall.SIGCONT)
	woke := time.Now()
	f.eventually(2*time.Minute, "the VM of the host that stood still to end", asleep.idle)
	if !w.runs(third, woke) {
		t.Error("the third VM does not run on")
	}
	// What a guest does before its shim has seen what time it is.
	t.Logf("the VM of the host that stood still went on for %v", w.forgive(second, woke, woke.Add(pauseLimit)))
}

// pauseLimit is how long a VM may run after its host woke past the lease.
const pauseLimit = 2 * time.Second

// forgive drops the spans of a node that lie between two times, and gives their
// length.
func (w *watch) forgive(node int, from, to time.Time) (length time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.spans = slices.DeleteFunc(w.spans, func(s span) bool {
		in := s.node == node && s.to.After(from) && s.to.Before(to)
		if in {
			length += s.to.Sub(s.from)
		}
		return in
	})
	return length
}

// idle says which VMs a node still runs; nil: none.
func (m *member) idle() error {
	if left := m.processes("qemu-system"); len(left) > 0 {
		return fmt.Errorf("it runs %v", left)
	}
	return nil
}

// apart demands that no two nodes' spans overlap.
func (f *fleet) apart(t *testing.T, spans []span) {
	t.Helper()
	slices.SortFunc(spans, func(a, b span) int { return cmp.Compare(a.from.UnixNano(), b.from.UnixNano()) })
	for i, s := range spans {
		t.Logf("n%d ran for %.1f s", s.node+1, s.to.Sub(s.from).Seconds())
		if i == 0 {
			continue
		}
		before := spans[i-1]
		gap := s.from.Sub(before.to)
		if before.node != s.node {
			t.Logf("%.1f s after n%d", gap.Seconds(), before.node+1)
		}
		if before.node != s.node && gap < 0 {
			t.Errorf("n%d and n%d ran at once for %v", before.node+1, s.node+1, -gap)
		}
	}
}
