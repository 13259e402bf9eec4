package agent

import (
	"time"

	"github.com/formthefog/formation/fogvm/boottime"
)

// Boottime is the time since boot, suspension included.
func Boottime() time.Duration { return boottime.Now() }
