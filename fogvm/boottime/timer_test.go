package boottime

import (
	"testing"
	"time"
)

// A timer never fires early, fires at once for what has passed, and can be set
// anew before and after.
func TestTimer(t *testing.T) {
	timer, err := NewTimer()
	if err != nil {
		t.Fatal(err)
	}
	fire := func(at time.Duration) {
		t.Helper()
		if err := timer.Set(at); err != nil {
			t.Fatal(err)
		}
		select {
		case <-timer.C:
			if now := Now(); now < at {
				t.Errorf("fired at %v, set for %v", now, at)
			}
		case <-time.After(30 * time.Second):
			t.Fatalf("set for %v, not fired by %v", at, Now())
		}
	}
	fire(Now() + 30*time.Millisecond)
	fire(Now() - time.Second)
	fire(0)
	if err := timer.Set(Now() + time.Hour); err != nil {
		t.Fatal(err)
	}
	fire(Now() + 10*time.Millisecond)
	if err := timer.Close(); err != nil {
		t.Fatal(err)
	}
	if err := timer.Set(1); err == nil {
		t.Error("a closed timer can be set")
	}
}
