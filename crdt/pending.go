package crdt

import (
	"cmp"
	"container/list"
	"maps"
	"slices"

	"github.com/formthefog/formation/crdt/stmt"
)

// Bounds on what is set aside. They are met by arrivals in a bad order; what
// overflows comes again by anti-entropy, which sends in a good order.
const (
	maxPending       = 4096
	maxPendingPerKey = 256
	// maxPendingGuests of a key are by who names another as the owner, which
	// anybody can: they must not keep out the owner's own.
	maxPendingGuests = maxPendingPerKey / 2
)

// waitKey is what a statement waits for: an author's membership or a document.
type waitKey struct {
	author stmt.Key
	doc    DocID
}

func waitAuthor(k stmt.Key) waitKey { return waitKey{author: k} }
func waitDoc(d DocID) waitKey       { return waitKey{doc: d} }

// pending is a bounded set of verified statements by what they wait for. Over
// the bound the oldest goes; over a key's bound the newest is not taken.
type pending struct {
	count int
	byKey map[waitKey]map[stmt.ID]*list.Element
	order *list.List // of *waiting, oldest first
	queue []*stmt.Statement
	added uint64
}

type waiting struct {
	key   waitKey
	st    *stmt.Statement
	n     uint64 // arrival number
	guest bool
}

func (p *pending) init() {
	p.byKey = map[waitKey]map[stmt.ID]*list.Element{}
	p.order = list.New()
}

func (p *pending) add(key waitKey, st *stmt.Statement, guest bool) {
	m := p.byKey[key]
	if m == nil {
		m = map[stmt.ID]*list.Element{}
		p.byKey[key] = m
	}
	if _, have := m[st.ID]; have || len(m) >= maxPendingPerKey {
		return
	}
	if guest && len(m) >= maxPendingGuests && p.guests(m) >= maxPendingGuests {
		return
	}
	p.added++
	m[st.ID] = p.order.PushBack(&waiting{key, st, p.added, guest})
	p.count++
	if p.count > maxPending {
		p.remove(p.order.Front())
	}
}

func (p *pending) guests(m map[stmt.ID]*list.Element) int {
	n := 0
	for _, e := range m { // any order: only counted
		if e.Value.(*waiting).guest {
			n++
		}
	}
	return n
}

func (p *pending) remove(e *list.Element) {
	w := p.order.Remove(e).(*waiting)
	p.count--
	delete(p.byKey[w.key], w.st.ID)
	if len(p.byKey[w.key]) == 0 {
		delete(p.byKey, w.key)
	}
}

// wake makes what waits for key ready, in the order of its arrival.
func (p *pending) wake(key waitKey) {
	elems := slices.SortedFunc(maps.Values(p.byKey[key]), func(a, b *list.Element) int {
		return cmp.Compare(a.Value.(*waiting).n, b.Value.(*waiting).n)
	})
	for _, e := range elems {
		p.queue = append(p.queue, e.Value.(*waiting).st)
		p.remove(e)
	}
}

// wakeAuthors makes everything that waits for an author ready.
func (p *pending) wakeAuthors() {
	for e := p.order.Front(); e != nil; {
		next := e.Next()
		if w := e.Value.(*waiting); !w.key.author.IsZero() {
			p.queue = append(p.queue, w.st)
			p.remove(e)
		}
		e = next
	}
}

// ready takes the next woken statement, nil when there is none.
func (p *pending) ready() *stmt.Statement {
	if len(p.queue) == 0 {
		p.queue = nil
		return nil
	}
	st := p.queue[0]
	p.queue = p.queue[1:]
	return st
}

// ids are those of all that is set aside.
func (p *pending) ids() map[stmt.ID]bool {
	out := make(map[stmt.ID]bool, p.count)
	for e := p.order.Front(); e != nil; e = e.Next() {
		out[e.Value.(*waiting).st.ID] = true
	}
	return out
}
