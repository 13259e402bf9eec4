package store

import (
	"crypto/ed25519"
	"fmt"

	"github.com/ipfs/go-cid"
)

// description is the check of everything of a pack but its leaves, one block at
// a time in one fixed order, so that sender and receiver need not speak of it and
// the first bad block ends the matter: root node, signature, base's node and
// signature, then each image's interior nodes.
type description struct {
	limit   int64
	roots   []signed // the pack or base asked for, then the pack's base
	root    node
	entries []Entry
	trees   []*tree
	nodes   map[cid.Cid][]byte // interior nodes to store
	stage   int
	asked   cid.Cid
	author  ed25519.PublicKey
	walk    *walk
	pos     int
}

// Stages of a description.
const (
	stageRoot = iota
	stageSeal
	stageBase
	stageBaseSeal
	stageTrees
	stageDone
)

// want is the block wanted next: by CID, or the signature beside a CID.
type want struct {
	cid  cid.Cid
	seal bool
}

func newDescription(root cid.Cid, limit int64) *description {
	return &description{asked: root, limit: limit, nodes: map[cid.Cid][]byte{}}
}

// next is what add must be given; ok is false at the end.
func (d *description) next() (w want, ok bool) {
	switch d.stage {
	case stageRoot:
		return want{cid: d.asked}, true
	case stageSeal:
		return want{cid: d.asked, seal: true}, true
	case stageBase:
		return want{cid: d.root.pack.Base}, true
	case stageBaseSeal:
		return want{cid: d.root.pack.Base, seal: true}, true
	case stageTrees:
		c, ok := d.walk.next()
		return want{cid: c}, ok
	}
	return want{}, false
}

// add checks and takes a block; data may be reused by the caller afterwards.
func (d *description) add(data []byte) error {
	data = append([]byte(nil), data...)
	switch d.stage {
	case stageRoot, stageBase:
		return d.addRoot(data)
	case stageSeal, stageBaseSeal:
		return d.addSeal(data)
	case stageTrees:
		c, _ := d.walk.next()
		if err := d.walk.add(data); err != nil {
			return fmt.Errorf("image %s: %w", d.entries[d.pos].Root, err)
		}
		d.nodes[c] = data
		return d.settle()
	}
	return fmt.Errorf("%w: block too many", ErrCorrupt)
}

func (d *description) addRoot(data []byte) error {
	w, _ := d.next()
	if len(data) > MaxRoot {
		return fmt.Errorf("%w: root node of %d bytes", ErrCorrupt, len(data))
	}
	if err := verifyBlock(w.cid, data); err != nil {
		return err
	}
	n, err := decodeRoot(data)
	if err != nil {
		return fmt.Errorf("root %s: %w", w.cid, err)
	}
	kind := kindPack
	if n.base != nil {
		kind = kindBase
	}
	if d.stage == stageRoot {
		d.root = n
	} else if n.base == nil {
		return fmt.Errorf("%w: base %s is no base", ErrCorrupt, w.cid)
	}
	d.roots = append(d.roots, signed{cid: w.cid, kind: kind, data: data})
	d.author = n.author()
	if n.base != nil { // lowest first
		d.entries = n.base.Entries()
	}
	d.stage++
	return nil
}

func (d *description) addSeal(data []byte) error {
	r := &d.roots[len(d.roots)-1]
	if err := checkSignature(data, r.cid, d.author); err != nil {
		return fmt.Errorf("%w: %w", errOther, err)
	}
	r.seal, r.sig = data, cidOf(cid.DagCBOR, data)
	if d.stage == stageSeal && d.root.pack != nil {
		d.stage = stageBase
		return nil
	}
	if d.root.pack != nil {
		d.entries = append(d.entries, d.root.pack.Layers...)
	}
	d.entries = unique(d.entries)
	if _, err := totalSize(d.entries, d.limit); err != nil {
		return err
	}
	d.stage = stageTrees
	return d.settle()
}

// settle moves on to the next image with an interior node to read.
func (d *description) settle() error {
	for {
		if d.walk != nil {
			if _, ok := d.walk.next(); ok {
				return nil
			}
			d.trees = append(d.trees, d.walk.tree)
			d.pos++
		}
		if d.pos == len(d.entries) {
			d.stage, d.walk = stageDone, nil
			return nil
		}
		var err error
		if d.walk, err = newWalk(d.entries[d.pos]); err != nil {
			return err
		}
	}
}

func (d *description) entryRoots() []cid.Cid {
	out := make([]cid.Cid, len(d.entries))
	for i, e := range d.entries {
		out[i] = e.Root
	}
	return out
}
