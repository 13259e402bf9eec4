package crdt

import (
	"bytes"
	"cmp"
	"fmt"
	"maps"
	"slices"

	"github.com/formthefog/formation/crdt/stmt"
)

// ActorID names one writer of a document: a fresh random value for every
// Author, so that a device restored from a backup cannot reuse one.
type ActorID [16]byte

// UnmarshalCBOR accepts a byte string of exactly 16 bytes.
func (a *ActorID) UnmarshalCBOR(b []byte) error {
	if len(b) != 17 || b[0] != 0x50 {
		return fmt.Errorf("%w: actor", ErrInvalid)
	}
	copy(a[:], b[1:])
	return nil
}

// Op sets one key of a document; Value is canonical CBOR, and CBOR null (f6)
// removes the key.
type Op struct {
	Key   string
	Value []byte
}

// Change is one verified spec statement. Ops are in canonical key order
// (length first) with no key twice.
type Change struct {
	ID    stmt.ID
	Actor ActorID
	Seq   uint64    // 1, 2, … per actor and epoch
	Deps  []stmt.ID // changes of the same epoch; empty in a root
	Time  int64     // Unix seconds, bounded by stmt.MaxTime
	Ops   []Op
}

// rootValues are the keys of a document that is this root and nothing more.
func (c *Change) rootValues() []Op {
	return slices.DeleteFunc(slices.Clone(c.Ops), func(op Op) bool { return isNull(op.Value) })
}

// SpecEngine merges the changes of documents. [NewModel] is the specification
// of what the result must be; package crdt/automerge is the engine of formd,
// and differential tests hold the two equal.
//
// The caller (State) has verified everything: signature, owner, bounds, that
// every dependency was given to the engine before, and that an actor's
// sequence has no gap. Engines need not be safe for concurrent use.
type SpecEngine interface {
	// Root starts document doc anew from root, dropping what it held.
	Root(doc DocID, root Change) error
	// Apply adds a change whose dependencies the document holds.
	Apply(doc DocID, c Change) error
	// Values returns the merged keys of doc, removed ones left out. The result
	// is the caller's; its values are shared and must not be modified.
	Values(doc DocID) (map[string][]byte, error)
	// Drop forgets doc.
	Drop(doc DocID)
}

// model is the specification: a flat map in which for every key the op with
// the highest (counter, actor) wins. A change's first op has the counter after
// the highest one its dependencies contain, and each further op the next.
type model struct {
	docs map[DocID]*modelDoc
}

type modelDoc struct {
	max  map[stmt.ID]uint64 // highest op counter in the past of a change, itself included
	keys map[string]modelValue
}

type modelValue struct {
	counter uint64
	actor   ActorID
	value   []byte
}

// NewModel returns the pure-Go engine.
func NewModel() SpecEngine { return &model{docs: map[DocID]*modelDoc{}} }

func (m *model) Root(doc DocID, root Change) error {
	m.docs[doc] = &modelDoc{max: map[stmt.ID]uint64{}, keys: map[string]modelValue{}}
	root.Deps = nil
	return m.Apply(doc, root)
}

func (m *model) Apply(doc DocID, c Change) error {
	d := m.docs[doc]
	if d == nil {
		return fmt.Errorf("model: apply to %s: %w", doc, ErrNotFound)
	}
	var counter uint64
	for _, dep := range c.Deps {
		n, ok := d.max[dep]
		if !ok {
			return fmt.Errorf("model: apply to %s: %w", doc, ErrPending)
		}
		counter = max(counter, n)
	}
	for _, op := range c.Ops {
		counter++
		old, ok := d.keys[op.Key]
		if !ok || cmp.Or(cmp.Compare(old.counter, counter), bytes.Compare(old.actor[:], c.Actor[:])) < 0 {
			d.keys[op.Key] = modelValue{counter, c.Actor, op.Value}
		}
	}
	d.max[c.ID] = counter
	return nil
}

func (m *model) Values(doc DocID) (map[string][]byte, error) {
	d := m.docs[doc]
	if d == nil {
		return nil, fmt.Errorf("model: values of %s: %w", doc, ErrNotFound)
	}
	out := make(map[string][]byte, len(d.keys))
	for _, k := range slices.Sorted(maps.Keys(d.keys)) {
		if v := d.keys[k].value; !isNull(v) {
			out[k] = v
		}
	}
	return out, nil
}

func (m *model) Drop(doc DocID) { delete(m.docs, doc) }

func isNull(v []byte) bool { return len(v) == 1 && v[0] == 0xf6 }
