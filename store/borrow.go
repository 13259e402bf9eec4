package store

import (
	"errors"
	"fmt"

	bolt "go.etcd.io/bbolt"
)

// borrow copies leaves that other images of the store hold, and repeats within
// this one. It returns how many bytes that gave.
func (p *part) borrow() (int64, error) {
	type found struct {
		leaf int
		path string
		off  int64
	}
	var todo []found
	err := p.s.db.View(func(tx *bolt.Tx) error {
		paths := map[uint32]string{}
		for i := range p.tree.leaves() {
			if p.has(i) {
				continue
			}
			if first, ok := p.repeats[i]; ok && p.has(first) {
				off, _ := p.tree.span(first)
				todo = append(todo, found{i, p.s.partPath(p.entry.Root), off})
				continue
			}
			for _, l := range leafPlaces(tx, p.tree.digest(i)) {
				if _, ok := paths[l.image]; !ok {
					path, err := p.s.pathOf(tx, l.image)
					if err != nil {
						return err
					}
					paths[l.image] = path
				}
				todo = append(todo, found{i, paths[l.image], l.off})
				break
			}
		}
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("look for chunks: %w", err)
	}
	buf := make([]byte, MaxChunk)
	var gained int64
	for _, f := range todo {
		_, length := p.tree.span(f.leaf)
		if err := readAt(f.path, f.off, buf[:length]); err != nil {
			p.s.log.Debug("cannot borrow a chunk", "from", f.path, "err", err)
			continue
		}
		switch added, err := p.put(f.leaf, buf[:length]); {
		case errors.Is(err, ErrCorrupt):
			p.s.log.Warn("a chunk has changed on disk", "image", f.path, "offset", f.off)
		case err != nil:
			return gained, err
		case added:
			gained += length
		}
	}
	return gained, nil
}
