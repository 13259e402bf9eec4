package guest

import "time"

const (
	firstBackoff = time.Second
	maxBackoff   = 30 * time.Second
	// A run this long counts as a success for the back-off.
	steadyRun = time.Minute
)

// afterExit decides what follows an exit: whether to start again, and after
// which delay. failures counts the exits in a row before steadyRun, this one
// included.
func afterExit(policy string, code int, failures int) (again bool, delay time.Duration) {
	switch policy {
	case RestartNever:
		return false, 0
	case RestartOnFailure:
		if code == 0 {
			return false, 0
		}
	}
	delay = firstBackoff
	for i := 1; i < failures && delay < maxBackoff; i++ {
		delay *= 2
	}
	return true, min(delay, maxBackoff)
}
