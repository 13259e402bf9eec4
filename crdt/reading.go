package crdt

import "github.com/formthefog/formation/crdt/stmt"

// reading is what an owner or spec statement says, as far as that needs no State:
// while a log is loaded it is read on all cores, beside the signatures.
type reading struct {
	err error // the statement is against the rules of its kind

	owner  ownerBody
	opaque bool

	spec   *specBody
	change Change
	root   *Spec // what a View has of a document that is this root and nothing more
}

// readAhead reads st. The reading of a statement of another kind is empty.
func readAhead(st *stmt.Statement) *reading {
	r := &reading{}
	switch st.Kind {
	case stmt.KindOwner:
		r.owner, r.opaque, r.err = decodeOwner(st)
	case stmt.KindSpec:
		if r.spec, r.change, r.err = decodeSpec(st); r.err == nil && r.spec.isRoot() {
			r.root = &Spec{}
			r.root.setValues(r.change.rootValues())
		}
	}
	return r
}

// reading is what st says, whose body is b.
func (b *specBody) reading(st *stmt.Statement) *reading {
	if err := b.check(st); err != nil {
		return &reading{err: err}
	}
	return &reading{spec: b, change: b.change(st)}
}
