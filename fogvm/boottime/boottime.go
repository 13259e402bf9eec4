// Package boottime is the clock by which a node waits: time since the machine
// started, suspension included (CLOCK_BOOTTIME). Leases, timeouts and delays are
// durations of it. The wall clock, which people and time servers set, decides
// none of them; and Go's monotonic clock stands still while a machine sleeps.
//
// Not guaranteed: that times of two boots, or of two machines, compare; and that
// a virtual machine's clock runs on while its host holds it.
package boottime

import (
	"time"

	"golang.org/x/sys/unix"
)

// Now is the time since boot. It never goes back.
func Now() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic("boottime: " + err.Error()) // every kernel since 2.6.39 has it
	}
	return time.Duration(ts.Nano())
}
