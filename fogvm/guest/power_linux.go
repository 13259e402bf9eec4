package guest

import (
	"context"
	"encoding/binary"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// signals carries out what a classic init does at signals. The others are
// caught too: Go's default would end process 1, and the kernel with it.
func (a *agent) signals(ctx context.Context) {
	got := make(chan os.Signal, 4)
	signal.Notify(got, syscall.SIGINT, syscall.SIGTERM, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGPWR,
		syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGALRM, syscall.SIGVTALRM, syscall.SIGXCPU, syscall.SIGXFSZ, syscall.SIGIO)
	defer signal.Stop(got)
	for {
		select {
		case <-ctx.Done():
			return
		case s := <-got:
			switch s {
			case syscall.SIGINT, syscall.SIGTERM: // ctrl-alt-del, `kill 1`
				a.requestPower(Power{Reboot: true})
			case syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGPWR: // halt, power off
				a.requestPower(Power{})
			}
		}
	}
}

// watchPowerButton calls pressed at each press of the ACPI power button, which
// the kernel shows as an input device (modules button and evdev). Without the
// device the host's control message is the only orderly way to stop.
func watchPowerButton(ctx context.Context, pressed func()) {
	names, err := filepath.Glob("/sys/class/input/event*/device/name")
	if err != nil {
		return
	}
	for _, n := range names {
		data, err := os.ReadFile(n)
		if err != nil || strings.TrimSpace(string(data)) != "Power Button" {
			continue
		}
		f, err := os.Open("/dev/input/" + filepath.Base(filepath.Dir(filepath.Dir(n))))
		if err != nil {
			continue
		}
		context.AfterFunc(ctx, func() { f.Close() })
		go readPowerKey(f, pressed)
	}
}

// readPowerKey decodes struct input_event (linux/input.h) on 64-bit: 16 bytes
// of time, type, code, value.
func readPowerKey(f *os.File, pressed func()) {
	const (
		evKey    = 1
		keyPower = 116
	)
	var event [24]byte
	for {
		if _, err := io.ReadFull(f, event[:]); err != nil {
			return
		}
		if binary.NativeEndian.Uint16(event[16:]) == evKey && binary.NativeEndian.Uint16(event[18:]) == keyPower &&
			binary.NativeEndian.Uint32(event[20:]) == 1 {
			pressed()
		}
	}
}

// endAllProcesses ends everything but process 1 (which signals sent to -1
// spare): SIGTERM, and SIGKILL when something is left after the grace time.
func endAllProcesses(grace time.Duration) {
	_ = unix.Kill(-1, unix.SIGTERM)
	if waitNoChildren(grace) {
		return
	}
	_ = unix.Kill(-1, unix.SIGKILL)
	waitNoChildren(time.Second)
}

// waitNoChildren waits until process 1 has no children: everything else in the
// guest is its descendant, and orphans become its children.
func waitNoChildren(limit time.Duration) bool {
	deadline := time.Now().Add(limit)
	for time.Now().Before(deadline) {
		var info unix.Siginfo
		// WNOWAIT leaves the zombie to the reaper.
		err := unix.Waitid(unix.P_ALL, 0, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
		if err == unix.ECHILD {
			return true
		}
		time.Sleep(10 * time.Millisecond)
	}
	return false
}

// powerOff ends the machine; it only returns when the kernel refuses.
func powerOff(p Power) error {
	unix.Sync()
	how := unix.LINUX_REBOOT_CMD_POWER_OFF
	if p.Reboot {
		how = unix.LINUX_REBOOT_CMD_RESTART
	}
	return unix.Reboot(how)
}

// stepClock corrects a clock that is off by more than scheduling noise.
func stepClock(now time.Time) error {
	if off := time.Since(now); off > -500*time.Millisecond && off < 500*time.Millisecond {
		return nil
	}
	tv := syscall.NsecToTimeval(now.UnixNano())
	return syscall.Settimeofday(&tv)
}

func kernelRelease() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Release[:])
}

func uptimeMillis() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0
	}
	return ts.Nano() / int64(time.Millisecond)
}
