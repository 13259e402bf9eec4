package fogvm

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/formthefog/formation/fogvm/boottime"
)

// renewerVerb makes this test binary a daemon that starts a shim and renews its
// VM's lease until it is killed.
const renewerVerb = "fogvm-test-renewer"

// shortLease is what it renews.
const shortLease = 700 * time.Millisecond

func runRenewer(dir string) error {
	ctx := context.Background()
	q := &qemuHypervisor{cfg: Config{ShimCommand: []string{os.Args[0], shimVerb}}}
	if err := q.launch(ctx, dir); err != nil {
		return err
	}
	inst := q.instance(dir, shimSpec{})
	for tick := time.Tick(shortLease / 3); ; <-tick {
		if err := inst.tell(ctx, shimRequest{Op: opHold, Until: boottime.Now() + shortLease}); err != nil {
			return err
		}
	}
}

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

// ticker is a VM of nothing but tickingROM, in a real QEMU under a real shim.
type ticker struct {
	t    *testing.T
	dir  string
	inst *shimInstance
}

// newTicker prepares the VM's directory. Its QEMU is a script that takes from the
// real command line what the shim needs: the monitor, the console and -S.
func newTicker(t *testing.T) *ticker {
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		t.Skip("no qemu-system-x86_64 on this machine")
	}
	dir := t.TempDir()
	file := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o755); err != nil {
			t.Fatal(err)
		}
		return path
	}
	rom := file("rom", string(tickingROM()))
	script := file("qemu", `#!/bin/sh
s=
for a in "$@"; do [ "$a" = -S ] && s=-S; done
exec qemu-system-x86_64 -name guest=web-0 -nodefaults -no-user-config -display none -machine q35 -accel tcg -m 16M -bios `+rom+` \
	-chardev socket,id=qmp,fd=3 -mon chardev=qmp,mode=control -chardev socket,id=console,fd=4 -serial chardev:console $s
`)
	vm := VM{ID: "web-0", Incarnation: "1", Run: true, Fenced: true, Kernel: rom, Lowers: []string{rom}, VCPU: 1, MemoryBytes: MinMemory, DiskBytes: MinDisk}
	file(diskFile, "")
	if err := saveJSONFile(filepath.Join(dir, specFile), shimSpec{VM: vm, QEMU: script, Accel: "tcg", Initramfs: rom, StopTimeout: time.Second}); err != nil {
		t.Fatal(err)
	}
	q := &qemuHypervisor{cfg: Config{ShimCommand: []string{os.Args[0], shimVerb}}, log: testLogger(t)}
	k := &ticker{t: t, dir: dir, inst: q.instance(dir, shimSpec{})}
	t.Cleanup(func() {
		if t.Failed() {
			log, _ := os.ReadFile(filepath.Join(dir, shimLog)) // may not be there
			t.Logf("shim.log:\n%s", log)
		}
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		if err := k.inst.stop(ctx, true); err != nil {
			t.Errorf("stop: %v", err)
		}
	})
	return k
}

// ticks is how often the VM has ticked.
func (k *ticker) ticks() int {
	b, err := os.ReadFile(filepath.Join(k.dir, consoleLog))
	if err != nil && !os.IsNotExist(err) {
		k.t.Fatal(err)
	}
	return strings.Count(string(b), ".")
}

func (k *ticker) status() Status {
	var s Status
	if err := readJSONFile(filepath.Join(k.dir, stateFile), &s); err != nil && !os.IsNotExist(err) {
		k.t.Fatal(err)
	}
	return s
}

// goesOn waits until the VM ticks.
func (k *ticker) goesOn() {
	k.t.Helper()
	n := k.ticks()
	eventually(k.t, 20*time.Second, "the VM runs", func() bool { return k.ticks() > n })
}

// endsBy waits until the VM has not ticked for a while, and demands that its last
// tick came by then, give or take what pausing may take.
func (k *ticker) endsBy(until time.Duration) {
	k.t.Helper()
	n, last := k.ticks(), boottime.Now()
	eventually(k.t, 30*time.Second, "the VM pauses", func() bool {
		now := boottime.Now()
		if m := k.ticks(); m > n {
			n, last = m, now
		}
		return now > until && now-last > time.Second
	})
	k.t.Logf("the last tick was seen %v after the lease's end", last-until)
	if last > until+pauseLimit {
		k.t.Errorf("the VM ran until %v, its lease until %v", last, until)
	}
	if s := k.status(); s.Phase != Unhealthy || s.Ready || s.Reason != pausedReason || !s.Fenced {
		k.t.Errorf("it is paused, and shows %+v", s)
	}
}

// TestLeaseIsEnforced: a real VM starts paused, runs while its lease lasts, pauses
// at its end, goes on when it is renewed, and pauses also when the host has slept
// past it.
func TestLeaseIsEnforced(t *testing.T) {
	k := newTicker(t)
	ctx := context.Background()
	if err := k.inst.q.launch(ctx, k.dir); err != nil {
		t.Fatal(err)
	}
	hold := func(d time.Duration) time.Duration {
		t.Helper()
		until := boottime.Now() + d
		if err := k.inst.tell(ctx, shimRequest{Op: opHold, Until: until}); err != nil {
			t.Fatal(err)
		}
		return until
	}
	eventually(t, 20*time.Second, "a reason", func() bool { return k.status().Reason == pausedReason })
	if n := k.ticks(); n != 0 {
		t.Errorf("it ticked %d times without a lease", n)
	}
	until := hold(2 * time.Second)
	k.goesOn()
	if s := k.status(); s.HeldUntil != until || s.Reason != "" {
		t.Errorf("it runs, and shows %+v", s)
	}
	k.endsBy(until)
	hold(-time.Minute)
	if k.status().HeldUntil != until {
		t.Error("an earlier lease has changed the end")
	}
	until = hold(2 * time.Second)
	k.goesOn()

	// Asleep: nothing of it executes, and time passes.
	s := k.status()
	for _, pid := range []int{s.ShimPID, s.PID} {
		if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, time.Minute, "time", func() bool { return boottime.Now() > until+time.Second })
	woke := boottime.Now()
	for _, pid := range []int{s.PID, s.ShimPID} {
		if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
	}
	k.endsBy(woke)
	hold(10 * time.Second)
	k.goesOn()
}

// TestLeaseOutlivesTheDaemon: the daemon that renews the lease is killed, and its
// VM pauses all the same.
func TestLeaseOutlivesTheDaemon(t *testing.T) {
	k := newTicker(t)
	daemon := exec.Command(os.Args[0], renewerVerb, k.dir)
	var said strings.Builder
	daemon.Stderr = &said
	if err := daemon.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, 30*time.Second, fmt.Sprint("the VM runs ", &said), func() bool { return k.ticks() > 5 })
	before := k.status().HeldUntil
	eventually(t, 30*time.Second, "the lease is renewed", func() bool { return k.status().HeldUntil > before })
	k.goesOn()
	if err := daemon.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = daemon.Wait() // killed, as it was meant to be
	k.endsBy(k.status().HeldUntil)
	if err := k.inst.tell(context.Background(), shimRequest{Op: opHold, Until: boottime.Now() + 10*time.Second}); err != nil {
		t.Fatal(err)
	}
	k.goesOn()
}

// A machine that QEMU does not pause is killed.
func TestUnpausableMachineIsKilled(t *testing.T) {
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ours, theirs := net.Pipe() // a monitor that reads nothing
	defer theirs.Close()
	s := &shim{dir: t.TempDir(), log: testLogger(t)}
	s.fence.news = make(chan struct{}, 1)
	m := &machine{pid: cmd.Process.Pid, greeted: make(chan struct{}), may: s.fence.check}
	m.qmp = newQMP(ours, m.onEvent)
	close(m.greeted)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		s.guard(ctx, m)
	}()
	start := time.Now()
	if err := s.hold(boottime.Now() + 100*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("ended: %v", err)
	}
	if why := m.killReason(); !strings.Contains(why, "could not be paused") {
		t.Errorf("reason %q", why)
	}
	if took := time.Since(start); took < pauseLimit {
		t.Errorf("killed after %v", took)
	}
	cancel()
	<-ended
}

// The fake driver keeps leases as the real one does.
func TestFakeKeepsLeases(t *testing.T) {
	r := fakeRig(t)
	r.vm.Fenced = true
	m := r.manage(t)
	m.sync(t, r.vm)
	paused := func(s Status) bool { return s.Fenced && !s.Ready && s.Reason == pausedReason }
	m.await(t, r, "web-0", "paused", paused)
	until := boottime.Now() + 300*time.Millisecond
	if err := m.RunUntil(t.Context(), "web-0", until); err != nil {
		t.Fatal(err)
	}
	m.await(t, r, "web-0", "ready", func(s Status) bool { return ready(s) && s.HeldUntil == until })
	m.await(t, r, "web-0", "paused again", paused)
	if now := boottime.Now(); now < until {
		t.Errorf("paused %v early", until-now)
	}
	if err := m.RunUntil(t.Context(), "web-0", boottime.Now()+time.Minute); err != nil {
		t.Fatal(err)
	}
	m.await(t, r, "web-0", "ready again", ready)
	if err := m.RunUntil(t.Context(), "nobody-0", 1); err == nil {
		t.Error("a VM that is not there can be let run")
	}
}
