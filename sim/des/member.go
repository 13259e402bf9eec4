package des

import (
	"github.com/formthefog/formation/crdt/stmt"
)

// Absent has nodes not be there before they Join. It is for before Boot.
func (s *Sim) Absent(nodes ...int) {
	for _, i := range nodes {
		s.nodes[i].absent = true
	}
}

// Join has a node that was absent start for the first time: of the swarm it knows
// what its ticket and its admission say, and fetches the rest from its peers.
func (s *Sim) Join(i int) {
	n := s.nodes[i]
	if !n.absent {
		return
	}
	n.absent = false
	n.disk.base = s.admission(n)
	s.Start(i)
	s.Seen["join"]++
}

// admission are the statements that a newcomer is given: the root's, which make it
// a member and any owner welcome.
func (s *Sim) admission(n *node) []stmt.Verified {
	var out []stmt.Verified
	for _, v := range s.genesis {
		if st := v.Statement(); st.Author == s.root && (st.Kind != stmt.KindMember || s.of(v) == n.key || s.of(v) == stmt.Key{}) {
			out = append(out, v)
		}
	}
	return out
}

// of is whom a member statement of the beginning is of; the zero Key: of no node.
func (s *Sim) of(v stmt.Verified) stmt.Key { return s.members[v.Statement().ID] }

// Kill has a machine go away for good.
func (s *Sim) Kill(i int) {
	s.Crash(i, true)
	s.nodes[i].gone = true
	s.Seen["kill"]++
}

// Gone says whether a node is away for good, and Absent whether it has not joined.
func (s *Sim) Gone(i int) bool { return s.nodes[i].gone }

// Awaited says whether a node has not joined yet.
func (s *Sim) Awaited(i int) bool { return s.nodes[i].absent }
