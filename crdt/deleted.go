package crdt

import (
	"slices"

	"github.com/formthefog/formation/crdt/stmt"
)

// Deleted says whether owner has deleted the instance with this ID. It is true for
// whatever its statements have as dead: whether the instance was ever owner's is for
// the caller to know. Of a closed owner nothing counts, deletions neither.
func (v *View) Deleted(owner stmt.Key, id string) bool {
	pages, _ := v.deleted.get(owner)
	if len(pages) == 0 {
		return false
	}
	d, err := ParseDocID(id)
	return err == nil && slices.ContainsFunc(pages, func(dead []DocID) bool { return slices.Contains(dead, d) })
}

// tellDeleted has the next View know what o, nil for an owner of whom nothing is
// held, has as dead.
func (s *State) tellDeleted(owner stmt.Key, o *ownerState) {
	var pages [][]DocID
	if o != nil && !o.closed {
		for _, st := range o.stmts { // any order: a set
			if len(st.body.Dead) > 0 {
				pages = append(pages, st.body.Dead)
			}
		}
	}
	if pages == nil {
		s.deleted.delete(owner)
		return
	}
	s.deleted.set(owner, pages)
}
