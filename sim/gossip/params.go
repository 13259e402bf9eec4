package gossip

import "time"

// Params are those of a router, as go-libp2p-pubsub has them.
type Params struct {
	D, Dlo, Dhi, Dscore, Dout int
	Dlazy                     int
	Factor                    float64 // of the peers outside of the mesh, who are told what there is
	History, Gossip           int     // heartbeats for which a message is kept, and told of
	Heartbeat, First          time.Duration
	Backoff                   time.Duration // after a PRUNE
	Retransmit                int           // of one message to one peer who asks
	IDontWant                 int           // bytes from which on others are told that a message is here; 0: never
	FloodPublish              bool          // to all peers, not to the mesh only
	// Every Ticks heartbeats Grafts peers that score higher than the median of the
	// mesh are taken in if that is below Threshold.
	Opportunistic struct {
		Ticks, Grafts int
		Threshold     float64
	}
}

// Production is what formd's nodes are configured with (package p2p).
func Production() Params {
	p := Params{
		D: 6, Dlo: 5, Dhi: 12, Dscore: 4, Dout: 2, Dlazy: 6, Factor: 0.25, History: 5, Gossip: 3,
		Heartbeat: time.Second, First: 100 * time.Millisecond, Backoff: time.Minute,
		Retransmit: 3, IDontWant: 1024, FloodPublish: true,
	}
	p.Opportunistic.Ticks, p.Opportunistic.Grafts, p.Opportunistic.Threshold = 60, 2, 0.9
	return p
}

// Nearness is what formd's nodes score a peer by that has done nothing wrong: how far
// it is, by a round trip of at least twice oneWay (package p2p).
func Nearness(oneWay time.Duration) float64 {
	return max(0, 1-float64(2*oneWay)/float64(200*time.Millisecond))
}
