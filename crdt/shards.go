package crdt

import (
	"hash/maphash"
	"maps"
)

const shardCount = 256

// shards is a map that is copied on write piece by piece, so that a View of
// many entries costs little more than what changed since the last one.
type shards[K comparable, V any] struct {
	parts [shardCount]map[K]V
	owned [shardCount]bool // parts that this value, and no View, refers to
	last  *shards[K, V]    // what freeze returned, while that is this value
}

// shardSeed only spreads keys; no result depends on which shard holds a key.
var shardSeed = maphash.MakeSeed()

func shardOf[K comparable](k K) int {
	return int(maphash.Comparable(shardSeed, k) % shardCount)
}

func (s *shards[K, V]) get(k K) (V, bool) {
	v, ok := s.parts[shardOf(k)][k]
	return v, ok
}

func (s *shards[K, V]) own(i int) map[K]V {
	if !s.owned[i] {
		s.parts[i] = maps.Clone(s.parts[i])
		if s.parts[i] == nil {
			s.parts[i] = map[K]V{}
		}
		s.owned[i], s.last = true, nil
	}
	return s.parts[i]
}

func (s *shards[K, V]) set(k K, v V) { s.own(shardOf(k))[k] = v }

func (s *shards[K, V]) delete(k K) {
	if i := shardOf(k); len(s.parts[i]) > 0 {
		delete(s.own(i), k)
	}
}

// freeze returns a copy for a View, the same one while nothing changes; afterwards
// both share all parts.
func (s *shards[K, V]) freeze() *shards[K, V] {
	if s.last == nil {
		s.last, s.owned = &shards[K, V]{parts: s.parts}, [shardCount]bool{}
	}
	return s.last
}

// fork returns an equal value; afterwards both share all parts.
func (s *shards[K, V]) fork() shards[K, V] {
	return shards[K, V]{parts: s.parts, last: s.freeze()}
}

// all ranges in no particular order.
func (s *shards[K, V]) all() func(func(K, V) bool) {
	return func(yield func(K, V) bool) {
		for i := range s.parts {
			for k, v := range s.parts[i] { // any order: as promised; callers sort
				if !yield(k, v) {
					return
				}
			}
		}
	}
}
