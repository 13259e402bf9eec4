package des

import "time"

// settling is how long a node that has come back, or was cut off, may take to be
// connected again: connections end after idleAfter, and attempts are up to half as much
// again as maxRedial apart.
const settling = 90 * time.Second

// CheckConnected holds that the nodes which are up are one graph by their connections,
// over which their meshes are: nobody is left out of what is said. Those count that have
// been at work for long enough, while nothing is split.
func (s *Sim) CheckConnected() {
	if s.net.split() || s.now-s.whole < settling {
		return
	}
	left := make([]int32, 0, len(s.nodes)) // to look from
	seen := make([]bool, len(s.nodes))
	for _, n := range s.nodes {
		if s.settled(n) {
			left, seen[n.i] = append(left, n.i), true
			break
		}
	}
	for len(left) > 0 {
		at := left[len(left)-1]
		left = left[:len(left)-1]
		for k := range s.mesh.Degree(at) {
			if o := s.mesh.Peer(at, k); !seen[o] && s.nodes[o].up {
				seen[o] = true
				left = append(left, o)
			}
		}
	}
	for _, n := range s.nodes {
		if !seen[n.i] && s.settled(n) {
			s.broke(Connected, "%v, up for %v, is connected with %d nodes, and none of them with the others", n, s.now-n.started, s.mesh.Degree(n.i))
			return
		}
	}
}

// settled says whether a node has been at work for so long that it is connected.
func (s *Sim) settled(n *node) bool {
	return n.up && !s.clogs.on(n.i) && s.now-max(n.started, n.awake, n.paused) > settling
}
