package des

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

// A clock never goes back, runs at its rate, and shows a time first when it says.
func TestClock(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := clock{
			began: time.Duration(rapid.Int64Range(0, int64(time.Hour)).Draw(t, "began")),
			shows: time.Duration(rapid.Int64Range(0, int64(time.Hour)).Draw(t, "shows")),
			ppm:   rapid.Int64Range(-200_000, 200_000).Draw(t, "ppm"),
		}
		now := c.began + time.Duration(rapid.Int64Range(0, int64(100*time.Hour)).Draw(t, "for"))
		next := now + time.Duration(rapid.Int64Range(0, int64(time.Second)).Draw(t, "step"))
		if c.at(next) < c.at(now) {
			t.Fatalf("%+v goes back: %v at %v, %v at %v", c, c.at(now), now, c.at(next), next)
		}
		want := c.shows + time.Duration(float64(now-c.began)*(1+float64(c.ppm)/million))
		if d := (c.at(now) - want).Abs(); d > time.Microsecond {
			t.Fatalf("%+v shows %v at %v, %v off", c, c.at(now), now, d)
		}
		shows := c.at(now)
		when := c.when(shows)
		if c.at(when) < shows || when > c.began && c.at(when-1) >= shows {
			t.Fatalf("%+v shows %v first at %v, where it shows %v; a moment before it shows %v", c, shows, when, c.at(when), c.at(when-1))
		}
	})
}
