package store

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"time"

	"github.com/ipfs/go-cid"
	bolt "go.etcd.io/bbolt"
)

// GC deletes what nothing refers to: marked are pins, fetches and additions in
// flight, names, and the packs, bases and entry roots that keep lists (running
// VMs, live specs; it is called once and may be nil). Images younger than
// Config.Grace that no pack refers to yet are left alone, so a build under way
// loses nothing. freed counts bytes of image files.
func (s *Store) GC(_ context.Context, keep func() []cid.Cid) (freed int64, err error) {
	// In one write transaction, so that no image is added, recorded as used, or
	// pinned between mark and sweep.
	err = s.db.Update(func(tx *bolt.Tx) error {
		var roots []cid.Cid
		if keep != nil {
			roots = append(roots, keep()...)
		}
		roots = append(roots, s.inFlight()...)
		if err := eachKey(tx, bPins, &roots); err != nil {
			return err
		}
		if err := eachName(tx, func(n Name) { roots = append(roots, n.CID) }); err != nil {
			return err
		}
		m := marker{tx: tx, log: s.log, nodes: map[digest]bool{}, images: map[cid.Cid]bool{}, cutoff: time.Now().Add(-s.cfg.Grace).Unix()}
		for _, c := range roots {
			m.mark(c)
		}
		freed, err = s.sweep(tx, m)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("gc: %w", err)
	}
	return freed, nil
}

func (s *Store) inFlight() []cid.Cid {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []cid.Cid
	for c := range s.jobs {
		out = append(out, c)
	}
	for c := range s.claims {
		out = append(out, c)
	}
	return out
}

type marker struct {
	tx     *bolt.Tx
	log    *slog.Logger
	nodes  map[digest]bool
	images map[cid.Cid]bool // entry roots
	cutoff int64            // unix seconds; younger unreferenced images stay
}

// mark follows a root as far as it is here and can be read. Specs name what they
// like: a CID that names nothing keeps nothing, a node that is no root, or a
// damaged one, only itself; neither may keep the rest from being collected.
func (m *marker) mark(c cid.Cid) {
	if CheckCID(c) != nil {
		return
	}
	if c.Type() != cid.DagCBOR {
		m.markImage(c)
		return
	}
	d := digestOf(c)
	data := m.tx.Bucket(bNodes).Get(d[:])
	if m.nodes[d] || data == nil {
		return
	}
	m.nodes[d] = true
	if err := m.markSeal(c); err != nil {
		m.log.Warn("cannot follow a signature; keeping its root", "pack", c, "err", err)
	}
	n, err := decodeRoot(data)
	if err != nil {
		m.log.Warn("cannot follow a kept node; keeping it alone", "pack", c, "err", err)
		return
	}
	if n.pack != nil {
		m.mark(n.pack.Base)
	}
	for _, e := range n.entries() {
		m.markImage(e.Root)
	}
}

// markSeal keeps the signature block of a root.
func (m *marker) markSeal(root cid.Cid) error {
	var rec rootRecord
	err := getRecord(m.tx, bRoots, root.Bytes(), &rec)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	sig, err := cid.Cast(rec.Sig)
	if err != nil {
		return err
	}
	if err := CheckCID(sig); err != nil {
		return err
	}
	m.nodes[digestOf(sig)] = true
	return nil
}

// markImage keeps an image and the interior nodes over it, as far as they can be
// read.
func (m *marker) markImage(root cid.Cid) {
	if m.images[root] {
		return
	}
	m.images[root] = true
	if err := m.markTree(root); err != nil {
		m.log.Warn("cannot follow an image's nodes; keeping the image", "entry", root, "err", err)
	}
}

func (m *marker) markTree(root cid.Cid) error {
	r, err := imageOf(m.tx, root)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	e, err := r.entry()
	if err != nil {
		return err
	}
	w, err := newWalk(e)
	if err != nil {
		return err
	}
	for c, ok := w.next(); ok; c, ok = w.next() {
		d := digestOf(c)
		m.nodes[d] = true
		data := m.tx.Bucket(bNodes).Get(d[:])
		if data == nil { // a fetch that has only begun
			return nil
		}
		if err := w.add(data); err != nil {
			return err
		}
	}
	return nil
}

// sweep deletes images, roots and nodes that are not marked.
func (s *Store) sweep(tx *bolt.Tx, m marker) (freed int64, err error) {
	dead := map[uint32]bool{}
	var files []string
	err = eachImage(tx, func(r imageRecord) error {
		e, err := r.entry()
		if err != nil {
			return err
		}
		switch {
		case m.images[e.Root]:
		case r.Added > m.cutoff:
			m.markImage(e.Root)
		default:
			dead[r.id] = true
			freed += r.Size
			files = append(files, s.imagePath(e.Root), s.partPath(e.Root))
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	if err := forgetImages(tx, dead); err != nil {
		return 0, err
	}
	if err := sweepKeys(tx, bRoots, func(k []byte) bool {
		c, err := cid.Cast(k)
		return err == nil && CheckCID(c) == nil && m.nodes[digestOf(c)]
	}); err != nil {
		return 0, err
	}
	if err := sweepKeys(tx, bNodes, func(k []byte) bool { return len(k) == sha256.Size && m.nodes[digest(k)] }); err != nil {
		return 0, err
	}
	// Before the commit: once it is done, an addition may use the names again.
	// If the commit fails, Open finds the files missing and forgets the records.
	for _, f := range files {
		if err := os.Remove(f); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return 0, err
		}
	}
	return freed, nil
}

func sweepKeys(tx *bolt.Tx, bucket []byte, live func(k []byte) bool) error {
	var dead [][]byte
	err := tx.Bucket(bucket).ForEach(func(k, _ []byte) error {
		if !live(k) {
			dead = append(dead, bytes.Clone(k))
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, k := range dead {
		if err := tx.Bucket(bucket).Delete(k); err != nil {
			return err
		}
	}
	return nil
}

// Verify re-reads a whole pack, base or entry root from disk and hashes it:
// ErrCorrupt names the first image whose bytes have changed, ErrIncomplete what is
// missing.
func (s *Store) Verify(ctx context.Context, c cid.Cid) error {
	var entries []Entry
	if r, err := s.image(c); err == nil {
		e, err := r.entry()
		if err != nil {
			return err
		}
		entries = []Entry{e}
	} else {
		n, err := s.root(c)
		if err != nil {
			return fmt.Errorf("verify %s: %w", c, err)
		}
		if entries, err = s.allEntries(n); err != nil {
			return fmt.Errorf("verify %s: %w", c, err)
		}
	}
	for _, e := range entries {
		if err := s.verifyImage(ctx, e); err != nil {
			return fmt.Errorf("verify %s: %w", c, err)
		}
	}
	return nil
}

func (s *Store) verifyImage(ctx context.Context, e Entry) error {
	path, err := s.Path(e)
	if err != nil {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	whole := sha256.New()
	if _, err := io.Copy(whole, ctxReader{ctx, f}); err != nil {
		return fmt.Errorf("image %s: %w", e.Root, err)
	}
	if !bytes.Equal(whole.Sum(nil), e.SHA256) {
		return fmt.Errorf("image %s: %w", e.Root, ErrCorrupt)
	}
	return nil
}
