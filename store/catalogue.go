package store

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/ipfs/go-cid"
	bolt "go.etcd.io/bbolt"
)

// Pin keeps c (a pack, a base or an entry root, here already or not) and what it
// links from GC.
func (s *Store) Pin(_ context.Context, c cid.Cid) error {
	if err := CheckCID(c); err != nil {
		return fmt.Errorf("pin: %w", err)
	}
	err := s.db.Update(func(tx *bolt.Tx) error { return tx.Bucket(bPins).Put(c.Bytes(), []byte{}) })
	if err != nil {
		return fmt.Errorf("pin %s: %w", c, err)
	}
	return nil
}

// Unpin ends Pin. Unpinning what is not pinned is no error.
func (s *Store) Unpin(_ context.Context, c cid.Cid) error {
	err := s.db.Update(func(tx *bolt.Tx) error { return tx.Bucket(bPins).Delete(c.Bytes()) })
	if err != nil {
		return fmt.Errorf("unpin %s: %w", c, err)
	}
	return nil
}

// Pins lists what is pinned, sorted by the CID's bytes.
func (s *Store) Pins(_ context.Context) ([]cid.Cid, error) {
	var out []cid.Cid
	err := s.db.View(func(tx *bolt.Tx) error { return eachKey(tx, bPins, &out) })
	if err != nil {
		return nil, fmt.Errorf("pins: %w", err)
	}
	return out, nil
}

func eachKey(tx *bolt.Tx, bucket []byte, out *[]cid.Cid) error {
	return tx.Bucket(bucket).ForEach(func(k, _ []byte) error {
		c, err := cid.Cast(bytes.Clone(k))
		if err != nil {
			return fmt.Errorf("%w: %s key: %w", ErrCorrupt, bucket, err)
		}
		*out = append(*out, c)
		return nil
	})
}

// List shows packs and bases that are or were whole here, sorted by name and CID.
func (s *Store) List(ctx context.Context) ([]Info, error) {
	var roots []cid.Cid
	pinned := map[cid.Cid]bool{}
	err := s.db.View(func(tx *bolt.Tx) error {
		var pins []cid.Cid
		if err := eachKey(tx, bPins, &pins); err != nil {
			return err
		}
		for _, c := range pins {
			pinned[c] = true
		}
		return eachKey(tx, bRoots, &roots)
	})
	if err != nil {
		return nil, fmt.Errorf("list: %w", err)
	}
	var out []Info
	for _, c := range roots {
		i, err := s.info(ctx, c)
		if errors.Is(err, ErrNotFound) { // removed meanwhile
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("list %s: %w", c, err)
		}
		i.Pinned = pinned[c]
		out = append(out, i)
	}
	slices.SortFunc(out, func(a, b Info) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), bytes.Compare(a.CID.Bytes(), b.CID.Bytes()))
	})
	return out, nil
}

func (s *Store) info(ctx context.Context, c cid.Cid) (Info, error) {
	n, err := s.root(c)
	if err != nil {
		return Info{}, err
	}
	rec, err := s.rootRecord(c)
	if err != nil {
		return Info{}, err
	}
	i := Info{CID: c, Kind: rec.Kind, Author: n.author(), Added: time.Unix(rec.Added, 0).UTC()}
	entries := n.entries()
	if n.pack != nil {
		i.Name, i.Base = n.pack.Name, n.pack.Base
		all, err := s.allEntries(n)
		if errors.Is(err, ErrNotFound) { // a fetch has just begun
			return i, nil
		}
		if err != nil {
			return i, err
		}
		entries = all
	} else {
		i.Name = n.base.Name
	}
	for _, e := range entries {
		i.Size += e.Size
	}
	i.Complete, err = s.haveAll(entries)
	return i, err
}

// Remove unpins and forgets a pack or base, and the names given to it; GC frees
// its images when nothing else refers to them. ErrNotFound.
func (s *Store) Remove(_ context.Context, c cid.Cid) error {
	err := s.db.Update(func(tx *bolt.Tx) error {
		if tx.Bucket(bRoots).Get(c.Bytes()) == nil {
			return ErrNotFound
		}
		var named [][]byte
		err := tx.Bucket(bNames).ForEach(func(k, _ []byte) error {
			var r nameRecord
			if err := getRecord(tx, bNames, k, &r); err != nil {
				return err
			}
			if bytes.Equal(r.CID, c.Bytes()) {
				named = append(named, bytes.Clone(k))
			}
			return nil
		})
		if err != nil {
			return err
		}
		for _, k := range named {
			if err := tx.Bucket(bNames).Delete(k); err != nil {
				return err
			}
		}
		if err := tx.Bucket(bPins).Delete(c.Bytes()); err != nil {
			return err
		}
		return tx.Bucket(bRoots).Delete(c.Bytes())
	})
	if err != nil {
		return fmt.Errorf("remove %s: %w", c, err)
	}
	return nil
}

// SetName gives a base a local name such as "debian:12", replacing what the name
// meant. Publisher is the key that said so, nil for this machine; whether it is
// trusted is the caller's business. The base need not be here.
func (s *Store) SetName(name string, c cid.Cid, publisher ed25519.PublicKey) error {
	if !baseName.MatchString(name) {
		return fmt.Errorf("set name: %q is no base name", name)
	}
	if err := CheckCID(c); err != nil {
		return fmt.Errorf("set name %s: %w", name, err)
	}
	err := s.db.Update(func(tx *bolt.Tx) error {
		return putRecord(tx, bNames, []byte(name), nameRecord{CID: c.Bytes(), Publisher: publisher, Set: time.Now().Unix()})
	})
	if err != nil {
		return fmt.Errorf("set name %s: %w", name, err)
	}
	return nil
}

// Resolve looks a local name up. ErrNotFound.
func (s *Store) Resolve(name string) (cid.Cid, error) {
	var r nameRecord
	err := s.db.View(func(tx *bolt.Tx) error { return getRecord(tx, bNames, []byte(name), &r) })
	if err != nil {
		return cid.Undef, fmt.Errorf("name %q: %w", name, err)
	}
	c, err := cid.Cast(r.CID)
	if err != nil {
		return cid.Undef, fmt.Errorf("name %q: %w: %w", name, ErrCorrupt, err)
	}
	return c, nil
}

// Names lists local names, sorted.
func (s *Store) Names() ([]Name, error) {
	var out []Name
	err := s.db.View(func(tx *bolt.Tx) error {
		return eachName(tx, func(n Name) { out = append(out, n) })
	})
	if err != nil {
		return nil, fmt.Errorf("names: %w", err)
	}
	return out, nil
}

func eachName(tx *bolt.Tx, visit func(Name)) error {
	return tx.Bucket(bNames).ForEach(func(k, _ []byte) error {
		var r nameRecord
		if err := getRecord(tx, bNames, k, &r); err != nil {
			return err
		}
		c, err := cid.Cast(r.CID)
		if err != nil {
			return fmt.Errorf("%w: name %s: %w", ErrCorrupt, k, err)
		}
		visit(Name{Name: string(k), CID: c, Publisher: r.Publisher, Set: time.Unix(r.Set, 0).UTC()})
		return nil
	})
}
