package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/ipfs/boxo/blockstore"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	ipld "github.com/ipfs/go-ipld-format"
	bolt "go.etcd.io/bbolt"
)

// Blocks is a read-only view of every block here: nodes, and chunks out of the
// image files, those still arriving included. Each is hashed when it is read; a
// chunk that rotted on disk is as good as absent, and logged.
func (s *Store) Blocks() blockstore.Blockstore { return view{s} }

type view struct{ s *Store }

var errReadOnly = errors.New("blocks enter the store through AddImage, Fetch and Import")

func (v view) Get(_ context.Context, c cid.Cid) (blocks.Block, error) {
	data, err := v.s.block(c)
	if errors.Is(err, ErrNotFound) {
		return nil, ipld.ErrNotFound{Cid: c}
	}
	if err != nil {
		return nil, err
	}
	return blocks.NewBlockWithCid(data, c)
}

func (v view) Has(ctx context.Context, c cid.Cid) (bool, error) {
	_, err := v.GetSize(ctx, c)
	if ipld.IsNotFound(err) {
		return false, nil
	}
	return err == nil, err
}

func (v view) GetSize(_ context.Context, c cid.Cid) (int, error) {
	if CheckCID(c) != nil {
		return -1, ipld.ErrNotFound{Cid: c}
	}
	size := -1
	err := v.s.db.View(func(tx *bolt.Tx) error {
		d := digestOf(c)
		if data := tx.Bucket(bNodes).Get(d[:]); data != nil {
			size = len(data)
		} else if places := leafPlaces(tx, d); len(places) > 0 {
			size = int(places[0].length)
		}
		return nil
	})
	if err != nil {
		return -1, err
	}
	if size < 0 {
		return -1, ipld.ErrNotFound{Cid: c}
	}
	return size, nil
}

func (view) Put(context.Context, blocks.Block) error       { return errReadOnly }
func (view) PutMany(context.Context, []blocks.Block) error { return errReadOnly }
func (view) DeleteBlock(context.Context, cid.Cid) error    { return errReadOnly }

// AllKeysChan lists the blocks as raw CIDs, as blockstores do.
func (v view) AllKeysChan(ctx context.Context) (<-chan cid.Cid, error) {
	out := make(chan cid.Cid)
	go func() {
		defer close(out)
		for _, bucket := range [][]byte{bNodes, bLeaves} {
			var after []byte
			for {
				keys := v.s.keysAfter(bucket, after)
				if len(keys) == 0 {
					break
				}
				for _, k := range keys {
					select {
					case out <- cidOfDigest(cid.Raw, digest(k[:32])):
					case <-ctx.Done():
						return
					}
				}
				after = keys[len(keys)-1]
			}
		}
	}()
	return out, nil
}

// keysAfter copies up to 1,024 keys with distinct digests, so that no
// transaction is open while a reader dawdles.
func (s *Store) keysAfter(bucket, after []byte) [][]byte {
	var out [][]byte
	err := s.db.View(func(tx *bolt.Tx) error {
		c := tx.Bucket(bucket).Cursor()
		k, _ := c.First()
		if after != nil {
			k, _ = c.Seek(append(bytes.Clone(after), 0))
		}
		last := after
		for ; k != nil && len(out) < 1024; k, _ = c.Next() {
			if len(k) < 32 || last != nil && bytes.Equal(k[:32], last[:32]) {
				continue
			}
			last = bytes.Clone(k)
			out = append(out, last)
		}
		return nil
	})
	if err != nil { // only a closed database: nothing is left to list
		return nil
	}
	return out
}

// block reads and verifies any block. ErrNotFound.
func (s *Store) block(c cid.Cid) ([]byte, error) {
	if CheckCID(c) != nil {
		return nil, ErrNotFound
	}
	data, err := s.node(c)
	if !errors.Is(err, ErrNotFound) {
		return data, err
	}
	return s.chunk(digestOf(c))
}

// chunk reads a leaf from whichever image has it, verified. ErrNotFound.
func (s *Store) chunk(d digest) ([]byte, error) {
	var places []location
	var paths []string
	err := s.db.View(func(tx *bolt.Tx) error {
		for _, l := range leafPlaces(tx, d) {
			p, err := s.pathOf(tx, l.image)
			if err != nil {
				return err
			}
			places, paths = append(places, l), append(paths, p)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("chunk: %w", err)
	}
	for i, l := range places {
		if l.length < 1 || l.length > MaxChunk {
			continue
		}
		buf := make([]byte, l.length)
		if err := readAt(paths[i], l.off, buf); err != nil {
			s.log.Warn("cannot read a chunk", "image", paths[i], "offset", l.off, "err", err)
			continue
		}
		if s.lately(l.image) {
			return buf, nil
		}
		if err := verifyBlock(cidOfDigest(cid.Raw, d), buf); err != nil {
			s.log.Warn("a chunk has changed on disk; export, remove and fetch the image again", "image", paths[i], "offset", l.off, "err", err)
			continue
		}
		return buf, nil
	}
	return nil, ErrNotFound
}

// pathOf is the file of an image, whole or arriving.
func (s *Store) pathOf(tx *bolt.Tx, image uint32) (string, error) {
	var r imageRecord
	if err := getRecord(tx, bImages, imageKey(image), &r); err != nil {
		return "", err
	}
	e, err := r.entry()
	if err != nil {
		return "", err
	}
	if r.Whole {
		return s.imagePath(e.Root), nil
	}
	return s.partPath(e.Root), nil
}

func readAt(path string, off int64, buf []byte) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	_, err = f.ReadAt(buf, off)
	return errors.Join(err, f.Close())
}
