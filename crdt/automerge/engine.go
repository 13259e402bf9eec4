//go:build cgo

package automerge

import (
	"container/list"
	"encoding/hex"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"time"

	am "github.com/automerge/automerge-go"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/stmt"
)

// Name says which engine New returns.
const Name = "automerge"

const (
	// maxOpen is how many documents are open at once, about 11 KiB of native
	// memory each.
	maxOpen = 256
	// collectEvery is after how many discarded native documents the garbage
	// collector is run: it cannot see their memory, and frees them only when it
	// finds their small Go halves.
	collectEvery = 1024
	// prefix of a stored value: makes every put unique, because the library
	// leaves out a put that changes nothing, and with it the op's counter.
	valuePrefix = 9
)

// New returns the Automerge engine.
func New() crdt.SpecEngine { return newEngine(maxOpen) }

type engine struct {
	// mu holds transactions together: the library locks single calls only.
	mu      sync.Mutex
	limit   int
	docs    map[crdt.DocID]*doc
	open    *list.List // of *doc, most recently used first
	dropped int
}

type doc struct {
	am     *am.Doc                   // nil while closed
	saved  []byte                    // of a closed document; our own bytes, never a peer's
	hashes map[stmt.ID]am.ChangeHash // of every change
	elem   *list.Element             // place in engine.open; nil while closed
}

func newEngine(limit int) *engine {
	return &engine{limit: limit, docs: map[crdt.DocID]*doc{}, open: list.New()}
}

func (e *engine) Root(id crdt.DocID, root crdt.Change) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	d := &doc{am: am.New(), hashes: map[stmt.ID]am.ChangeHash{}}
	h, err := replay(d.am, root)
	if err != nil {
		return fmt.Errorf("automerge: root of %s: %w", id, err)
	}
	d.hashes[root.ID] = h
	e.drop(id)
	e.docs[id] = d
	d.elem = e.open.PushFront(d)
	return e.shrink()
}

func (e *engine) Apply(id crdt.DocID, c crdt.Change) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := e.apply(id, c); err != nil {
		return fmt.Errorf("automerge: apply to %s: %w", id, err)
	}
	return nil
}

func (e *engine) apply(id crdt.DocID, c crdt.Change) error {
	d, err := e.use(id)
	if err != nil {
		return err
	}
	deps := make([]am.ChangeHash, len(c.Deps))
	for i, dep := range c.Deps {
		h, ok := d.hashes[dep]
		if !ok {
			return fmt.Errorf("dependency %.8s: %w", dep, crdt.ErrPending)
		}
		deps[i] = h
	}
	// A fork has exactly the past of the change, and takes the blame when
	// something goes wrong half-way: the library cannot roll back.
	fork, err := d.am.Fork(deps...)
	if err != nil {
		return fmt.Errorf("fork: %w", err)
	}
	defer e.discarded()
	h, err := replay(fork, c)
	if err != nil {
		return err
	}
	if _, err := d.am.Merge(fork); err != nil {
		return fmt.Errorf("merge: %w", err)
	}
	d.hashes[c.ID] = h
	return nil
}

// replay makes c anew on a document whose heads are c's dependencies.
func replay(doc *am.Doc, c crdt.Change) (am.ChangeHash, error) {
	if len(c.Ops) == 0 || len(c.Ops) > crdt.MaxOps {
		return am.ChangeHash{}, fmt.Errorf("%d ops", len(c.Ops))
	}
	if c.Time < 0 || c.Time > stmt.MaxTime {
		return am.ChangeHash{}, fmt.Errorf("time %d", c.Time) // would poison the document
	}
	if err := doc.SetActorID(hex.EncodeToString(c.Actor[:])); err != nil {
		return am.ChangeHash{}, fmt.Errorf("actor: %w", err)
	}
	root := doc.RootMap()
	for i, op := range c.Ops {
		v := make([]byte, 0, valuePrefix+len(op.Value))
		v = append(append(append(v, c.ID[:valuePrefix-1]...), byte(i)), op.Value...)
		if err := root.Set(op.Key, v); err != nil {
			return am.ChangeHash{}, fmt.Errorf("set %q: %w", op.Key, err)
		}
	}
	at := time.Unix(c.Time, 0)
	h, err := doc.Commit("", am.CommitOptions{Time: &at})
	if err != nil {
		return am.ChangeHash{}, fmt.Errorf("commit: %w", err)
	}
	return h, nil
}

func (e *engine) Values(id crdt.DocID) (map[string][]byte, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	d, err := e.use(id)
	if err != nil {
		return nil, fmt.Errorf("automerge: values of %s: %w", id, err)
	}
	vals, err := d.am.RootMap().Values()
	if err != nil {
		return nil, fmt.Errorf("automerge: values of %s: %w", id, err)
	}
	out := make(map[string][]byte, len(vals))
	for k, v := range vals {
		if v.Kind() != am.KindBytes || len(v.Bytes()) <= valuePrefix {
			return nil, fmt.Errorf("automerge: values of %s: %q is no value of ours", id, k)
		}
		if b := v.Bytes()[valuePrefix:]; len(b) != 1 || b[0] != 0xf6 { // null removes
			out[k] = b
		}
	}
	return out, nil
}

func (e *engine) Drop(id crdt.DocID) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.drop(id)
}

func (e *engine) drop(id crdt.DocID) {
	d := e.docs[id]
	if d == nil {
		return
	}
	delete(e.docs, id)
	if d.elem != nil {
		e.open.Remove(d.elem)
		e.discarded()
	}
}

// use opens a document and marks it as used now.
func (e *engine) use(id crdt.DocID) (*doc, error) {
	d := e.docs[id]
	if d == nil {
		return nil, crdt.ErrNotFound
	}
	if d.elem != nil {
		e.open.MoveToFront(d.elem)
		return d, nil
	}
	doc, err := am.Load(d.saved)
	if err != nil {
		return nil, fmt.Errorf("load: %w", err)
	}
	d.am, d.saved = doc, nil
	d.elem = e.open.PushFront(d)
	return d, e.shrink()
}

// shrink closes the documents used least recently.
func (e *engine) shrink() error {
	for e.open.Len() > e.limit {
		d := e.open.Back().Value.(*doc)
		saved := d.am.Save()
		if len(saved) == 0 {
			return errors.New("automerge: a document cannot be saved")
		}
		e.open.Remove(d.elem)
		d.am, d.elem, d.saved = nil, nil, saved
		e.discarded()
	}
	return nil
}

// discarded counts native documents that wait for their finalizer.
func (e *engine) discarded() {
	if e.dropped++; e.dropped >= collectEvery {
		e.dropped = 0
		runtime.GC()
	}
}
