package crdt

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"slices"
	"time"

	"github.com/formthefog/formation/crdt/stmt"
)

// Bounds of what is kept of changes that an epoch left out.
const (
	omittedFor   = 7 * 24 * time.Hour
	omittedName  = "omitted"
	maxOmitted   = 4 << 20  // bytes of statements in all
	maxOmittedOf = 64 << 10 // and of one instance
	// maxOmittedOnce is how many a State tells of at once.
	maxOmittedOnce = 4096
)

// Omission is a change of an instance that a later epoch of its document began
// without: who began it had not seen it, or it came late. What it set does not
// count; its author may want to say it again.
type Omission struct {
	ID       stmt.ID
	Author   stmt.Key
	Epoch    uint64
	SignedAt int64     // Unix seconds, by its author's clock
	FoundAt  time.Time // by this node's clock
	Root     bool      // the whole of another root of the same epoch
	Ops      []Op
}

// prior is which changes of the epochs before, from first to epoch, a document has
// taken in, or has been found to have left out.
type prior struct {
	first, epoch uint64
	ids          []priorID
}

// priorID is a change: its epoch and the first 8 bytes of its ID.
type priorID struct{ epoch, id uint64 }

// maxPriorIDs is how many there are of epochs before the last one: of a burst of
// short ones, during which others may still be at work on an earlier one.
const maxPriorIDs = 16

func priorOf(id stmt.ID, epoch uint64) priorID {
	return priorID{epoch, binary.BigEndian.Uint64(id[:8])}
}

// missed says whether a statement of an older epoch is one that was left out. It cannot be told where the older epoch was never held.
func (p *prior) missed(id stmt.ID, epoch uint64) bool {
	return p.epoch != 0 && p.first <= epoch && epoch <= p.epoch && !slices.Contains(p.ids, priorOf(id, epoch)) && len(p.ids) < 4*RerootChanges
}

// succeed notes what a root with these heads takes in of the document it replaces,
// and tells of what it leaves out.
func (s *State) succeed(d *document, heads []stmt.ID, epoch uint64) prior {
	p := prior{first: d.epoch, epoch: d.epoch}
	if old := d.prior; old.epoch != 0 && old.epoch+1 == d.epoch {
		p.first = old.first
		p.ids = append(make([]priorID, 0, len(old.ids)+len(d.order)), old.ids...)
		for len(p.ids) > maxPriorIDs && p.first < d.epoch {
			p.ids = slices.DeleteFunc(p.ids, func(x priorID) bool { return x.epoch == p.first })
			p.first++
		}
	}
	taken := map[stmt.ID]bool{}
	for todo := slices.Clone(heads); len(todo) > 0; {
		id := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if c := d.find(id); c != nil && !taken[id] {
			todo = append(todo, c.deps...)
		}
		taken[id] = true
	}
	for _, c := range d.order {
		// A root is taken in by whoever goes on from it, and one that lost to
		// another of its epoch is not.
		if !taken[c.id] && (c != d.root || d.epoch == epoch) {
			s.omit(d.id, c.rec)
		}
		p.ids = append(p.ids, priorOf(c.id, c.epoch))
	}
	return p
}

// omission is what a State tells its Replica.
type omission struct {
	doc DocID
	rec
}

// omit tells of a change that does not count because of a later epoch.
func (s *State) omit(id DocID, r rec) {
	if s.tellOmitted && len(s.omitted) < maxOmittedOnce {
		s.omitted = append(s.omitted, omission{id, r})
	}
}

// late tells of a change of the epoch before that comes after the document's root.
func (s *State) late(d *document, r rec) {
	if d.prior.missed(r.id, r.epoch) {
		d.prior.ids = append(d.prior.ids, priorOf(r.id, r.epoch))
		s.omit(d.id, r)
	}
}

// keptOmission is an omission on disk and in memory.
type keptOmission struct {
	_   struct{} `cbor:",toarray"`
	Doc DocID
	At  int64 // Unix seconds
	Raw []byte
	id  stmt.ID
}

// omissions are what a Replica keeps of them: the latest, within the bounds.
type omissions struct {
	list  []keptOmission // oldest first
	dirty bool
}

func (o *omissions) add(k keptOmission) {
	if slices.ContainsFunc(o.list, func(h keptOmission) bool { return h.id == k.id }) {
		return
	}
	o.list, o.dirty = append(o.list, k), true
	o.fit(maxOmittedOf, func(h keptOmission) bool { return h.Doc == k.Doc })
	o.fit(maxOmitted, func(keptOmission) bool { return true })
}

// fit takes out the oldest of those that count until they have at most so many
// bytes.
func (o *omissions) fit(most int, counts func(keptOmission) bool) {
	size := 0
	for _, h := range o.list {
		if counts(h) {
			size += len(h.Raw)
		}
	}
	o.list = slices.DeleteFunc(o.list, func(h keptOmission) bool {
		if !counts(h) || size <= most {
			return false
		}
		size -= len(h.Raw)
		return true
	})
}

// expire takes out what is too old, and what is of no instance any more.
func (o *omissions) expire(now time.Time, live func(DocID) bool) {
	before := len(o.list)
	o.list = slices.DeleteFunc(o.list, func(h keptOmission) bool {
		return !live(h.Doc) || now.Sub(time.Unix(h.At, 0)) > omittedFor
	})
	o.dirty = o.dirty || len(o.list) < before
}

// takeOmitted keeps what the state has told of. Under mu.
func (r *Replica) takeOmitted() {
	for _, x := range r.state.omitted {
		r.omissions.add(keptOmission{Doc: x.doc, At: r.cfg.Now().Unix(), Raw: x.raw, id: x.id})
	}
	r.state.omitted = nil
}

// flushOmitted brings them to disk. They are this node's own knowledge and no
// part of the state: losing them loses a report. Under mu.
func (r *Replica) flushOmitted() {
	o := &r.omissions
	o.expire(r.cfg.Now(), func(id DocID) bool { return r.state.docs.get(id) != nil })
	if !o.dirty {
		return
	}
	o.dirty = false
	b, err := stmt.Marshal(o.list)
	if err == nil {
		err = writeAtomic(r.fsys, omittedName, func(w io.Writer) error {
			_, err := w.Write(append(binary.LittleEndian.AppendUint32(nil, crc32.Checksum(b, castagnoli)), b...))
			return err
		})
	}
	if err != nil {
		r.cfg.Logger.Warn("which changes an epoch has left out is not kept over a restart", "err", err)
	}
}

// loadOmitted takes up what the file says; a damaged one counts as none.
func (r *Replica) loadOmitted() error {
	b, err := readSmall(r.fsys, omittedName, 2*maxOmitted)
	if err != nil {
		return fmt.Errorf("read %s: %w", omittedName, err)
	}
	list, err := decodeOmitted(b, r.cfg.Network)
	if err != nil {
		r.cfg.Logger.Warn("which changes an epoch has left out is not known any more", "err", err)
	}
	r.omissions.list = list
	return nil
}

func decodeOmitted(b []byte, network stmt.NetworkID) (list []keptOmission, err error) {
	if len(b) == 0 {
		return nil, nil
	}
	if len(b) < 4 || crc32.Checksum(b[4:], castagnoli) != binary.LittleEndian.Uint32(b) {
		return nil, fmt.Errorf("%s is damaged", omittedName)
	}
	if err := stmt.Unmarshal(b[4:], &list); err != nil {
		return nil, fmt.Errorf("%s: %w", omittedName, err)
	}
	for i := range list {
		st, err := stmt.Peek(list[i].Raw, network)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", omittedName, err)
		}
		list[i].id = st.ID
	}
	return list, nil
}

// Omitted returns the changes of an instance that its present epoch, or an earlier
// one, began without, as far as this node has seen them in the last seven days,
// the latest last. Other nodes may know of others.
func (r *Replica) Omitted(instance string) []Omission {
	id, err := ParseDocID(instance)
	if err != nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []Omission
	for _, h := range r.omissions.list {
		if h.Doc != id {
			continue
		}
		st, err := stmt.Peek(h.Raw, r.cfg.Network) // its signature was verified when it came
		if err != nil {
			continue
		}
		if b, c, err := decodeSpec(st); err == nil {
			out = append(out, Omission{
				ID: st.ID, Author: st.Author, Epoch: st.Epoch, SignedAt: st.Time, FoundAt: time.Unix(h.At, 0), Root: b.isRoot(), Ops: c.Ops,
			})
		}
	}
	return out
}

// OmittedInstances is how many changes were left out, by instance ID.
func (r *Replica) OmittedInstances() map[string]int {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := map[string]int{}
	for _, h := range r.omissions.list {
		out[h.Doc.String()]++
	}
	return out
}
