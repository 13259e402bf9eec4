package fogvm

import (
	"time"

	"github.com/formthefog/formation/fogvm/boottime"
)

// hold lets the VM run until then, and pauses it at that time as a shim would.
func (v *fakeVM) hold(until time.Duration) {
	v.set(func(s *Status) {
		s.Fenced, s.HeldUntil = true, max(s.HeldUntil, until)
		v.fence(s)
	})
}

// fence brings the status in line with the lease.
func (v *fakeVM) fence(s *Status) {
	if s.ShimPID == 0 {
		return // it has ended
	}
	left := s.HeldUntil - boottime.Now()
	switch paused := v.held.Phase != ""; {
	case left <= 0 && !paused:
		v.held = *s
		s.Phase, s.Ready, s.Reason = Unhealthy, false, pausedReason
	case left > 0 && paused:
		v.held.Fenced, v.held.HeldUntil = true, s.HeldUntil
		*s, v.held = v.held, Status{}
	}
	if left > 0 {
		time.AfterFunc(left, func() { v.set(v.fence) })
	}
}
