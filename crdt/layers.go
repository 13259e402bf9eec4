package crdt

import (
	"iter"
	"maps"

	"github.com/formthefog/formation/crdt/stmt"
)

// layers is a map that Forks of a State share: what they have in common lies in base,
// which nobody changes any more, and each has its own changes above it. A State that
// was never forked has the upper map alone.
type layers[K comparable, V any] struct {
	own  map[K]V
	base map[K]V        // nil: nothing is shared
	gone map[K]struct{} // of base; nothing in it is in own
	over int            // how many of own are in base too
}

func newLayers[K comparable, V any]() layers[K, V] { return layers[K, V]{own: map[K]V{}} }

// get is the zero value when there is none.
func (l *layers[K, V]) get(k K) V {
	v, _ := l.find(k)
	return v
}

func (l *layers[K, V]) find(k K) (V, bool) {
	v, ok := l.own[k]
	if ok || l.base == nil {
		return v, ok
	}
	if _, gone := l.gone[k]; gone {
		return v, false
	}
	v, ok = l.base[k]
	return v, ok
}

func (l *layers[K, V]) set(k K, v V) {
	if l.base != nil {
		if _, have := l.own[k]; !have {
			if _, below := l.base[k]; below {
				l.over++
			}
		}
		delete(l.gone, k)
	}
	l.own[k] = v
}

func (l *layers[K, V]) delete(k K) {
	_, own := l.own[k]
	delete(l.own, k)
	if l.base == nil {
		return
	}
	if _, below := l.base[k]; below {
		l.gone[k] = struct{}{}
		if own {
			l.over--
		}
	}
}

func (l *layers[K, V]) len() int { return len(l.own) + len(l.base) - len(l.gone) - l.over }

// all ranges in no particular order. What is deleted meanwhile is not yielded any
// more; nothing else may change.
func (l *layers[K, V]) all() iter.Seq2[K, V] {
	return func(yield func(K, V) bool) {
		for k, v := range l.own { // any order: as promised
			if !yield(k, v) {
				return
			}
		}
		for k, v := range l.base { // any order: as promised
			if _, own := l.own[k]; own {
				continue
			}
			if _, gone := l.gone[k]; !gone && !yield(k, v) {
				return
			}
		}
	}
}

// maxLayer is how much may lie above what is shared until a fork makes a new base: it
// is copied by every fork.
const maxLayer = 512

// fork returns an equal map. From then on neither sees what the other changes.
func (l *layers[K, V]) fork() layers[K, V] {
	if l.base == nil || len(l.own)+len(l.gone) > max(maxLayer, len(l.base)/16) {
		base := l.own
		if l.base != nil {
			base = maps.Collect(l.all())
		}
		*l = layers[K, V]{own: map[K]V{}, base: base, gone: map[K]struct{}{}}
	}
	return layers[K, V]{own: maps.Clone(l.own), base: l.base, gone: maps.Clone(l.gone), over: l.over}
}

// heldIDs are the IDs of all held statements, and their sum.
type heldIDs struct {
	layers[stmt.ID, struct{}]
	sum stmt.ID // the exclusive or of them
}

func (h *heldIDs) has(id stmt.ID) bool {
	_, ok := h.find(id)
	return ok
}

func (h *heldIDs) add(id stmt.ID) {
	if !h.has(id) {
		h.set(id, struct{}{})
		h.toggle(id)
	}
}

func (h *heldIDs) drop(id stmt.ID) {
	if h.has(id) {
		h.delete(id)
		h.toggle(id)
	}
}

func (h *heldIDs) toggle(id stmt.ID) {
	for i := range h.sum {
		h.sum[i] ^= id[i]
	}
}

func (h *heldIDs) fork() heldIDs { return heldIDs{layers: h.layers.fork(), sum: h.sum} }
