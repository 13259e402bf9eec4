package boottime

import (
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Timer fires at a time since boot. One that passed while the machine slept fires
// as soon as it wakes, which Go's own timers do not.
type Timer struct {
	C <-chan struct{} // has an element after the timer has fired

	fd int
	f  *os.File
}

// NewTimer makes a timer that is not set. Close it.
func NewTimer() (*Timer, error) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_BOOTTIME, unix.TFD_CLOEXEC|unix.TFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("boottime: timer: %w", err)
	}
	c := make(chan struct{}, 1)
	t := &Timer{C: c, fd: fd, f: os.NewFile(uintptr(fd), "timer")}
	go func() {
		var count [8]byte
		for {
			if _, err := t.f.Read(count[:]); err != nil {
				return // closed
			}
			select {
			case c <- struct{}{}:
			default:
			}
		}
	}()
	return t, nil
}

// Set has the timer fire once at a time, at once when that has passed.
func (t *Timer) Set(at time.Duration) error {
	at = max(at, 1) // zero would take the timer back
	spec := unix.ItimerSpec{Value: unix.NsecToTimespec(int64(at))}
	if err := unix.TimerfdSettime(t.fd, unix.TFD_TIMER_ABSTIME, &spec, nil); err != nil {
		return fmt.Errorf("boottime: timer: %w", err)
	}
	return nil
}

// Close ends the timer.
func (t *Timer) Close() error { return t.f.Close() }
