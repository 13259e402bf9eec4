//go:build e2e

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/formthefog/formation/sim/proc"
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

// watch sees which nodes' VMs tick, by what their shims write to the console's
// log.
type watch struct {
	proc.Ticks
	end   chan struct{}
	ended chan struct{}
}

const (
	tickEvery = 20 * time.Millisecond   // how often watch looks
	tickPause = 1500 * time.Millisecond // two ticks of one run are not further apart
	ticker    = "ticker"                // the one instance
)

func (f *fleet) watch() *watch {
	w := &watch{Ticks: proc.Ticks{Pause: tickPause}, end: make(chan struct{}), ended: make(chan struct{})}
	tick := time.NewTicker(tickEvery)
	go func() {
		defer close(w.ended)
		defer tick.Stop()
		size, looked := make([]int64, len(f.nodes)), time.Now()
		for {
			for i, m := range f.nodes {
				if n := m.console(); n != size[i] {
					if n > 0 {
						w.Ticked(i, ticker, 0, looked, time.Now())
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

// runner is whose VM, of those not left out, has ticked since then; -1: nobody's.
func (w *watch) runner(f *fleet, then time.Time, not ...int) int {
	for i := range f.nodes {
		if !slices.Contains(not, i) && w.Since(i, then) {
			return i
		}
	}
	return -1
}

func (w *watch) stop() {
	close(w.end)
	<-w.ended
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
		if w.stop(); !t.Failed() {
			w.apart(t)
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
	if !w.Since(third, woke) {
		t.Error("the third VM does not run on")
	}
	// What a guest does before its shim has seen what time it is.
	t.Logf("the VM of the host that stood still went on for %v", w.Forgive(second, woke, woke.Add(pauseLimit)))
}

// pauseLimit is how long a VM may run after its host woke past the lease.
const pauseLimit = 2 * time.Second

// idle says which VMs a node still runs; nil: none.
func (m *member) idle() error {
	if left := m.processes("qemu-system"); len(left) > 0 {
		return fmt.Errorf("it runs %v", left)
	}
	return nil
}

// apart demands that no two nodes' VMs ran at once.
func (w *watch) apart(t *testing.T) {
	t.Helper()
	spans := w.Spans(ticker)
	for i, s := range spans {
		t.Logf("n%d ran for %.1f s", s.Node+1, s.To.Sub(s.From).Seconds())
		if i > 0 && spans[i-1].Node != s.Node {
			t.Logf("%.1f s after n%d", s.From.Sub(spans[i-1].To).Seconds(), spans[i-1].Node+1)
		}
	}
	if twice := w.Twice(ticker); len(twice) > 0 || len(spans) < 3 {
		t.Errorf("%d times in which it ran, and at once: %v", len(spans), twice)
	}
}
