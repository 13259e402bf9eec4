package store

import (
	"context"
	"errors"
	"fmt"
	"os"
)

// take makes a CAR whose blocks are verified part of the store. On an error
// nothing of it stays.
func (s *Store) take(ctx context.Context, car *carIndex) (err error) {
	d := newDescription(car.root, s.cfg.MaxPack)
	for {
		w, ok := d.next()
		if !ok {
			break
		}
		data, err := car.described(w)
		if errors.Is(err, ErrNotFound) {
			data, err = s.described(w) // a CAR without its base
		}
		if err != nil {
			what := "block"
			if w.seal {
				what = "signature of"
			}
			return fmt.Errorf("%w: %s %s is not in the CAR: %w", ErrCorrupt, what, w.cid, err)
		}
		if err := d.add(data); err != nil {
			return err
		}
	}
	j := &job{s: s, root: car.root}
	parts, closeAll, err := j.open(ctx, d)
	if err != nil {
		return err
	}
	defer closeAll()
	defer func() {
		if err != nil {
			err = errors.Join(err, s.undo(parts))
		}
	}()
	for _, p := range parts {
		if err := car.fill(ctx, p); err != nil {
			return err
		}
	}
	for _, p := range parts {
		if err := p.finish(); err != nil {
			return err
		}
	}
	return s.putDescription(d, true)
}

// fill puts the leaves that a part lacks.
func (x *carIndex) fill(ctx context.Context, p *part) error {
	buf := make([]byte, MaxChunk)
	for i := range p.tree.leaves() {
		if p.has(i) {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		data, err := x.read(p.tree.digest(i), buf)
		if errors.Is(err, ErrNotFound) {
			return fmt.Errorf("%w: chunk %s is not in the CAR", ErrIncomplete, p.leafCID(i))
		}
		if err != nil {
			return err
		}
		if _, err := p.put(i, data); err != nil {
			return err
		}
	}
	return nil
}

// undo removes images that an import began, finished ones too.
func (s *Store) undo(parts []*part) error {
	var errs []error
	for _, p := range parts {
		if p.record.Whole {
			errs = append(errs, s.forget(map[uint32]bool{p.record.id: true}), os.Remove(s.imagePath(p.entry.Root)))
			continue
		}
		errs = append(errs, p.discard())
	}
	return errors.Join(errs...)
}
