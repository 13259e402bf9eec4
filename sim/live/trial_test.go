package live

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/formthefog/formation/sim/gossip"
	"github.com/formthefog/formation/sim/regions"
)

// The model of gossipsub and real hosts agree, over the same connections and delays
// and with the same messages, within 15 %: in how long messages take to a node, and in
// how often each node sends one.
func TestModelOfGossipAgrees(t *testing.T) {
	if raced {
		t.Skip("its figures are the same without the race detector, in a tenth of the time")
	}
	const n, messages, tolerance = 32, 160, 0.15
	for name, loss := range map[string]float64{"no loss": 0, "2 % loss": 0.02} {
		t.Run(name, func(t *testing.T) {
			rng := rand.New(rand.NewPCG(9, 9))
			at := make([]int, n)
			for i := range at {
				at[i] = regions.Pick(rng.Float64())
			}
			want := gossip.Trial{
				Params: gossip.Production(), Nodes: n, Jitter: regions.Jitter, Loss: loss, Seed: 9,
				Delay:  func(a, b int32) time.Duration { return regions.RoundTrip(at[a], at[b]) / 2 },
				Settle: 70 * time.Second, Rest: 5 * time.Second,
			}
			want.Score = func(a, b int32) float64 { return gossip.Nearness(want.Delay(a, b)) }
			for i := range int32(n) {
				for _, o := range rng.Perm(int(i))[:min(8, int(i))] {
					want.Edges = append(want.Edges, [2]int32{i, int32(o)})
				}
			}
			for i := range messages {
				want.Publish = append(want.Publish, gossip.Publication{At: time.Duration(i) * time.Second / 4, Node: rng.Int32N(n), Size: 500})
			}
			model, real := want.Run(), Trial(t, want)
			ms, rs := model.Spread(), real.Spread()
			sends := func(r gossip.Result) float64 { return r.PerNode(gossip.Payload) }
			t.Logf("model %+v, sends %.2f, IHAVE %.2f, degree %.2f", ms, sends(model), model.PerNode(gossip.IHave), model.Degree)
			t.Logf("hosts %+v, sends %.2f, IHAVE %.2f, degree %.2f", rs, sends(real), real.PerNode(gossip.IHave), real.Degree)
			for _, c := range []struct {
				what        string
				model, real float64
			}{
				// Until all have it is a matter of one or two nodes of one mesh, which hosts draw
				// anew in every run: it is printed above.
				{"p50 to one", ms.One50.Seconds(), rs.One50.Seconds()}, {"p99 to one", ms.One99.Seconds(), rs.One99.Seconds()},
				{"sends", sends(model), sends(real)},
			} {
				if math.Abs(c.model-c.real) > tolerance*c.real {
					t.Errorf("%s: the model says %.4g, hosts %.4g", c.what, c.model, c.real)
				}
			}
			if ms.Missing+rs.Missing > 0 {
				t.Errorf("missing: %d by the model, %d by hosts", ms.Missing, rs.Missing)
			}
		})
	}
}
