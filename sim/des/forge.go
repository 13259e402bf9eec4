package des

import (
	"bytes"
	"math/rand/v2"
	"time"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/stmt"
)

// forged is a message that one node sends as what another said; its signature is not
// the author's.
type forged struct{ raw []byte }

// Forge has a liar send those it gossips with a statement as of an honest node: a
// true one of another, with the author's key in it changed to that of the victim.
func (s *Sim) Forge(i int, rng *rand.Rand) {
	n := s.nodes[i]
	log := n.disk.log()
	honest := s.Honest()
	if len(log) == 0 || len(honest) == 0 || !n.up {
		return
	}
	victim := s.nodes[honest[rng.IntN(len(honest))]].key
	from := rng.IntN(len(log))
	for k := range log {
		st := log[(from+k)%len(log)].Statement()
		if st.Author == victim || st.Author == s.root {
			continue
		}
		raw := bytes.Replace(st.Raw, st.Author[:], victim[:], 1)
		for _, o := range s.mesh.Peers(n.i) {
			s.send(Gossip, len(raw), event{kind: evGossip, node: o, from: n.i, a: 1, load: forged{raw}})
		}
		s.Seen["a node forged"]++
		return
	}
}

// suspect receives a forged statement: nothing of it may be believed.
func (n *node) suspect(f forged) {
	if v, err := stmt.Check(f.raw, n.sim.network); err == nil || n.sim.cfg.Mutant == SignaturesUnchecked {
		n.sim.broke(Refused, "%v: believes a forged statement (%v)", n, v.Statement())
	}
	n.sim.Seen["a forged statement was refused"]++
}

// Jump moves the clock that people read, of a machine.
func (s *Sim) Jump(i int, by time.Duration) {
	s.nodes[i].jumped += by
	s.Seen["clock jump"]++
}

// reads is what the clock that people read shows at a virtual time.
func (n *node) reads(at time.Duration) int64 { return wall + int64((at+n.jumped)/time.Second) }

// EquivocateOwner has an owner say two things of one instance by one number of one
// device, to two nodes.
func (s *Sim) EquivocateOwner(ownerNo, i, j int, id string) {
	o := s.owner(ownerNo)
	twin, err := o.twin(s, ownerNo)
	if err != nil {
		s.violate("owner: %v", err)
		return
	}
	for k, a := range []*crdt.Author{o.author, twin} {
		raws, err := a.Set(id, func(spec *crdt.Spec) { spec.Restart += uint64(k) + 1 })
		if err != nil {
			s.violate("owner, who equivocates: %v", err)
			return
		}
		s.submit([]int{i, j}[k], raws, "", nil)
	}
	s.Seen["an owner equivocated"]++
}

// twin is a second author of an owner, with the device of the first.
func (o *owner) twin(s *Sim, i int) (*crdt.Author, error) {
	a, err := crdt.NewAuthorFrom(o.key, s.network, o.raws, authorDraws(s, i))
	if err == nil {
		a.Now = o.author.Now
	}
	return a, err
}
