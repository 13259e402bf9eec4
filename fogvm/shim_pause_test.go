package fogvm

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/formthefog/formation/fogvm/guest"
)

// What QEMU 7.2 says when a write finds no room.
const (
	noSpace = `{"timestamp":{"seconds":1,"microseconds":2},"event":"BLOCK_IO_ERROR","data":{"device":"","nospace":true,"node-name":"disk","reason":"No space left on device","operation":"write","action":"stop"}}`
	stopped = `{"timestamp":{"seconds":1,"microseconds":3},"event":"STOP"}`
	resumed = `{"timestamp":{"seconds":1,"microseconds":4},"event":"RESUME"}`
)

// TestPausedMachineIsResumed: a paused machine is tried again and again, and
// shows why it is paused until it has run on.
func TestPausedMachineIsResumed(t *testing.T) {
	ours, theirs := net.Pipe()
	defer theirs.Close()
	m := &machine{pauses: make(chan struct{}, 1), may: func() error { return nil }}
	m.qmp = newQMP(ours, m.onEvent)
	go m.qmp.run()
	say := func(line string) {
		if _, err := fmt.Fprintln(theirs, line); err != nil {
			t.Error(err)
		}
	}
	conts := 0
	go func() {
		scanner := bufio.NewScanner(theirs)
		for scanner.Scan() {
			conts++
			if want := fmt.Sprintf(`{"execute":"cont","id":%d}`, conts); scanner.Text() != want {
				t.Errorf("sent %s", scanner.Text())
			}
			if conts == 1 {
				say(`{"error":{"class":"GenericError","desc":"not now"},"id":1}`)
				continue
			}
			say(resumed)
			say(fmt.Sprintf(`{"return":{},"id":%d}`, conts))
			if conts < 4 { // still no room
				say(noSpace)
				say(stopped)
			}
		}
	}()
	s := &shim{dir: t.TempDir(), log: slog.New(slog.DiscardHandler), status: Status{Phase: Launching}}
	told := make(chan string, 100)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		m.keepRunning(ctx, 20*time.Millisecond, func(reason string) {
			s.showPause(reason)
			told <- reason
		})
	}()
	say(noSpace)
	say(stopped)
	const why = "the VM is paused: cannot write its disk on the host: No space left on device"
	var all []string
	for {
		var reason string
		select {
		case reason = <-told:
		case <-time.After(10 * time.Second):
			t.Fatalf("told only %q", all)
		}
		all = append(all, reason)
		st := s.snapshot()
		if reason == "" {
			if st.Phase != Launching || st.Reason != "" {
				t.Errorf("running again: %+v", st)
			}
			break
		}
		if !strings.HasPrefix(reason, why) {
			t.Errorf("told %q", reason)
		}
	}
	cancel()
	<-ended
	if conts != 4 || !strings.HasPrefix(all[0], why) || !strings.Contains(strings.Join(all, "|"), "not now") {
		t.Errorf("%d times set going, told %q", conts, all)
	}
}

func TestPauseIsShown(t *testing.T) {
	for _, c := range []struct {
		name   string
		before Status
		reason string
		want   Status
	}{
		{"a guest that serves", Status{Phase: Running, Ready: true}, "full", Status{Phase: Unhealthy, Reason: "full"}},
		{"a guest that boots", Status{Phase: Launching}, "full", Status{Phase: Unhealthy, Reason: "full"}},
		{"it boots on", Status{Phase: Unhealthy, Reason: "full"}, "", Status{Phase: Launching}},
		{"its agent will speak", Status{Phase: Unhealthy, Reason: "full", AgentAt: time.Unix(1, 0)}, "", Status{Phase: Unhealthy, Reason: "full", AgentAt: time.Unix(1, 0)}},
		{"it is stopping", Status{Phase: Stopping}, "full", Status{Phase: Stopping}},
	} {
		s := &shim{dir: t.TempDir(), log: slog.New(slog.DiscardHandler), status: c.before}
		if s.showPause(c.reason); s.snapshot() != c.want {
			t.Errorf("%s: got %+v", c.name, s.snapshot())
		}
	}
}

// TestVMOnAFullHost: a real VM whose disk the host has no room for waits until
// there is some, and loses nothing.
func TestVMOnAFullHost(t *testing.T) {
	r := qemuRig(t)
	if err := os.MkdirAll(r.cfg.Dir, 0o711); err != nil {
		t.Fatal(err)
	}
	small := filepath.Join(r.cfg.Dir, "web-0")
	if err := os.Mkdir(small, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", small, "tmpfs", 0, "size=48m,mode=0700"); err != nil {
		t.Skipf("no small file system: %v", err)
	}
	defer func() {
		if err := syscall.Unmount(small, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	}()
	// The folder must be of this VM, or the mount point would be deleted.
	if err := saveJSONFile(filepath.Join(small, specFile), shimSpec{VM: r.vm}); err != nil {
		t.Fatal(err)
	}
	m := r.manage(t)
	m.sync(t, r.vm)
	before := m.await(t, r, "web-0", "ready", ready)
	written := make(chan string, 1)
	go func() {
		out, code := m.exec(t, "web-0", guest.ExecRequest{Argv: []string{"sh", "-c", "head -c 96000000 /dev/urandom >/big && sync && wc -c </big"}})
		written <- fmt.Sprint(strings.TrimSpace(out), " ", code)
	}()
	s := m.await(t, r, "web-0", "paused", func(s Status) bool { return s.Phase == Unhealthy && strings.Contains(s.Reason, "No space left") })
	if s.Ready || s.PID != before.PID {
		t.Errorf("got %+v", s)
	}
	if err := syscall.Mount("tmpfs", small, "tmpfs", syscall.MS_REMOUNT, "size=256m"); err != nil {
		t.Fatal(err)
	}
	if s := m.await(t, r, "web-0", "ready again", ready); s.PID != before.PID {
		t.Errorf("rebooted: %+v, was %+v", s, before)
	}
	if got := <-written; got != "96000000 0" {
		t.Errorf("wrote %q", got)
	}
	r.vm.Run = false
	m.sync(t, r.vm)
	m.await(t, r, "web-0", "stopped", func(s Status) bool { return s.Phase == Stopped })
	if err := os.Remove(filepath.Join(small, diskFile)); err != nil {
		t.Error(err)
	}
}
