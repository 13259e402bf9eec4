package boottime

import (
	"testing"
	"time"
)

func TestNow(t *testing.T) {
	for last := Now(); ; {
		now := Now()
		if now < last || now <= 0 {
			t.Fatalf("%v after %v", now, last)
		}
		if now > last {
			return
		}
	}
}

func TestVigil(t *testing.T) {
	now := time.Hour
	v := NewVigil(func() time.Duration { return now })
	for _, tc := range []struct {
		pass time.Duration
		woke time.Duration // after the hour
	}{
		{0, 0}, {time.Second, 0}, {Gap, 0}, // as long as a stall may be
		{Gap + 1, time.Second + 2*Gap + 1}, // a sleep
		{time.Second, time.Second + 2*Gap + 1},
		{8 * time.Hour, 8*time.Hour + 2*time.Second + 2*Gap + 1}, // another
		{0, 8*time.Hour + 2*time.Second + 2*Gap + 1},
	} {
		now += tc.pass
		before := v.woke
		want := tc.woke
		if want != 0 {
			want += time.Hour
		}
		if got := v.Woke(); got != want {
			t.Fatalf("after %v: woke at %v, want %v", tc.pass, got, want)
		}
		select {
		case <-v.Changed():
			if want == before {
				t.Errorf("after %v: a change that was none", tc.pass)
			}
		default:
			if want != before {
				t.Errorf("after %v: no change", tc.pass)
			}
		}
	}
}
