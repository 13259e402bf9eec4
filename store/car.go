package store

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/ipfs/go-cid"
)

// carHeader is the first section of a CAR v1.
type carHeader struct {
	Roots   []link `cbor:"roots"`
	Version uint64 `cbor:"version"`
}

const (
	maxCarHeader = 4 << 10
	maxSeals     = 16 // signature blocks remembered while importing
)

// ExportOption changes Export.
type ExportOption func(*exportOptions)

type exportOptions struct{ noBase bool }

// WithoutBase leaves the base's images out (its node stays); importing then needs
// them there already.
func WithoutBase() ExportOption { return func(o *exportOptions) { o.noBase = true } }

// Export writes a pack with its base, or a base, as a CAR v1 with that one root:
// root node, signature, base's node and signature, interior nodes, leaves, each
// block once. ErrNotFound, ErrIncomplete.
func (s *Store) Export(ctx context.Context, c cid.Cid, w io.Writer, opts ...ExportOption) error {
	var o exportOptions
	for _, opt := range opts {
		opt(&o)
	}
	if err := s.export(ctx, c, w, o); err != nil {
		return fmt.Errorf("export %s: %w", c, err)
	}
	return nil
}

func (s *Store) export(ctx context.Context, c cid.Cid, w io.Writer, o exportOptions) error {
	n, err := s.root(c)
	if err != nil {
		return err
	}
	out := &carWriter{w: bufio.NewWriterSize(w, 256<<10), seen: map[digest]bool{}}
	if err := out.header(c); err != nil {
		return err
	}
	entries := n.entries()
	if err := s.exportRoot(out, c); err != nil {
		return err
	}
	if n.pack != nil {
		if err := s.exportRoot(out, n.pack.Base); err != nil {
			return err
		}
		if !o.noBase {
			if entries, err = s.allEntries(n); err != nil {
				return err
			}
		}
	}
	for _, e := range entries {
		if err := s.exportImage(ctx, out, e); err != nil {
			return fmt.Errorf("image %s: %w", e.Root, err)
		}
	}
	return out.w.Flush()
}

func (s *Store) exportRoot(out *carWriter, c cid.Cid) error {
	r, n, err := s.signedRoot(c)
	if err != nil {
		return err
	}
	if err := checkSignature(r.seal, c, n.author()); err != nil {
		return err
	}
	if err := out.block(c, r.data); err != nil {
		return err
	}
	return out.block(r.sig, r.seal)
}

func (s *Store) exportImage(ctx context.Context, out *carWriter, e Entry) error {
	path, err := s.Path(e)
	if err != nil {
		return err
	}
	t, err := readTree(e, func(c cid.Cid) ([]byte, error) {
		data, err := s.node(c)
		if err != nil {
			return nil, err
		}
		return data, out.block(c, data)
	})
	if err != nil {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	buf := make([]byte, MaxChunk)
	for i := range t.leaves() {
		if err := ctx.Err(); err != nil {
			return err
		}
		off, length := t.span(i)
		if _, err := f.ReadAt(buf[:length], off); err != nil {
			return err
		}
		c := cidOfDigest(cid.Raw, t.digest(i))
		if err := verifyBlock(c, buf[:length]); err != nil {
			return err
		}
		if err := out.block(c, buf[:length]); err != nil {
			return err
		}
	}
	return nil
}

type carWriter struct {
	w    *bufio.Writer
	seen map[digest]bool
}

func (o *carWriter) header(root cid.Cid) error {
	data, err := encoder.Marshal(carHeader{Roots: []link{{root}}, Version: 1})
	if err != nil {
		return err
	}
	return o.section(data)
}

func (o *carWriter) block(c cid.Cid, data []byte) error {
	if o.seen[digestOf(c)] {
		return nil
	}
	o.seen[digestOf(c)] = true
	return o.section(c.Bytes(), data)
}

func (o *carWriter) section(chunks ...[]byte) error {
	n := 0
	for _, b := range chunks {
		n += len(b)
	}
	if _, err := o.w.Write(binary.AppendUvarint(nil, uint64(n))); err != nil {
		return err
	}
	for _, b := range chunks {
		if _, err := o.w.Write(b); err != nil {
			return err
		}
	}
	return nil
}

// Import takes a CAR v1 with one root in: wholly, pinned, or not at all. Every
// block in it must match its CID, and everything that Fetch checks is checked.
// Blocks may come in any order. A reader that is an io.ReaderAt (a file, read
// from its start) is not copied first. ErrCorrupt, ErrTooLarge, ErrIncomplete.
func (s *Store) Import(ctx context.Context, r io.Reader) (cid.Cid, error) {
	c, err := s.importCAR(ctx, r)
	if err != nil {
		return cid.Undef, fmt.Errorf("import: %w", err)
	}
	return c, nil
}

func (s *Store) importCAR(ctx context.Context, r io.Reader) (cid.Cid, error) {
	at, seekable := r.(io.ReaderAt)
	if seekable {
		r = io.NewSectionReader(at, 0, 1<<62)
	} else {
		tmp, err := os.CreateTemp(filepath.Join(s.cfg.Dir, "images"), "import-*.tmp")
		if err != nil {
			return cid.Undef, err
		}
		defer os.Remove(tmp.Name())
		defer tmp.Close()
		at, r = tmp, io.TeeReader(r, tmp)
	}
	car, err := readCAR(ctxReader{ctx, r}, s.cfg.MaxPack)
	if err != nil {
		return cid.Undef, err
	}
	car.at = at
	return car.root, s.take(ctx, car)
}

// carIndex says where in a CAR its blocks are. All of them matched their CIDs.
type carIndex struct {
	at     io.ReaderAt
	root   cid.Cid
	blocks map[digest]location
	seals  map[cid.Cid][]byte // signature blocks by what they sign
}

func readCAR(r io.Reader, limit int64) (*carIndex, error) {
	in := &carReader{r: bufio.NewReaderSize(r, 256<<10)}
	head, err := in.section(maxCarHeader)
	if err != nil {
		return nil, carError(err)
	}
	var h carHeader
	if err := decodeNode(head, maxCarHeader, &h); err != nil {
		return nil, fmt.Errorf("CAR header: %w", err)
	}
	if h.Version != 1 || len(h.Roots) != 1 {
		return nil, fmt.Errorf("%w: CAR of version %d with %d roots, not 1 with 1", ErrCorrupt, h.Version, len(h.Roots))
	}
	x := &carIndex{root: h.Roots[0].Cid, blocks: map[digest]location{}, seals: map[cid.Cid][]byte{}}
	for {
		sec, err := in.section(MaxChunk + 64)
		if errors.Is(err, io.EOF) {
			return x, nil
		}
		if err != nil {
			return nil, carError(err)
		}
		if in.pos > limit+limit/8+(64<<20) {
			return nil, fmt.Errorf("%w: CAR of more than %d bytes", ErrTooLarge, in.pos)
		}
		n, c, err := cid.CidFromBytes(sec)
		if err != nil {
			return nil, carError(err)
		}
		if err := verifyBlock(c, sec[n:]); err != nil {
			return nil, err
		}
		x.add(c, sec[n:], in.pos-int64(len(sec)-n))
	}
}

func carError(err error) error {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return fmt.Errorf("%w: not a whole CAR: %w", ErrCorrupt, err)
}

func (x *carIndex) add(c cid.Cid, data []byte, off int64) {
	x.blocks[digestOf(c)] = location{off: off, length: int64(len(data))}
	if c.Type() != cid.DagCBOR || len(data) > MaxSignature || len(x.seals) >= maxSeals {
		return
	}
	var w wireSig
	if decodeNode(data, MaxSignature, &w) == nil && w.Kind == kindSig {
		x.seals[w.Pack.Cid] = bytes.Clone(data)
	}
}

func (x *carIndex) read(d digest, buf []byte) ([]byte, error) {
	l, ok := x.blocks[d]
	if !ok {
		return nil, ErrNotFound
	}
	if int64(cap(buf)) < l.length {
		buf = make([]byte, l.length)
	}
	buf = buf[:l.length]
	_, err := x.at.ReadAt(buf, l.off)
	return buf, err
}

// described gives a block of a description from the CAR.
func (x *carIndex) described(w want) ([]byte, error) {
	if !w.seal {
		return x.read(digestOf(w.cid), nil)
	}
	if seal, ok := x.seals[w.cid]; ok {
		return seal, nil
	}
	return nil, ErrNotFound
}

type carReader struct {
	r   *bufio.Reader
	pos int64
	buf []byte
}

// section reads one; the result is valid until the next call. io.EOF only at the
// end of a section.
func (c *carReader) section(limit int) ([]byte, error) {
	n, size, err := c.uvarint()
	if err != nil {
		return nil, err
	}
	if n == 0 || n > uint64(limit) {
		return nil, fmt.Errorf("section of %d bytes", n)
	}
	if uint64(cap(c.buf)) < n {
		c.buf = make([]byte, n)
	}
	if _, err := io.ReadFull(c.r, c.buf[:n]); err != nil {
		return nil, errors.Join(io.ErrUnexpectedEOF, ignoreEOF(err))
	}
	c.pos += int64(size) + int64(n)
	return c.buf[:n], nil
}

func (c *carReader) uvarint() (v uint64, size int, err error) {
	for shift := 0; shift < 35; shift += 7 {
		b, err := c.r.ReadByte()
		if err != nil {
			if size > 0 {
				return 0, 0, errors.Join(io.ErrUnexpectedEOF, ignoreEOF(err))
			}
			return 0, 0, err
		}
		size++
		v |= uint64(b&0x7f) << shift
		if b < 0x80 {
			return v, size, nil
		}
	}
	return 0, 0, errors.New("length of a section is too long")
}

// ignoreEOF keeps "ended in the middle" from looking like "ended".
func ignoreEOF(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return nil
	}
	return err
}
