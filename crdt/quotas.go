package crdt

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/formthefog/formation/crdt/stmt"
)

// Quotas that are met by names: of an author's claims, bases and documents those
// with the lowest names are held, and one that comes over the bound takes the
// place of the highest. So what is held depends on what there is and not on what
// came first. Each bound is on what one key signs: nobody's statements push out
// those of another.
const (
	// maxDocs is how many documents of one owner are held, unlisted ones included:
	// a document may arrive before the owner statement that lists it.
	maxDocs = MaxInstances + 64
	// maxPerInvite is how many keys one invite admits. Who presents an admission
	// may be anybody with the ticket, and could choose keys that are low: here the
	// highest must not give way, or members would. So this holds where an admission
	// first comes in, as the expiry of the invite does. What a member relays was
	// judged by it, and is taken up to four times as many.
	maxPerInvite        = 4096
	maxPerInviteRelayed = 4 * maxPerInvite
)

// quotas are the bounds of a State; tests have smaller ones.
type quotas struct {
	claims  int // of one node
	bases   int // of one publisher
	docs    int // of one owner
	owner   int // owner statements of one owner
	invited int // by one invite, as judged here
	relayed int // and in all
}

var standard = quotas{
	claims: MaxClaimsPerNode, bases: MaxBasesPerPublisher, docs: maxDocs,
	owner:   maxOwnerStatements,
	invited: maxPerInvite, relayed: maxPerInviteRelayed,
}

// perInvite is how many keys one invite may have admitted before one more is let
// in; now is zero when that was judged elsewhere.
func (q quotas) perInvite(now time.Time) int {
	if now.IsZero() {
		return q.relayed
	}
	return q.invited
}

// compareNames orders the claims of one node.
func (k claimKey) compareNames(o claimKey) int {
	return cmp.Or(compareDocs(k.doc, o.doc), k.owner.Compare(o.owner), cmp.Compare(k.slot, o.slot))
}

// makeClaimRoom lets a claim under a new name in, or says that it is over the
// bound.
func (s *State) makeClaimRoom(k claimKey) error {
	held := s.byNode.get(k.node)
	if len(held) < s.most.claims {
		return nil
	}
	last := slices.MaxFunc(held, func(a, b *claimReg) int { return a.key.compareNames(b.key) })
	if k.compareNames(last.key) > 0 {
		return fmt.Errorf("%w: %d claims of %s", ErrQuota, len(held), k.node)
	}
	s.dropClaim(last.key)
	return nil
}

// makeBaseRoom is makeClaimRoom for the name of a base.
func (s *State) makeBaseRoom(k baseKey) error {
	n, last := 0, ""
	for have := range s.bases { // any order: a count and the highest
		if have.publisher == k.publisher {
			n, last = n+1, max(last, have.name)
		}
	}
	switch {
	case n < s.most.bases:
		return nil
	case k.name > last:
		return fmt.Errorf("%w: %d bases of %s", ErrQuota, n, k.publisher)
	}
	out := baseKey{k.publisher, last}
	s.ids.drop(s.bases[out].id)
	delete(s.bases, out)
	return nil
}

// makeDocRoom is makeClaimRoom for a document. Those that the owner lists come
// before the others: there is room for all of them.
func (s *State) makeDocRoom(id DocID, owner stmt.Key) error {
	docs := s.docsOf[owner]
	if len(docs) < s.most.docs {
		return nil
	}
	o := s.owners[owner]
	unlisted := func(d DocID) int {
		if o != nil && o.live[d] {
			return 0
		}
		return 1
	}
	compare := func(a, b DocID) int { return cmp.Or(cmp.Compare(unlisted(a), unlisted(b)), compareDocs(a, b)) }
	last := id
	for d := range docs { // any order: the last
		if compare(d, last) > 0 {
			last = d
		}
	}
	if last == id {
		return fmt.Errorf("%w: %d documents of %s", ErrQuota, len(docs), owner)
	}
	s.dropDoc(s.docs.get(last))
	return nil
}
