package sim

import (
	"github.com/formthefog/formation/sim/des"
	"github.com/formthefog/formation/sim/record"
)

// metrics are the figures of a run so far.
func (o *observer) metrics() record.Metrics {
	r, total := o.run, o.sent()
	wanted := map[record.Slot]bool{}
	for owner := range r.Owners() {
		for _, s := range r.Instances(owner) {
			for slot := range s.Replicas {
				wanted[record.Slot{Instance: s.ID, Slot: slot}] = true
			}
		}
	}
	out := o.Metrics(record.In(r.Now()), r.Nodes(), classes(), total, len(r.Spreading()), func(s record.Slot) bool { return wanted[s] })
	out.FalseDeaths = r.FalseDeaths()
	out.Takeovers, out.WrongTakeovers = r.Takeovers()
	sent := float64(total[des.Gossip].Messages)
	if n := out.Convergence.Count + out.Overtaken + out.Open; n > 0 {
		out.Sends = record.Round(sent / float64(n*r.Nodes()))
	}
	if first := float64(r.Firsts()); first > 0 {
		out.Duplicates = record.Round(max(0, sent-first) / first)
	}
	return out
}
