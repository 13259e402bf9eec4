package store

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"time"

	"github.com/ipfs/go-cid"
	bolt "go.etcd.io/bbolt"
)

// PutPack signs a pack, stores and pins it. Version and Author are filled in. Its
// base and layers must be complete here: ErrIncomplete. A root that breaks a
// bound is ErrCorrupt or ErrTooLarge and nothing is stored.
func (s *Store) PutPack(ctx context.Context, r Root, key ed25519.PrivateKey) (cid.Cid, error) {
	pub, err := publicKey(key)
	if err != nil {
		return cid.Undef, fmt.Errorf("put pack: %w", err)
	}
	r.Version, r.Author = Version, pub
	if err := r.check(); err != nil {
		return cid.Undef, fmt.Errorf("put pack %s: %w", r.Name, err)
	}
	base, err := s.Base(ctx, r.Base)
	if err != nil {
		return cid.Undef, fmt.Errorf("put pack %s: base: %w", r.Name, err)
	}
	entries := append(base.Entries(), r.Layers...)
	c, err := s.putRoot(r.wire(), kindPack, entries, key)
	if err != nil {
		return cid.Undef, fmt.Errorf("put pack %s: %w", r.Name, err)
	}
	return c, nil
}

// PutBase signs a base, stores and pins it. Version and Author are filled in. Its
// images must be complete here: ErrIncomplete.
func (s *Store) PutBase(ctx context.Context, b Base, key ed25519.PrivateKey) (cid.Cid, error) {
	pub, err := publicKey(key)
	if err != nil {
		return cid.Undef, fmt.Errorf("put base: %w", err)
	}
	b.Version, b.Author = Version, pub
	if err := b.check(); err != nil {
		return cid.Undef, fmt.Errorf("put base %s: %w", b.Name, err)
	}
	c, err := s.putRoot(b.wire(), kindBase, b.Entries(), key)
	if err != nil {
		return cid.Undef, fmt.Errorf("put base %s: %w", b.Name, err)
	}
	return c, nil
}

func publicKey(key ed25519.PrivateKey) (ed25519.PublicKey, error) {
	if len(key) != ed25519.PrivateKeySize {
		return nil, errors.New("not an Ed25519 private key")
	}
	return key.Public().(ed25519.PublicKey), nil
}

func (s *Store) putRoot(wire any, kind string, entries []Entry, key ed25519.PrivateKey) (cid.Cid, error) {
	if _, err := totalSize(entries, s.cfg.MaxPack); err != nil {
		return cid.Undef, err
	}
	data, c, err := encodeNode(wire, MaxRoot)
	if err != nil {
		return cid.Undef, err
	}
	sig, sigCID, err := sign(c, key)
	if err != nil {
		return cid.Undef, err
	}
	err = s.db.Update(func(tx *bolt.Tx) error {
		for _, e := range entries {
			r, err := imageOf(tx, e.Root)
			if err != nil {
				return fmt.Errorf("image %s: %w", e.Root, errors.Join(ErrIncomplete, err))
			}
			if !r.Whole {
				return fmt.Errorf("image %s: %w", e.Root, ErrIncomplete)
			}
			if have, err := r.entry(); err != nil || have.Size != e.Size || string(have.SHA256) != string(e.SHA256) {
				return fmt.Errorf("%w: entry %s is not the image of that CID", ErrCorrupt, e.Root)
			}
		}
		return putSigned(tx, signed{c, kind, data, sigCID, sig}, true)
	})
	return c, err
}

// signed is a root node with the signature beside it.
type signed struct {
	cid  cid.Cid
	kind string
	data []byte
	sig  cid.Cid
	seal []byte // the signature block
}

// putSigned stores a root; pin also pins it, which says it is whole.
func putSigned(tx *bolt.Tx, r signed, pin bool) error {
	if err := putNode(tx, r.cid, r.data); err != nil {
		return err
	}
	if err := putNode(tx, r.sig, r.seal); err != nil {
		return err
	}
	var old rootRecord
	switch err := getRecord(tx, bRoots, r.cid.Bytes(), &old); {
	case errors.Is(err, ErrNotFound):
		old = rootRecord{Kind: r.kind, Sig: r.sig.Bytes(), Added: time.Now().Unix()}
	case err != nil:
		return err
	}
	if pin {
		old.Whole = true
		if err := tx.Bucket(bPins).Put(r.cid.Bytes(), []byte{}); err != nil {
			return err
		}
	}
	return putRecord(tx, bRoots, r.cid.Bytes(), old)
}

// root reads and verifies a root node and its signature.
func (s *Store) root(c cid.Cid) (node, error) {
	r, n, err := s.signedRoot(c)
	if err != nil {
		return node{}, err
	}
	return n, checkSignature(r.seal, c, n.author())
}

func (s *Store) signedRoot(c cid.Cid) (r signed, n node, err error) {
	if err := CheckCID(c); err != nil {
		return r, n, err
	}
	rec, err := s.rootRecord(c)
	if err != nil {
		return r, n, err
	}
	r.cid, r.kind = c, rec.Kind
	if r.sig, err = cid.Cast(rec.Sig); err != nil {
		return r, n, fmt.Errorf("%w: signature CID: %w", ErrCorrupt, err)
	}
	if r.data, err = s.node(c); err != nil {
		return r, n, err
	}
	if r.seal, err = s.node(r.sig); err != nil {
		return r, n, err
	}
	n, err = decodeRoot(r.data)
	return r, n, err
}

// Pack reads a pack's root node and verifies its signature. ErrNotFound also
// when c is here and no pack; ErrCorrupt.
func (s *Store) Pack(_ context.Context, c cid.Cid) (*Root, error) {
	n, err := s.root(c)
	if err == nil && n.pack == nil {
		err = fmt.Errorf("%w: it is a base", ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("pack %s: %w", c, err)
	}
	return n.pack, nil
}

// Base reads a base's root node and verifies its signature. ErrNotFound also
// when c is here and no base; ErrCorrupt.
func (s *Store) Base(_ context.Context, c cid.Cid) (*Base, error) {
	n, err := s.root(c)
	if err == nil && n.base == nil {
		err = fmt.Errorf("%w: it is a pack", ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("base %s: %w", c, err)
	}
	return n.base, nil
}

// allEntries lists the images of a pack with its base, or of a base: the base's
// first, each entry root once.
func (s *Store) allEntries(n node) ([]Entry, error) {
	var all []Entry
	if n.pack != nil {
		base, err := s.root(n.pack.Base)
		if err != nil {
			return nil, fmt.Errorf("base %s: %w", n.pack.Base, err)
		}
		if base.base == nil {
			return nil, fmt.Errorf("%w: base %s is no base", ErrCorrupt, n.pack.Base)
		}
		all = base.base.Entries()
	}
	return unique(append(all, n.entries()...)), nil
}

func unique(entries []Entry) []Entry {
	seen := map[cid.Cid]bool{}
	out := entries[:0:0]
	for _, e := range entries {
		if !seen[e.Root] {
			seen[e.Root] = true
			out = append(out, e)
		}
	}
	return out
}

// Complete says whether a pack with its base, a base, or the image of an entry
// root is here whole. What the store does not know is not complete, and no error.
func (s *Store) Complete(_ context.Context, c cid.Cid) (bool, error) {
	switch r, err := s.image(c); {
	case err == nil:
		return r.Whole, nil
	case !errors.Is(err, ErrNotFound):
		return false, fmt.Errorf("complete %s: %w", c, err)
	}
	n, err := s.root(c)
	if err == nil {
		var all []Entry
		if all, err = s.allEntries(n); err == nil {
			return s.haveAll(all)
		}
	}
	if errors.Is(err, ErrNotFound) {
		return false, nil
	}
	return false, fmt.Errorf("complete %s: %w", c, err)
}

func (s *Store) haveAll(entries []Entry) (bool, error) {
	for _, e := range entries {
		r, err := s.image(e.Root)
		if errors.Is(err, ErrNotFound) || err == nil && !r.Whole {
			return false, nil
		}
		if err != nil {
			return false, err
		}
	}
	return true, nil
}
