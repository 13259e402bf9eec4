package crdt

import (
	"cmp"
	"slices"
	"strings"

	"github.com/formthefog/formation/crdt/stmt"
)

// View returns the merged state. It is cheap when nothing changed, and else
// costs about what changed since the last call.
func (s *State) View() *View {
	if s.view != nil && !s.dirty {
		return s.view
	}
	for key := range s.dirtyNode { // any order: each entry is rebuilt by itself
		s.buildNode(key)
	}
	for id := range s.dirtyInst { // any order: each entry is rebuilt by itself
		s.buildInst(id)
	}
	s.version++
	s.members.shared = true
	mv := s.members.memberView
	v := &View{
		network: s.network, root: s.root, version: s.version,
		insts: s.insts.freeze(), nodes: s.nodeViews.freeze(), deleted: s.deleted.freeze(), members: &mv, devices: s.devices,
	}
	if s.view != nil && !s.dirtyNodes {
		v.listed = s.view.listed
	} else {
		v.listed = &nodeList{from: v.nodes}
	}
	if s.view != nil && !s.dirtyBases {
		v.bases = s.view.bases
	} else {
		v.bases = s.buildBases()
	}
	s.dirtyInst, s.dirtyNode = emptied(s.dirtyInst), emptied(s.dirtyNode)
	s.dirty, s.dirtyBases, s.dirtyNodes = false, false, false
	s.view = v
	return v
}

// emptied is an empty m, or a new one: to range over a map that was large once
// costs what it was large.
func emptied[K comparable](m map[K]struct{}) map[K]struct{} {
	if len(m) > 64 {
		return map[K]struct{}{}
	}
	clear(m)
	return m
}

func (s *State) buildNode(key stmt.Key) {
	nv := &nodeView{}
	old, _ := s.nodeViews.get(key)
	operator := s.members.operator[key]
	switch n := s.nodes.get(key); {
	case n == nil:
	case old != nil && old.of == n.node && old.node.Operator == operator:
		nv.of, nv.node = old.of, old.node
	default:
		c := *n.node
		c.Operator = operator
		nv.of, nv.node = n.node, &c
	}
	if old == nil && nv.node != nil || old != nil && old.node != nv.node {
		s.dirtyNodes = true
	}
	for _, c := range s.byNode.get(key) {
		if !c.gone {
			nv.claims = append(nv.claims, c)
		}
	}
	if nv.node == nil && nv.claims == nil {
		s.nodeViews.delete(key)
		return
	}
	s.nodeViews.set(key, nv)
}

func (s *State) buildInst(id DocID) {
	iv := &instView{}
	if d := s.docs.get(id); d != nil {
		if s.listed(id) != nil {
			iv.spec = s.buildSpec(d)
		}
		d.ahead = nil
	}
	for _, c := range s.byDoc.get(id) {
		if !c.gone && (iv.spec == nil || iv.spec.Owner == c.key.owner) {
			iv.claims = append(iv.claims, iv.sharing(c.claim()))
		}
	}
	if iv.spec != nil {
		iv.secrets = s.secretsOf(id)
	}
	var text string
	if d := s.docs.get(id); d != nil {
		text = d.text
	} else {
		text = id.String()
	}
	if iv.spec == nil && iv.claims == nil {
		s.insts.delete(text)
		return
	}
	slices.SortFunc(iv.claims, compareClaims)
	s.insts.set(text, iv)
}

// sharing gives a claim the texts that others have too: there are many claims.
func (iv *instView) sharing(c Claim) Claim {
	if len(iv.claims) > 0 {
		c.Instance = iv.claims[0].Instance
	}
	if iv.spec != nil {
		c.Instance = iv.spec.ID
		if c.Pack == iv.spec.Pack {
			c.Pack = iv.spec.Pack
		}
	}
	return c
}

// listed is the document of an instance that lives, or nil.
func (s *State) listed(id DocID) *document {
	d := s.docs.get(id)
	if d == nil {
		return nil
	}
	if o := s.owners[d.owner]; o == nil || !o.live[id] {
		return nil
	}
	return d
}

// buildSpec returns nil when the engine cannot read the document, which is a
// fault of this machine and must not stop the others' instances.
func (s *State) buildSpec(d *document) *Spec {
	spec := d.ahead // which buildInst then forgets: a View has it
	if spec == nil || len(d.order) > 1 {
		vals, err := s.values(d)
		if err != nil {
			return nil
		}
		spec = &Spec{}
		spec.setValues(vals)
	}
	return d.complete(spec)
}

// complete fills in what the values of a document do not say.
func (d *document) complete(spec *Spec) *Spec {
	spec.ID, spec.Owner, spec.Frozen, spec.Epoch, spec.Delegates = d.text, d.owner, d.proof != nil, d.epoch, d.delegates
	spec.Generation += uint64(len(d.order) - 1)
	return spec
}

func (s *State) buildBases() []Base {
	out := make([]Base, 0, len(s.bases))
	for k, b := range s.bases {
		out = append(out, Base{Publisher: k.publisher, Name: k.name, CID: b.cid, Epoch: b.epoch, Seq: b.seq})
	}
	slices.SortFunc(out, func(a, b Base) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), a.Publisher.Compare(b.Publisher))
	})
	return out
}
