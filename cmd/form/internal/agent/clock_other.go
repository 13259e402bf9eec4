//go:build !linux

package agent

import "time"

var begun = time.Now()

// Boottime is the time since this program began. Where the system's clock stands
// still while it sleeps, paths are proved anew a little later after that.
func Boottime() time.Duration { return time.Since(begun) }
