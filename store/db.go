package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/ipfs/go-cid"
	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

// Buckets of the database. Numbers in keys and values are big endian.
var (
	bNodes  = []byte("nodes")  // digest → block: interior nodes, roots, signatures
	bRoots  = []byte("roots")  // root CID → rootRecord
	bImages = []byte("images") // image number uint32 → imageRecord
	bByRoot = []byte("byroot") // entry root CID → image number
	bLeaves = []byte("leaves") // digest, image number → offset uint64, length uint32
	bPins   = []byte("pins")   // CID → nothing
	bNames  = []byte("names")  // name → nameRecord
)

// rootRecord says what is beside a root node.
type rootRecord struct {
	Kind  string `cbor:"kind"`
	Sig   []byte `cbor:"sig"`   // CID of the signature block
	Whole bool   `cbor:"whole"` // everything was here once; images are checked when asked
	Added int64  `cbor:"added"` // unix seconds
}

// imageRecord is one image file, whole or on its way.
type imageRecord struct {
	Root    []byte `cbor:"root"` // entry root CID
	Size    int64  `cbor:"size"`
	SHA256  []byte `cbor:"sha256"`
	Kind    string `cbor:"kind"`
	Format  string `cbor:"format"`
	Chunker string `cbor:"chunker"`
	Whole   bool   `cbor:"whole"`
	Added   int64  `cbor:"added"` // unix seconds

	id  uint32
	old bool // it was there before this fetch
}

type nameRecord struct {
	CID       []byte `cbor:"cid"`
	Publisher []byte `cbor:"publisher,omitempty"`
	Set       int64  `cbor:"set"`
}

func (r imageRecord) entry() (Entry, error) {
	c, err := cid.Cast(r.Root)
	if err != nil {
		return Entry{}, fmt.Errorf("%w: image record: %w", ErrCorrupt, err)
	}
	return Entry{Kind: r.Kind, Root: c, Size: r.Size, SHA256: r.SHA256, Format: r.Format, Chunker: r.Chunker}, nil
}

// location is where a chunk lies.
type location struct {
	image  uint32
	off    int64
	length int64
}

func openDB(dir string, wait time.Duration) (*bolt.DB, error) {
	db, err := bolt.Open(filepath.Join(dir, "store.db"), 0o600, &bolt.Options{
		Timeout: wait, FreelistType: bolt.FreelistMapType, NoFreelistSync: true,
	})
	if errors.Is(err, bolterrors.ErrTimeout) {
		return nil, fmt.Errorf("%w: %s", ErrLocked, dir)
	}
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", filepath.Join(dir, "store.db"), err)
	}
	err = db.Update(func(tx *bolt.Tx) error {
		for _, b := range [][]byte{bNodes, bRoots, bImages, bByRoot, bLeaves, bPins, bNames} {
			if _, err := tx.CreateBucketIfNotExists(b); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open store: %w", err), db.Close())
	}
	return db, nil
}

func putRecord(tx *bolt.Tx, bucket, key []byte, v any) error {
	raw, err := encoder.Marshal(v)
	if err != nil {
		return err
	}
	return tx.Bucket(bucket).Put(key, raw)
}

// getRecord says ErrNotFound for an absent key.
func getRecord(tx *bolt.Tx, bucket, key []byte, v any) error {
	raw := tx.Bucket(bucket).Get(key)
	if raw == nil {
		return ErrNotFound
	}
	if err := decoder.Unmarshal(raw, v); err != nil {
		return fmt.Errorf("%w: %s record: %w", ErrCorrupt, bucket, err)
	}
	return nil
}

func imageKey(id uint32) []byte { return binary.BigEndian.AppendUint32(nil, id) }

// imageOf finds the record of an entry root.
func imageOf(tx *bolt.Tx, root cid.Cid) (r imageRecord, err error) {
	key := tx.Bucket(bByRoot).Get(root.Bytes())
	if key == nil {
		return r, ErrNotFound
	}
	err = getRecord(tx, bImages, key, &r)
	r.id = binary.BigEndian.Uint32(key)
	return r, err
}

// putImage writes a record; a new one (id 0) gets a number.
func putImage(tx *bolt.Tx, r *imageRecord) error {
	if r.id == 0 {
		seq, err := tx.Bucket(bImages).NextSequence()
		if err != nil {
			return err
		}
		r.id = uint32(seq)
	}
	if err := putRecord(tx, bImages, imageKey(r.id), *r); err != nil {
		return err
	}
	return tx.Bucket(bByRoot).Put(r.Root, imageKey(r.id))
}

func leafKey(d digest, image uint32) []byte {
	return binary.BigEndian.AppendUint32(append(make([]byte, 0, 36), d[:]...), image)
}

func putLeaf(tx *bolt.Tx, d digest, l location) error {
	v := binary.BigEndian.AppendUint64(make([]byte, 0, 12), uint64(l.off))
	v = binary.BigEndian.AppendUint32(v, uint32(l.length))
	return tx.Bucket(bLeaves).Put(leafKey(d, l.image), v)
}

// leafPlaces lists where a chunk lies, whichever image it belongs to.
func leafPlaces(tx *bolt.Tx, d digest) []location {
	var out []location
	c := tx.Bucket(bLeaves).Cursor()
	for k, v := c.Seek(d[:]); k != nil && bytes.HasPrefix(k, d[:]); k, v = c.Next() {
		if len(k) != 36 || len(v) != 12 {
			continue
		}
		out = append(out, location{
			image:  binary.BigEndian.Uint32(k[32:]),
			off:    int64(binary.BigEndian.Uint64(v)),
			length: int64(binary.BigEndian.Uint32(v[8:])),
		})
	}
	return out
}

// leafIn finds a chunk in one image.
func leafIn(tx *bolt.Tx, d digest, image uint32) (l location, ok bool) {
	v := tx.Bucket(bLeaves).Get(leafKey(d, image))
	if len(v) != 12 {
		return l, false
	}
	return location{image: image, off: int64(binary.BigEndian.Uint64(v)), length: int64(binary.BigEndian.Uint32(v[8:]))}, true
}

// dropLeaves forgets all chunks of the images. One pass over the index, since
// keys are ordered by digest.
func dropLeaves(tx *bolt.Tx, images map[uint32]bool) error {
	c := tx.Bucket(bLeaves).Cursor()
	var dead [][]byte
	for k, _ := c.First(); k != nil; k, _ = c.Next() {
		if len(k) == 36 && images[binary.BigEndian.Uint32(k[32:])] {
			dead = append(dead, bytes.Clone(k))
		}
	}
	for _, k := range dead {
		if err := tx.Bucket(bLeaves).Delete(k); err != nil {
			return err
		}
	}
	return nil
}

// node reads a stored block that is no leaf; the copy belongs to the caller.
// ErrNotFound, ErrCorrupt.
func (s *Store) node(c cid.Cid) ([]byte, error) {
	if err := CheckCID(c); err != nil {
		return nil, err
	}
	d := digestOf(c)
	var data []byte
	err := s.db.View(func(tx *bolt.Tx) error {
		data = bytes.Clone(tx.Bucket(bNodes).Get(d[:]))
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read node: %w", err)
	}
	if data == nil {
		return nil, fmt.Errorf("node %s: %w", c, ErrNotFound)
	}
	if err := verifyBlock(c, data); err != nil {
		return nil, err
	}
	return data, nil
}

func putNode(tx *bolt.Tx, c cid.Cid, data []byte) error {
	d := digestOf(c)
	return tx.Bucket(bNodes).Put(d[:], data)
}

// image reads the record of an entry root. ErrNotFound.
func (s *Store) image(root cid.Cid) (r imageRecord, err error) {
	err = s.db.View(func(tx *bolt.Tx) error {
		r, err = imageOf(tx, root)
		return err
	})
	return r, err
}

// rootRecord reads what is kept beside a root. ErrNotFound.
func (s *Store) rootRecord(c cid.Cid) (r rootRecord, err error) {
	err = s.db.View(func(tx *bolt.Tx) error { return getRecord(tx, bRoots, c.Bytes(), &r) })
	return r, err
}

// eachImage visits all image records.
func eachImage(tx *bolt.Tx, visit func(imageRecord) error) error {
	return tx.Bucket(bImages).ForEach(func(k, _ []byte) error {
		var r imageRecord
		if err := getRecord(tx, bImages, k, &r); err != nil {
			return err
		}
		r.id = binary.BigEndian.Uint32(k)
		return visit(r)
	})
}
