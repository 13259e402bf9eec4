package store

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/ipfs/go-cid"
	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
)

// bits is a bitmap, least significant bit first.
type bits []byte

func newBits(n int) bits      { return make(bits, (n+7)/8) }
func (b bits) has(i int) bool { return i/8 < len(b) && b[i/8]>>(i%8)&1 == 1 }
func (b bits) set(i int)      { b[i/8] |= 1 << (i % 8) }

// part is an image on its way: a preallocated file, the tree, and which leaves
// are in place. The database's index is its journal: it lists leaves only after
// the data is durable.
type part struct {
	s      *Store
	entry  Entry
	record imageRecord
	tree   *tree
	file   *os.File

	mu      sync.Mutex
	have    bits
	missing int     // leaves
	bytes   int64   // in place
	gone    bool    // discarded
	fresh   []int32 // leaves in place that no checkpoint lists

	release sync.Once   // of the claim, when finished or given up
	claimed func()      // releases the claim
	repeats map[int]int // leaves whose content comes before in the same image, and where

	saving  sync.Mutex // held while the index is written and while the file is closed
	closed  bool
	hashing sync.Mutex // held by the one goroutine that advances whole
	whole   hash.Hash  // of the leaves before next
	next    int
	buf     []byte
}

// openPart opens or creates the part of an entry. Leaves that the journal lists
// are taken as they are; what was written after the last checkpoint is hashed.
func (s *Store) openPart(e Entry, t *tree) (*part, error) {
	p := &part{s: s, entry: e, tree: t, have: newBits(t.leaves()), missing: t.leaves(), whole: sha256.New()}
	var err error
	if p.record, err = s.partRecord(e); err != nil {
		return nil, err
	}
	p.file, err = os.OpenFile(s.partPath(e.Root), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := p.prepare(); err != nil {
		return nil, errors.Join(fmt.Errorf("part %s: %w", e.Root, err), p.file.Close())
	}
	p.repeats = t.duplicates()
	return p, nil
}

// partRecord records an image on its way. A record that is there keeps its number,
// and with it the journal.
func (s *Store) partRecord(e Entry) (r imageRecord, err error) {
	err = s.db.Update(func(tx *bolt.Tx) error {
		r, err = imageOf(tx, e.Root)
		if err != nil && !errors.Is(err, ErrNotFound) {
			return err
		}
		r = imageRecord{
			Root: e.Root.Bytes(), Size: e.Size, SHA256: e.SHA256, Kind: e.Kind, Format: e.Format,
			Chunker: e.Chunker, Added: time.Now().Unix(), id: r.id, old: r.id != 0,
		}
		return putImage(tx, &r)
	})
	return r, err
}

func (p *part) prepare() error {
	st, err := p.file.Stat()
	if err != nil {
		return err
	}
	if st.Size() == p.entry.Size {
		if err := p.readJournal(); err != nil {
			return err
		}
		return p.adoptWritten()
	}
	if err := p.file.Truncate(0); err != nil {
		return err
	}
	if p.record.old {
		if err := p.forgetJournal(); err != nil {
			return err
		}
	}
	if err := p.allocate(); err != nil {
		return errors.Join(err, p.discard()) // half of it would fill the disk for nothing
	}
	return nil
}

func (p *part) allocate() error {
	if err := p.s.needSpace(p.entry.Size); err != nil {
		return err
	}
	if err := p.s.disk.allocate(p.file, p.entry.Size); err != nil {
		return fmt.Errorf("allocate %d bytes: %w", p.entry.Size, noSpace(err))
	}
	return nil
}

// forgetJournal drops what an index says of a file that is not there.
func (p *part) forgetJournal() error {
	return p.s.db.Update(func(tx *bolt.Tx) error {
		b := tx.Bucket(bLeaves)
		for i := range p.tree.leaves() {
			if err := b.Delete(leafKey(p.tree.digest(i), p.record.id)); err != nil {
				return err
			}
		}
		return nil
	})
}

func (p *part) readJournal() error {
	return p.s.db.View(func(tx *bolt.Tx) error {
		for i := range p.tree.leaves() {
			off, length := p.tree.span(i)
			if l, ok := leafIn(tx, p.tree.digest(i), p.record.id); ok && l.off == off && l.length == length {
				p.mark(i, false)
			}
		}
		return nil
	})
}

// adoptWritten hashes the leaves that lie in written parts of the file and that
// the journal does not list: after a kill they are all good, after a power cut
// some are.
func (p *part) adoptWritten() error {
	buf := make([]byte, MaxChunk)
	for off := int64(0); off < p.entry.Size; {
		start, err := unix.Seek(int(p.file.Fd()), off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("seek: %w", err)
		}
		end, err := unix.Seek(int(p.file.Fd()), start, unix.SEEK_HOLE)
		if err != nil {
			return fmt.Errorf("seek: %w", err)
		}
		for i := p.tree.leafAt(start); i < p.tree.leaves(); i++ {
			at, length := p.tree.span(i)
			if at >= end {
				break
			}
			if p.has(i) {
				continue
			}
			if _, err := p.file.ReadAt(buf[:length], at); err != nil {
				return err
			}
			if sha256.Sum256(buf[:length]) == p.tree.digest(i) {
				p.mark(i, true)
			}
		}
		off = end
	}
	return nil
}

func (p *part) has(i int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.have.has(i)
}

func (p *part) bitmap() []byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	return bytes.Clone(p.have)
}

func (p *part) state() (missing int, inPlace int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.missing, p.bytes
}

// mark notes a leaf as in place; fresh ones wait for a checkpoint. It says
// whether the leaf was new.
func (p *part) mark(i int, fresh bool) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.have.has(i) {
		return false
	}
	_, length := p.tree.span(i)
	p.have.set(i)
	p.missing--
	p.bytes += length
	if fresh {
		p.fresh = append(p.fresh, int32(i))
	}
	return true
}

// put verifies a leaf and writes it; advance is the caller's to call. ErrCorrupt if it is not what the tree says.
// added is false for one that was there.
func (p *part) put(i int, data []byte) (added bool, err error) {
	if sha256.Sum256(data) != p.tree.digest(i) {
		return false, fmt.Errorf("%w: leaf %d of %s", errOther, i, p.entry.Root)
	}
	return p.putVerified(i, data)
}

// putVerified is put for data whose hash the caller has computed.
func (p *part) putVerified(i int, data []byte) (added bool, err error) {
	off, length := p.tree.span(i)
	if int64(len(data)) != length {
		return false, fmt.Errorf("%w: leaf %d of %s has %d bytes", ErrCorrupt, i, p.entry.Root, len(data))
	}
	if p.has(i) {
		return false, nil
	}
	if _, err := p.s.disk.writeAt(p.file, data, off); err != nil {
		return false, fmt.Errorf("write %s: %w", p.entry.Root, noSpace(err))
	}
	return p.mark(i, true), nil
}

// advance moves the whole-file hash on over leaves in place. Leaf i, just
// written, need not be read again; a goroutine that finds another one at it
// leaves the work to that one.
func (p *part) advance(i int, data []byte) error {
	if !p.hashing.TryLock() {
		return nil
	}
	defer p.hashing.Unlock()
	return p.hashOn(i, data)
}

// hashOn is advance for who holds hashing.
func (p *part) hashOn(i int, data []byte) error {
	for p.next < p.tree.leaves() && p.has(p.next) {
		if p.next == i && data != nil {
			p.whole.Write(data)
			p.next++
			continue
		}
		off, length := p.tree.span(p.next)
		if p.buf == nil {
			p.buf = make([]byte, MaxChunk)
		}
		if _, err := p.file.ReadAt(p.buf[:length], off); err != nil {
			return fmt.Errorf("read %s: %w", p.entry.Root, err)
		}
		p.whole.Write(p.buf[:length])
		p.next++
	}
	return nil
}

// writeBack starts writing what is in place to disk, so that the next sync is
// short. It promises nothing.
func (p *part) writeBack() error {
	p.saving.Lock()
	defer p.saving.Unlock()
	p.mu.Lock()
	fresh := len(p.fresh)
	p.mu.Unlock()
	if fresh == 0 || p.closed {
		return nil
	}
	if err := startWriteback(p.file); err != nil {
		return fmt.Errorf("write back %s: %w", p.entry.Root, err)
	}
	return nil
}

// checkpoint makes what is in place durable and lists it: data first, then
// index.
func (p *part) checkpoint() error {
	p.saving.Lock()
	defer p.saving.Unlock()
	p.mu.Lock()
	fresh := p.fresh
	p.fresh = nil
	p.mu.Unlock()
	if len(fresh) == 0 || p.closed {
		return nil
	}
	if err := syncData(p.file); err != nil {
		return fmt.Errorf("sync %s: %w", p.entry.Root, noSpace(err))
	}
	for len(fresh) > 0 {
		batch := fresh[:min(len(fresh), indexBatch)]
		fresh = fresh[len(batch):]
		if err := p.list(batch); err != nil {
			return err
		}
	}
	return nil
}

// finish turns a part with every leaf into an image. On ErrCorrupt (the file is
// not what the entry declares, though each chunk is) nothing is left of it.
func (p *part) finish() error {
	sum, err := p.sum()
	if err != nil {
		return err
	}
	if !bytes.Equal(sum, p.entry.SHA256) {
		return errors.Join(fmt.Errorf("%w: image %s has another SHA-256 than declared", ErrCorrupt, p.entry.Root), p.discard())
	}
	return p.become()
}

// sum is the SHA-256 of the whole file, after whoever still hashes has done so.
// ErrIncomplete while leaves are missing.
func (p *part) sum() ([]byte, error) {
	p.hashing.Lock()
	defer p.hashing.Unlock()
	if err := p.hashOn(-1, nil); err != nil {
		return nil, err
	}
	if p.next != p.tree.leaves() {
		return nil, fmt.Errorf("image %s: %w", p.entry.Root, ErrIncomplete)
	}
	return p.whole.Sum(nil), nil
}

// become gives the image its final name, durably, and records it.
func (p *part) become() error {
	p.saving.Lock()
	defer p.saving.Unlock()
	if err := p.file.Chmod(0o444); err != nil {
		return fmt.Errorf("image %s: %w", p.entry.Root, err)
	}
	if err := p.file.Sync(); err != nil {
		return fmt.Errorf("image %s: %w", p.entry.Root, err)
	}
	final := p.s.imagePath(p.entry.Root)
	if err := os.Rename(p.s.partPath(p.entry.Root), final); err != nil {
		return fmt.Errorf("image %s: %w", p.entry.Root, err)
	}
	if err := syncPath(filepath.Dir(final)); err != nil {
		return fmt.Errorf("image %s: %w", p.entry.Root, err)
	}
	for {
		fresh := p.takeFresh(indexBatch)
		p.record.Whole = len(fresh) < indexBatch
		if err := p.list(fresh); err != nil {
			return err
		}
		if p.record.Whole {
			p.s.noteHashed(p.record.id)
			return nil
		}
	}
}

// takeFresh takes up to n leaves that no checkpoint lists.
func (p *part) takeFresh(n int) []int32 {
	p.mu.Lock()
	defer p.mu.Unlock()
	fresh := p.fresh[:min(n, len(p.fresh))]
	p.fresh = p.fresh[len(fresh):]
	return fresh
}

// list puts durable leaves into the index, with the record as it is.
func (p *part) list(leaves []int32) error {
	err := p.s.db.Update(func(tx *bolt.Tx) error {
		for _, i := range leaves {
			off, length := p.tree.span(int(i))
			if err := putLeaf(tx, p.tree.digest(int(i)), location{p.record.id, off, length}); err != nil {
				return err
			}
		}
		if p.record.Whole {
			return putImage(tx, &p.record)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("index %s: %w", p.entry.Root, err)
	}
	return nil
}

// discard removes all there is of a part, once.
func (p *part) discard() error {
	p.mu.Lock()
	again := p.gone
	p.fresh, p.gone = nil, true
	p.mu.Unlock()
	if again {
		return nil
	}
	return errors.Join(p.s.forget(map[uint32]bool{p.record.id: true}), os.Remove(p.s.partPath(p.entry.Root)))
}

// close ends work on the part and keeps what came. A part of which nothing came
// goes: it would only take space.
func (p *part) close() error {
	err := p.checkpoint()
	if _, inPlace := p.state(); inPlace == 0 {
		err = errors.Join(err, p.discard())
	}
	p.saving.Lock()
	defer p.saving.Unlock()
	p.closed = true
	return errors.Join(err, p.file.Close())
}

// leafCID names a leaf.
func (p *part) leafCID(i int) cid.Cid { return cidOfDigest(cid.Raw, p.tree.digest(i)) }
