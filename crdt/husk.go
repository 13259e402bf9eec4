package crdt

import (
	"fmt"
	"slices"

	"github.com/formthefog/formation/crdt/stmt"
)

// husk is what a State keeps of a node that it has forgotten: which registers it
// held, and not what they say. By that it holds the same entries as its peers,
// and nobody sends again what is known.
type husk struct {
	node   rec // no bytes; zero: no register was held
	claims map[claimKey]rec
}

// latest is the highest number in h.
func (h *husk) latest() mark {
	last := mark{Epoch: h.node.epoch, Seq: h.node.seq}
	for _, c := range h.claims { // any order: the highest
		if !c.before(last) {
			last = mark{Epoch: c.epoch, Seq: c.seq}
		}
	}
	return last
}

// outlives says whether r shows that the node went on after it was forgotten.
func (h *husk) outlives(r rec) bool {
	last := h.latest()
	return !r.before(last) && (r.epoch != last.Epoch || r.seq != last.Seq)
}

func (r rec) bare() rec { r.raw = nil; return r }

// Forget takes a node's register and claims out of the View and keeps no more
// than their numbers. It is this State's own decision, for a node that has been
// dead for long; other States go on by theirs. A later statement of the node, or
// [State.Remember], ends it. It says whether anything changed.
func (s *State) Forget(node stmt.Key) bool {
	n, claims := s.nodes.get(node), s.byNode.get(node)
	if n == nil && len(claims) == 0 {
		return false
	}
	h := s.husks[node]
	if h == nil {
		h = &husk{claims: map[claimKey]rec{}}
		s.husks[node] = h
	}
	if n != nil {
		h.node = n.bare()
		s.nodes.delete(node)
	}
	for _, c := range slices.Clone(claims) {
		h.claims[c.key] = c.bare()
		s.dropClaim(c.key)
		s.ids.add(c.id) // still known
	}
	s.dirtyNode[node] = struct{}{}
	s.dirty = true
	s.changes++
	return true
}

// Remember ends what Forget did: what others hold of the node comes back by
// anti-entropy.
func (s *State) Remember(node stmt.Key) bool {
	h := s.husks[node]
	if h == nil {
		return false
	}
	s.ids.drop(h.node.id)
	for _, c := range h.claims { // any order: each by itself
		s.ids.drop(c.id)
	}
	delete(s.husks, node)
	s.changes++
	return true
}

// outlived lets a register of a forgotten node in when it is later than what is
// known of it, and says whether it was.
func (s *State) outlived(r rec) error {
	h := s.husks[r.author]
	if h != nil && !h.outlives(r) {
		return fmt.Errorf("%w: %s is forgotten", ErrStale, r.author)
	}
	return nil
}

// dropHusks forgets the husks of claims on deleted instances.
func (s *State) dropHusks(owner stmt.Key, dead []DocID) {
	if len(dead) == 0 {
		return
	}
	for _, h := range s.husks { // any order: each by itself
		for k, c := range h.claims { // any order: each by itself
			if k.owner == owner && slices.Contains(dead, k.doc) {
				s.ids.drop(c.id)
				delete(h.claims, k)
			}
		}
	}
}

// restore takes up a husk of an earlier run, unless the node has outlived it.
func (s *State) restore(node stmt.Key, h *husk) {
	if n := s.nodes.get(node); s.authorise(node, stmt.KindNode) != nil || n != nil && h.outlives(n.rec) {
		return
	}
	for _, c := range s.byNode.get(node) {
		if h.outlives(c.rec) {
			return
		}
	}
	s.Forget(node)
	now := s.husks[node]
	if now == nil {
		now = &husk{claims: map[claimKey]rec{}}
		s.husks[node] = now
	}
	if now.node.id == (stmt.ID{}) && h.node.id != (stmt.ID{}) {
		now.node = h.node
		s.ids.add(h.node.id)
	}
	for k, c := range h.claims { // any order: each by itself
		o := s.owners[k.owner]
		if _, have := now.claims[k]; !have && (o == nil || !o.dead[k.doc]) {
			now.claims[k] = c
			s.ids.add(c.id)
		}
	}
	s.changes++
}

func (s *State) indexHusks(x *indexer) {
	for key, h := range s.husks { // any order: the index is sorted
		if h.node.id != (stmt.ID{}) {
			x.add(subjectOf(stmt.KindNode, key[:]), classRegister, rankNode, h.node)
		}
		for k, c := range h.claims { // any order: the index is sorted
			x.add(claimSubject(k), classRegister, rankClaim, c)
		}
	}
}

func claimSubject(k claimKey) uint64 {
	return subjectOf(stmt.KindClaim, k.node[:], k.doc[:], k.owner[:], []byte{byte(k.slot)})
}
