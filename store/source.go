package store

import (
	"context"
	"errors"
	"fmt"

	"os"
	"sync"
	"time"

	"github.com/ipfs/go-cid"
)

// Source is what the bulk server of p2p/exchange reads from. Leaves it gives are
// not hashed again: they were when they came, and the receiver must anyway.
type Source struct{ s *Store }

// Source returns the store's.
func (s *Store) Source() *Source { return &Source{s} }

// Describe sends everything of a pack or base but the leaves: root node,
// signature, for a pack its base's node and signature, and the interior nodes of
// every image, the base's first, level by level, each once. What is not here ends
// the list; if all is, the entry roots are returned in that order.
func (src *Source) Describe(ctx context.Context, root cid.Cid, send func(data []byte) error) ([]cid.Cid, error) {
	if CheckCID(root) != nil { // peers ask for what they like; such a CID names nothing
		return nil, nil
	}
	d := newDescription(root, src.s.cfg.MaxPack)
	for {
		want, ok := d.next()
		if !ok {
			return d.entryRoots(), nil
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		data, err := src.s.described(want)
		if errors.Is(err, ErrNotFound) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		if err := d.add(data); err != nil {
			return nil, err
		}
		if err := send(data); err != nil {
			return nil, err
		}
	}
}

// described reads what a description wants next from this store.
func (s *Store) described(w want) ([]byte, error) {
	if !w.seal {
		return s.node(w.cid)
	}
	rec, err := s.rootRecord(w.cid)
	if err != nil {
		return nil, err
	}
	sig, err := cid.Cast(rec.Sig)
	if err != nil {
		return nil, fmt.Errorf("%w: signature CID: %w", ErrCorrupt, err)
	}
	return s.node(sig)
}

// Have gives the bitmap of the leaves of an entry that are here (bit i of byte
// i/8 is leaf i), nil if the entry is not known.
func (src *Source) Have(_ context.Context, entry cid.Cid) ([]byte, error) {
	s := src.s
	if p := s.arriving(entry); p != nil {
		return p.bitmap(), nil
	}
	r, err := s.image(entry)
	if errors.Is(err, ErrNotFound) || err == nil && !r.Whole {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	t, err := s.treeOf(r)
	if err != nil {
		return nil, err
	}
	full := newBits(t.leaves())
	for i := range full {
		full[i] = 0xff
	}
	if extra := t.leaves() % 8; extra != 0 {
		full[len(full)-1] = byte(1)<<extra - 1
	}
	return full, nil
}

// Leaves sends count leaves from the first on; nil stands for one that is not
// here.
func (src *Source) Leaves(ctx context.Context, entry cid.Cid, first, count int, send func(data []byte) error) error {
	buf := leafBuffers.Get().(*[]byte)
	defer leafBuffers.Put(buf)
	t, f, here, err := src.s.openLeaves(entry)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return err
	}
	if f != nil {
		defer f.Close()
	}
	for i := first; i < first+count; i++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		if f == nil || i >= t.leaves() || !here(i) {
			if err := send(nil); err != nil {
				return err
			}
			continue
		}
		off, length := t.span(i)
		if _, err := f.ReadAt((*buf)[:length], off); err != nil {
			return fmt.Errorf("image %s: %w", entry, err)
		}
		if err := send((*buf)[:length]); err != nil {
			return err
		}
	}
	return nil
}

var leafBuffers = sync.Pool{New: func() any { b := make([]byte, MaxChunk); return &b }}

// openLeaves opens an entry's file for reading leaves, whole or arriving.
func (s *Store) openLeaves(entry cid.Cid) (t *tree, f *os.File, here func(i int) bool, err error) {
	if p := s.arriving(entry); p != nil {
		f, err = os.Open(s.partPath(entry))
		if err == nil {
			return p.tree, f, p.has, nil
		}
		if !errors.Is(err, os.ErrNotExist) {
			return nil, nil, nil, err
		} // it has just become whole
	}
	r, err := s.image(entry)
	if err != nil {
		return nil, nil, nil, err
	}
	if !r.Whole {
		return nil, nil, nil, ErrNotFound
	}
	if t, err = s.treeOf(r); err != nil {
		return nil, nil, nil, err
	}
	f, err = os.Open(s.imagePath(entry))
	return t, f, func(int) bool { return true }, err
}

func (s *Store) arriving(entry cid.Cid) *part {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.parts[entry]
}

// treeCache keeps trees of images being served. Its memory is bounded, and
// given back when serving stops long enough.
type treeCache struct {
	trees  map[cid.Cid]*cachedTree
	leaves int
}

type cachedTree struct {
	tree *tree
	used time.Time
}

const (
	cacheLeaves = 256 << 10 // about 11 MiB
	cacheTime   = time.Minute
)

// treeOf reads an image's tree, or finds it in the cache.
func (s *Store) treeOf(r imageRecord) (*tree, error) {
	e, err := r.entry()
	if err != nil {
		return nil, err
	}
	now := time.Now()
	s.mu.Lock()
	if c, ok := s.trees.trees[e.Root]; ok {
		c.used = now
		s.mu.Unlock()
		return c.tree, nil
	}
	s.mu.Unlock()
	t, err := readTree(e, s.node)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", e.Root, err)
	}
	s.mu.Lock()
	s.trees.add(e.Root, t, now)
	s.mu.Unlock()
	return t, nil
}

// add makes room by dropping idle trees, and all of them if that is not enough.
func (c *treeCache) add(root cid.Cid, t *tree, now time.Time) {
	for k, v := range c.trees {
		if now.Sub(v.used) > cacheTime {
			c.leaves -= v.tree.leaves()
			delete(c.trees, k)
		}
	}
	if c.leaves+t.leaves() > cacheLeaves || c.trees == nil {
		c.trees, c.leaves = map[cid.Cid]*cachedTree{}, 0
	}
	if _, there := c.trees[root]; !there {
		c.trees[root] = &cachedTree{t, now}
		c.leaves += t.leaves()
	}
}
