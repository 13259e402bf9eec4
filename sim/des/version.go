package des

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"maps"
	"slices"
	"time"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/stmt"
	"github.com/formthefog/formation/sim/chance"
)

// Daemons are of two versions, and owners' tools of two. What the later one of each
// says the earlier one does not know: further fields in the registers of nodes and in
// their claims, and a further key of an instance.

// furtherKey is the key that the later versions say more under.
const furtherKey = "tpm"

// versions is what was said under it and must be held by all.
type versions struct {
	spec map[string][]byte // by owners of an instance, the last
	regs map[registerOf]stmt.ID
}

// registerOf names a register: that of a node, or with a slot one of its claims.
type registerOf struct {
	node int32
	claimed
}

// claimed is what a claim is on; the zero one: on nothing.
type claimed struct {
	instance crdt.DocID
	slot     uint64
}

func (r registerOf) compare(o registerOf) int {
	return cmp.Or(cmp.Compare(r.node, o.node), bytes.Compare(r.instance[:], o.instance[:]), cmp.Compare(r.slot, o.slot))
}

// Upgrade restarts the daemon of a node as the other version, after d.
func (s *Sim) Upgrade(i int, d time.Duration) {
	s.Crash(i, false)
	s.nodes[i].later = !s.nodes[i].later
	s.Do(d, func() { s.Start(i) })
	s.Seen["upgrade"]++
}

// versionName is what a node says of its daemon.
func (n *node) versionName() string {
	if n.later {
		return "sim-later"
	}
	return "sim"
}

// registers begins a run of n's registers, in the version that its daemon is of.
func (n *node) registers(stored uint64) *crdt.Registers {
	r := crdt.NewRegisters(n.priv, n.sim.network, stored)
	if n.later {
		life := chance.Draw(n.sim.cfg.Seed, useVersion, uint64(n.i), uint64(n.life))
		r.Further(func(_ stmt.Kind, body []byte) []byte { return n.sim.further(body, life) })
	}
	return r
}

// further adds a field to the body of a statement.
func (s *Sim) further(body []byte, what uint64) []byte {
	type field struct{ key, value []byte }
	value := stmt.AppendMap(nil, 1)
	value = stmt.AppendBytes(stmt.AppendText(value, "quote"), binary.BigEndian.AppendUint64(nil, what))
	fields := []field{{[]byte(furtherKey), value}}
	err := stmt.Fields(body, func(k, v []byte) error {
		fields = append(fields, field{k, v})
		return nil
	})
	if err != nil {
		s.violate("a body that a later version says more in: %v", err)
	}
	slices.SortFunc(fields, func(a, b field) int { return cmp.Or(cmp.Compare(len(a.key), len(b.key)), bytes.Compare(a.key, b.key)) })
	out := stmt.AppendMap(nil, len(fields))
	for _, f := range fields {
		out = append(stmt.AppendText(out, string(f.key)), f.value...)
	}
	return out
}

// Extend has an owner say of an instance, at a node and with a later tool, what this
// version does not know.
func (s *Sim) Extend(ownerNo, i int, id string) {
	s.Seen["an owner said what this version does not know"]++
	value := stmt.AppendUint(nil, uint64(s.Seen["an owner said what this version does not know"]))
	if s.versions.spec == nil {
		s.versions.spec = map[string][]byte{}
	}
	s.versions.spec[id] = value
	s.change(ownerNo, i, id, func(spec *crdt.Spec) {
		if spec.Unknown == nil {
			spec.Unknown = map[string][]byte{}
		}
		spec.Unknown[furtherKey] = value
	})
}

// byThisVersion is a change as a tool of this version makes it.
func (s *Sim) byThisVersion(change func(*crdt.Spec)) func(*crdt.Spec) {
	return func(spec *crdt.Spec) {
		before := spec.Unknown
		change(spec)
		if _, more := before[furtherKey]; more {
			s.Seen["an owner changed an instance that has what this version does not know"]++
		}
		if s.cfg.Mutant == StripsUnknown && len(before) == len(spec.Unknown) {
			spec.Unknown = nil
		}
	}
}

// published notes what a later version has said of itself that is on disk now.
func (n *node) published(vs []stmt.Verified) {
	v := &n.sim.versions
	for _, one := range vs {
		st := one.Statement()
		if st.Author != n.key || n.liar {
			continue
		}
		of, further, gone := n.readFurther(st)
		if v.regs == nil {
			v.regs = map[registerOf]stmt.ID{}
		}
		if delete(v.regs, of); further && !gone {
			v.regs[of] = st.ID
			n.sim.Seen["a node said what the earlier version does not know"]++
		}
	}
}

// readFurther says of which register a statement is, whether it says more than this
// version knows, and whether it takes a claim back.
func (n *node) readFurther(st *stmt.Statement) (of registerOf, further, gone bool) {
	of.node = n.i
	err := stmt.Fields(st.Body, func(k, v []byte) (err error) {
		switch string(k) {
		case furtherKey:
			further = true
		case "gone":
			gone = true
		case "slot":
			of.slot, err = stmt.Uint(v)
		case "inst":
			var id []byte
			if id, err = stmt.Bytes(v); err == nil {
				copy(of.instance[:], id)
			}
		}
		return err
	})
	if err != nil {
		n.sim.violate("%v: its own %s statement: %v", n, st.Kind, err)
	}
	return of, further, gone
}

// known is a batch without what a node of the earlier version does not know, when the
// mutant is that it does not take that in.
func (n *node) known(b batch) batch {
	if n.sim.cfg.Mutant != RefusesUnknown || n.later {
		return b
	}
	return newBatch(slices.DeleteFunc(slices.Clone(b.vs), func(v stmt.Verified) bool {
		_, further, _ := n.readFurther(v.Statement())
		return further
	}))
}

// CheckUnknown holds that all honest nodes hold what a later version has said, byte for
// byte. It is for when there was time for it to come to all.
func (s *Sim) CheckUnknown() {
	lives := map[string]bool{}
	for _, o := range s.owners {
		for _, spec := range o.author.Instances() {
			lives[spec.ID] = true
		}
	}
	for _, n := range s.oneOfEach() {
		for _, of := range slices.SortedFunc(maps.Keys(s.versions.regs), registerOf.compare) {
			id := s.versions.regs[of]
			o := s.nodes[of.node]
			if !o.up || o.asleep(s.now) || o.liar || of.claimed != (claimed{}) && !lives[of.instance.String()] {
				continue
			}
			if !n.h.state.Holds(id) {
				s.broke(UnknownKept, "%v does not hold what %v, of a later version, has said: %.8s", n, o, id)
				return
			}
		}
		for _, id := range slices.Sorted(maps.Keys(s.versions.spec)) {
			want := s.versions.spec[id]
			spec, _ := n.view().view.Instance(id)
			if lives[id] && !bytes.Equal(spec.Unknown[furtherKey], want) {
				s.broke(UnknownKept, "%v has %x of instance %.8s where its owner's later tool said %x", n, spec.Unknown[furtherKey], id, want)
				return
			}
		}
	}
}
