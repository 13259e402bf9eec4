package crdt

import (
	"container/list"
	"fmt"
	"maps"
	"slices"

	"github.com/formthefog/formation/crdt/stmt"
)

// Fork returns a State that holds what s holds, Views and what is set aside included.
// It costs what has changed since an earlier Fork and not what is held: the two share
// the rest, and neither sees what is applied to the other. engine must be empty; the
// new State owns it. What s collects for a Replica stays with s. Errors are of engine.
//
// A State that shares changes nothing in place that it holds, and so is somewhat
// slower.
func (s *State) Fork(engine SpecEngine) (*State, error) {
	view := s.View() // so that nothing waits for being built
	s.shares, s.members.forked = true, true
	f := &State{
		network: s.network, root: s.root, engine: engine, most: s.most, version: s.version,
		ids: s.ids.fork(), members: s.members, owners: maps.Clone(s.owners), docs: s.docs.fork(), docsOf: maps.Clone(s.docsOf),
		secrets: maps.Clone(s.secrets), nodes: s.nodes.fork(), byNode: s.byNode.fork(), byDoc: s.byDoc.fork(),
		bases: maps.Clone(s.bases), devices: s.devices, husks: make(map[stmt.Key]*husk, len(s.husks)), pending: s.pending.clone(),
		shares: true, changes: s.changes, caught: map[doubledKey]bool{}, idx: s.idx, idxChanges: s.idxChanges,
		view: view, insts: s.insts.fork(), nodeViews: s.nodeViews.fork(), deleted: s.deleted.fork(),
		dirtyInst: map[DocID]struct{}{}, dirtyNode: map[stmt.Key]struct{}{},
	}
	for k, h := range s.husks { // any order: each by itself
		f.husks[k] = &husk{node: h.node, claims: maps.Clone(h.claims)}
	}
	for _, d := range s.docs.all() { // any order: each by itself
		if d.line == nil && len(d.order) > 1 { // only then the engine has it
			if err := f.replay(d, d.order); err != nil {
				return nil, fmt.Errorf("fork: %w", err)
			}
		}
	}
	return f, nil
}

// ownList is a list that may be changed in place.
func (s *State) ownList(l claimList) claimList {
	if s.shares {
		return slices.Clone(l)
	}
	return l
}

// ownDoc is a held document that may be changed in place.
func (s *State) ownDoc(d *document) *document {
	if !s.shares {
		return d
	}
	c := *d
	c.prior.ids = slices.Clone(d.prior.ids)
	c.seen, c.line = maps.Clone(d.seen), maps.Clone(d.line)
	s.docs.set(d.id, &c)
	return &c
}

// ownDocsOf is the set of an owner's documents, to be changed in place.
func (s *State) ownDocsOf(owner stmt.Key) map[DocID]struct{} {
	switch of := s.docsOf[owner]; {
	case of == nil:
		s.docsOf[owner] = map[DocID]struct{}{}
	case s.shares:
		s.docsOf[owner] = maps.Clone(of)
	}
	return s.docsOf[owner]
}

// ownSecrets are the secrets of an instance, to be changed in place.
func (s *State) ownSecrets(id DocID) map[string]*secretReg {
	switch held := s.secrets[id]; {
	case held == nil:
		s.secrets[id] = map[string]*secretReg{}
	case s.shares:
		s.secrets[id] = maps.Clone(held)
	}
	return s.secrets[id]
}

// ownOwner is what is held of an owner, to be changed in place and put into owners.
func (s *State) ownOwner(key stmt.Key) *ownerState {
	o := s.owners[key]
	switch {
	case o == nil:
		return &ownerState{stmts: map[stmt.ID]*ownerStmt{}}
	case !s.shares:
		return o
	}
	c := *o
	c.live, c.dead = maps.Clone(o.live), maps.Clone(o.dead)
	c.stmts = make(map[stmt.ID]*ownerStmt, len(o.stmts)+1)
	for id, st := range o.stmts { // any order: each by itself
		own := *st
		c.stmts[id] = &own
	}
	return &c
}

// unfork makes the maps of member statements ones that no other State refers to.
func (m *memberState) unfork() {
	if !m.forked {
		return
	}
	m.forked = false
	m.unshare()
	admitted := make(map[stmt.Key]map[admitKey]*admission, len(m.admitted))
	for k, as := range m.admitted { // any order: each by itself
		admitted[k] = maps.Clone(as)
	}
	m.admitted, m.perInvite = admitted, maps.Clone(m.perInvite)
	m.revokes, m.disowned = maps.Clone(m.revokes), maps.Clone(m.disowned)
}

// clone returns an equal set, in the same order.
func (p *pending) clone() pending {
	c := pending{added: p.added, queue: slices.Clone(p.queue)}
	c.byKey, c.order = map[waitKey]map[stmt.ID]*list.Element{}, list.New()
	for e := p.order.Front(); e != nil; e = e.Next() {
		w := *e.Value.(*waiting)
		if c.byKey[w.key] == nil {
			c.byKey[w.key] = map[stmt.ID]*list.Element{}
		}
		c.byKey[w.key][w.st.ID] = c.order.PushBack(&w)
		c.count++
	}
	return c
}
