package store

import (
	"bytes"
	"fmt"
	"sort"

	"github.com/ipfs/boxo/ipld/merkledag"
	"github.com/ipfs/boxo/ipld/unixfs"
	"github.com/ipfs/go-cid"
)

// tree is an image's DAG with the interior nodes read: which chunks, in which
// order, how long. It takes 44 bytes a leaf, so that images of any size fit.
type tree struct {
	digests []byte    // 32 bytes a leaf
	ends    []int64   // where leaf i ends in the file; it starts where i-1 ends
	nodes   []cid.Cid // interior nodes, each once, level by level: the order Describe sends them in
}

func (t *tree) leaves() int { return len(t.ends) }

func (t *tree) digest(i int) (d digest) {
	copy(d[:], t.digests[i*len(d):])
	return d
}

func (t *tree) span(i int) (off, length int64) {
	if i > 0 {
		off = t.ends[i-1]
	}
	return off, t.ends[i] - off
}

// leafAt finds the leaf that contains a file offset.
func (t *tree) leafAt(off int64) int {
	return sort.Search(len(t.ends), func(i int) bool { return t.ends[i] > off })
}

// duplicates lists leaves whose content occurred before in the same image,
// with the first place of it. Deduplicated images have few.
func (t *tree) duplicates() map[int]int {
	order := make([]int32, t.leaves())
	for i := range order {
		order[i] = int32(i)
	}
	at := func(i int32) []byte { return t.digests[int(i)*32 : int(i)*32+32] }
	sort.Slice(order, func(a, b int) bool {
		if c := bytes.Compare(at(order[a]), at(order[b])); c != 0 {
			return c < 0
		}
		return order[a] < order[b]
	})
	out := map[int]int{}
	for i := 1; i < len(order); i++ {
		if bytes.Equal(at(order[i]), at(order[i-1])) {
			first := int(order[i-1])
			if f, ok := out[first]; ok {
				first = f
			}
			out[int(order[i])] = first
		}
	}
	return out
}

// walk is the check of an image's DAG, one node at a time, so that a bad node
// is found before the next is asked for. Levels are uniform, as boxo's balanced
// layout makes them.
type walk struct {
	entry Entry
	min   int64 // smallest chunk
	max   int64 // leaves that the declared size allows
	tree  *tree
	level []item // the level being read
	below []item // the level under it, as far as known
	pos   int
	depth int
	seen  map[digest][]item // children of nodes that occur more than once
}

// item is a link with the file size its parent declares.
type item struct {
	cid  cid.Cid
	size int64
}

func newWalk(e Entry) (*walk, error) {
	if err := e.check(); err != nil {
		return nil, err
	}
	least, err := minChunk(e.Chunker)
	if err != nil {
		return nil, err
	}
	w := &walk{
		entry: e, min: least, max: (e.Size + least - 1) / least,
		tree: &tree{}, level: []item{{e.Root, e.Size}}, seen: map[digest][]item{},
	}
	return w, w.settle()
}

// next is the interior node wanted now; ok is false when the tree is whole.
func (w *walk) next() (c cid.Cid, ok bool) {
	if w.pos >= len(w.level) {
		return cid.Undef, false
	}
	return w.level[w.pos].cid, true
}

// add takes the data of next(), verified by the caller or not: it checks.
func (w *walk) add(data []byte) error {
	it := w.level[w.pos]
	if len(data) > MaxNode {
		return fmt.Errorf("%w: interior node of %d bytes", ErrCorrupt, len(data))
	}
	if err := verifyBlock(it.cid, data); err != nil {
		return err
	}
	children, err := parseInterior(data, it.size)
	if err != nil {
		return fmt.Errorf("node %s: %w", it.cid, err)
	}
	w.seen[digestOf(it.cid)] = children
	w.tree.nodes = append(w.tree.nodes, it.cid)
	if err := w.descend(children); err != nil {
		return err
	}
	return w.settle()
}

func (w *walk) descend(children []item) error {
	w.pos++
	w.below = append(w.below, children...)
	if int64(len(w.below)) > w.max {
		return fmt.Errorf("%w: more chunks than %d bytes can have", ErrCorrupt, w.entry.Size)
	}
	return nil
}

// settle goes on over nodes already seen and to the next level, until a node
// is wanted or the leaves are reached.
func (w *walk) settle() error {
	for {
		for w.pos < len(w.level) {
			if w.level[w.pos].cid.Type() == cid.Raw {
				if w.pos > 0 {
					return fmt.Errorf("%w: chunks at different depths", ErrCorrupt)
				}
				return w.finish()
			}
			children, ok := w.seen[digestOf(w.level[w.pos].cid)]
			if !ok {
				return nil
			}
			var sum int64
			for _, c := range children {
				sum += c.size
			}
			if sum != w.level[w.pos].size {
				return fmt.Errorf("%w: one node with two sizes", ErrCorrupt)
			}
			if err := w.descend(children); err != nil {
				return err
			}
		}
		if w.depth++; w.depth > MaxDepth {
			return fmt.Errorf("%w: more than %d levels", ErrCorrupt, MaxDepth)
		}
		w.level, w.below, w.pos = w.below, nil, 0
		clear(w.seen)
	}
}

// finish turns the last level into leaves.
func (w *walk) finish() error {
	var off int64
	w.tree.digests = make([]byte, 0, 32*len(w.level))
	w.tree.ends = make([]int64, 0, len(w.level))
	for i, it := range w.level {
		last := i == len(w.level)-1
		switch {
		case it.cid.Type() != cid.Raw:
			return fmt.Errorf("%w: chunks at different depths", ErrCorrupt)
		case it.size < 1 || it.size > MaxChunk || (!last && it.size < w.min):
			return fmt.Errorf("%w: chunk of %d bytes", ErrCorrupt, it.size)
		}
		d := digestOf(it.cid)
		off += it.size
		w.tree.digests = append(w.tree.digests, d[:]...)
		w.tree.ends = append(w.tree.ends, off)
	}
	if off != w.entry.Size {
		return fmt.Errorf("%w: chunks of %d bytes, %d declared", ErrCorrupt, off, w.entry.Size)
	}
	w.level, w.pos, w.seen = nil, 0, nil
	return nil
}

// parseInterior reads a UnixFS file node that has links and no data of its own.
func parseInterior(data []byte, size int64) ([]item, error) {
	n, err := merkledag.DecodeProtobuf(data)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	fs, err := unixfs.FSNodeFromBytes(n.Data())
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	links, sizes := n.Links(), fs.BlockSizes()
	switch {
	case fs.Type() != unixfs.TFile || len(fs.Data()) != 0:
		return nil, fmt.Errorf("%w: not an interior file node", ErrCorrupt)
	case len(links) == 0 || len(links) > MaxLinks || len(links) != len(sizes):
		return nil, fmt.Errorf("%w: %d links with %d sizes", ErrCorrupt, len(links), len(sizes))
	}
	out := make([]item, len(links))
	left := size
	for i, l := range links {
		if err := CheckCID(l.Cid); err != nil {
			return nil, err
		}
		if t := l.Cid.Type(); t != cid.Raw && t != cid.DagProtobuf {
			return nil, fmt.Errorf("%w: link of codec %d", ErrCorrupt, t)
		}
		if sizes[i] < 1 || sizes[i] > uint64(left) {
			return nil, fmt.Errorf("%w: links of more than %d bytes", ErrCorrupt, size)
		}
		left -= int64(sizes[i])
		out[i] = item{l.Cid, int64(sizes[i])}
	}
	if left != 0 {
		return nil, fmt.Errorf("%w: links lack %d of %d bytes", ErrCorrupt, left, size)
	}
	return out, nil
}

// readTree reads an image's tree from nodes that get gives.
func readTree(e Entry, get func(cid.Cid) ([]byte, error)) (*tree, error) {
	w, err := newWalk(e)
	if err != nil {
		return nil, err
	}
	for c, ok := w.next(); ok; c, ok = w.next() {
		data, err := get(c)
		if err != nil {
			return nil, fmt.Errorf("node %s: %w", c, err)
		}
		if err := w.add(data); err != nil {
			return nil, err
		}
	}
	return w.tree, nil
}
