package store

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/ipfs/boxo/chunker"
	"github.com/ipfs/boxo/ipld/unixfs/importer/balanced"
	"github.com/ipfs/boxo/ipld/unixfs/importer/helpers"
	"github.com/ipfs/go-cid"
	ipld "github.com/ipfs/go-ipld-format"
	"github.com/multiformats/go-multihash"
	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
)

// AddImage takes the file at path into the store: it is cut into chunks, hashed,
// and moved (copied, across file systems), so that afterwards the store's file
// is the only one. Nothing may write to it any more. Kind and format are those
// of Entry. An image that is here already is left as it is, and path removed.
func (s *Store) AddImage(ctx context.Context, path, kind, format string) (Entry, error) {
	e, nodes, err := cut(ctx, path, kind, format)
	if err != nil {
		return Entry{}, fmt.Errorf("add image %s: %w", path, err)
	}
	release, err := s.claim(ctx, e.Root)
	if err != nil {
		return Entry{}, fmt.Errorf("add image %s: %w", path, err)
	}
	defer release()
	if err := s.adopt(e, nodes, path); err != nil {
		return Entry{}, fmt.Errorf("add image %s: %w", path, err)
	}
	return e, nil
}

// cut chunks and hashes a file, and gives its interior nodes.
func cut(ctx context.Context, path, kind, format string) (e Entry, nodes interior, err error) {
	f, err := os.Open(path)
	if err != nil {
		return e, nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return e, nil, err
	}
	if !st.Mode().IsRegular() || st.Size() == 0 {
		return e, nil, errors.New("not a regular file with content")
	}
	whole := sha256.New()
	nodes = interior{}
	params := helpers.DagBuilderParams{
		Maxlinks: MaxLinks, RawLeaves: true, Dagserv: nodes,
		CidBuilder: cid.V1Builder{Codec: cid.DagProtobuf, MhType: multihash.SHA2_256},
	}
	db, err := params.New(chunk.NewBuzhash(io.TeeReader(ctxReader{ctx, f}, whole)))
	if err != nil {
		return e, nil, err
	}
	root, err := balanced.Layout(db)
	if err != nil {
		return e, nil, err
	}
	e = Entry{Kind: kind, Root: root.Cid(), Size: st.Size(), SHA256: whole.Sum(nil), Format: format, Chunker: DefaultChunker}
	return e, nodes, e.check()
}

// ctxReader ends a long read when ctx ends.
type ctxReader struct {
	ctx context.Context
	r   io.Reader
}

func (r ctxReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}

// interior collects what the importer makes, leaves left out: they stay in the
// file.
type interior map[cid.Cid][]byte

func (n interior) Add(_ context.Context, nd ipld.Node) error {
	if nd.Cid().Type() != cid.Raw {
		n[nd.Cid()] = nd.RawData()
	}
	return nil
}

func (n interior) AddMany(ctx context.Context, nds []ipld.Node) error {
	for _, nd := range nds {
		if err := n.Add(ctx, nd); err != nil {
			return err
		}
	}
	return nil
}

func (n interior) get(c cid.Cid) ([]byte, error) {
	data, ok := n[c]
	if !ok {
		return nil, ErrNotFound
	}
	return data, nil
}

var errWriteOnly = errors.New("the importer only adds")

func (interior) Get(context.Context, cid.Cid) (ipld.Node, error)            { return nil, errWriteOnly }
func (interior) GetMany(context.Context, []cid.Cid) <-chan *ipld.NodeOption { return nil }
func (interior) Remove(context.Context, cid.Cid) error                      { return errWriteOnly }
func (interior) RemoveMany(context.Context, []cid.Cid) error                { return errWriteOnly }

// adopt moves the file in and records it. The caller holds the entry's claim.
func (s *Store) adopt(e Entry, nodes interior, path string) error {
	old, err := s.touch(e.Root)
	switch {
	case errors.Is(err, ErrNotFound):
	case err != nil:
		return err
	case old.Whole:
		if path != s.imagePath(e.Root) {
			return os.Remove(path)
		}
		return nil
	}
	t, err := readTree(e, nodes.get)
	if err != nil {
		return err
	}
	if err := s.moveIn(path, e); err != nil {
		return err
	}
	r := imageRecord{
		Root: e.Root.Bytes(), Size: e.Size, SHA256: e.SHA256, Kind: e.Kind, Format: e.Format,
		Chunker: e.Chunker, Added: time.Now().Unix(), id: old.id,
	}
	if err := s.index(&r, t, nodes); err != nil {
		return err
	}
	s.noteHashed(r.id)
	if err := os.Remove(s.partPath(e.Root)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// touch renews an image's grace before GC, and reads its record. ErrNotFound.
func (s *Store) touch(root cid.Cid) (r imageRecord, err error) {
	err = s.db.Update(func(tx *bolt.Tx) error {
		if r, err = imageOf(tx, root); err != nil {
			return err
		}
		r.Added = time.Now().Unix()
		return putImage(tx, &r)
	})
	return r, err
}

// moveIn makes path the image file: durable under its final name.
func (s *Store) moveIn(path string, e Entry) error {
	final := s.imagePath(e.Root)
	err := os.Rename(path, final+".tmp")
	if errors.Is(err, unix.EXDEV) {
		if err = copyFile(path, final+".tmp"); err == nil {
			err = os.Remove(path)
		}
	}
	if err != nil {
		return err
	}
	return settle(final+".tmp", final)
}

// settle makes a file read-only and durable, and gives it its final name.
func settle(tmp, final string) error {
	if err := os.Chmod(tmp, 0o444); err != nil {
		return err
	}
	if err := syncPath(tmp); err != nil {
		return err
	}
	if err := os.Rename(tmp, final); err != nil {
		return err
	}
	return syncPath(filepath.Dir(final))
}

func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// indexBatch bounds the memory of one transaction.
const indexBatch = 16384

// index records an image whose file is in place, whole at the last step.
func (s *Store) index(r *imageRecord, t *tree, nodes interior) error {
	r.Whole = false
	err := s.db.Update(func(tx *bolt.Tx) error {
		for c, data := range nodes {
			if err := putNode(tx, c, data); err != nil {
				return err
			}
		}
		return putImage(tx, r)
	})
	if err != nil {
		return fmt.Errorf("index: %w", err)
	}
	for from := 0; from < t.leaves(); from += indexBatch {
		to := min(from+indexBatch, t.leaves())
		err := s.db.Update(func(tx *bolt.Tx) error {
			for i := from; i < to; i++ {
				off, length := t.span(i)
				if err := putLeaf(tx, t.digest(i), location{r.id, off, length}); err != nil {
					return err
				}
			}
			r.Whole = to == t.leaves()
			return putImage(tx, r)
		})
		if err != nil {
			return fmt.Errorf("index: %w", err)
		}
	}
	return nil
}

// Path is the image file of an entry, mode 0444, to be opened read-only. It
// stays until GC removes the image. ErrNotFound, ErrIncomplete.
func (s *Store) Path(e Entry) (string, error) {
	r, err := s.image(e.Root)
	if err != nil {
		return "", fmt.Errorf("image %s: %w", e.Root, err)
	}
	if !r.Whole {
		return "", fmt.Errorf("image %s: %w", e.Root, ErrIncomplete)
	}
	return s.imagePath(e.Root), nil
}

// claim makes the caller the only one that brings an entry into being. It waits
// for whoever has it.
func (s *Store) claim(ctx context.Context, root cid.Cid) (release func(), err error) {
	for {
		s.mu.Lock()
		wait, taken := s.claims[root]
		if !taken {
			done := make(chan struct{})
			s.claims[root] = done
			s.mu.Unlock()
			return func() {
				s.mu.Lock()
				delete(s.claims, root)
				s.mu.Unlock()
				close(done)
			}, nil
		}
		s.mu.Unlock()
		select {
		case <-wait:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}
