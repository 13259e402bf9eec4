package mesh

import "time"

// How many statements a host is heard at once, and in a second: each may cost a
// signature.
const (
	paceBurst = 4096
	paceRate  = 500
)

// pace bounds how fast the guest listens.
type pace struct {
	left float64
	last time.Time
}

func newPace(now time.Time) *pace { return &pace{paceBurst, now} }

// take takes n, and says how long to wait before they are used.
func (p *pace) take(n int, now time.Time) time.Duration {
	p.left = min(p.left+max(now.Sub(p.last).Seconds(), 0)*paceRate, paceBurst)
	p.last = now
	p.left -= float64(n)
	if p.left >= 0 {
		return 0
	}
	return time.Duration(-p.left / paceRate * float64(time.Second))
}
