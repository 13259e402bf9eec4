package crdt

import (
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	"github.com/formthefog/formation/crdt/stmt"
)

// Author makes an owner's statements. It needs no daemon: it starts from the
// owner's raw statements (Replica.OwnerStatements, GET /v1/owners/{key}/statements)
// and returns new ones to submit to any peer. Several Authors of one owner, on
// several devices, may work at once; their changes merge.
//
// An Author is not safe for concurrent use. It lives for one piece of work:
// load, change, submit. Every Author writes as an actor and a device of its own.
type Author struct {
	// Now gives the display time of statements; time.Now unless replaced.
	Now func() time.Time

	key     ed25519.PrivateKey
	owner   stmt.Key
	state   *State
	device  stmt.Key
	actor   ActorID
	counter uint64
	bursts  map[DocID]uint64 // the epoch begun last in a burst of changes by this Author
}

// NewAuthor returns an author for the owner whose private key is key. raws are
// the owner's statements; statements of others and stale ones are ignored, a
// malformed or forged one is an error.
func NewAuthor(key ed25519.PrivateKey, network stmt.NetworkID, raws [][]byte) (*Author, error) {
	return newAuthor(key, stmt.KeyOf(key), network, raws, rand.Reader)
}

// NewDelegate is NewAuthor for another key than the owner's. It can Set those
// instances that name the key as a delegate, until they have to be re-rooted; all
// else is ErrNotOwner.
func NewDelegate(key ed25519.PrivateKey, owner stmt.Key, network stmt.NetworkID, raws [][]byte) (*Author, error) {
	return newAuthor(key, owner, network, raws, rand.Reader)
}

func newAuthor(key ed25519.PrivateKey, owner stmt.Key, network stmt.NetworkID, raws [][]byte, random io.Reader) (*Author, error) {
	a := &Author{
		Now: time.Now, key: key, owner: owner,
		// A state of an open network: membership is for the peers to judge.
		state:  NewState(network, stmt.Key{}, NewModel()),
		bursts: map[DocID]uint64{},
	}
	if _, err := io.ReadFull(random, a.device[:]); err != nil {
		return nil, fmt.Errorf("author: device: %w", err)
	}
	if _, err := io.ReadFull(random, a.actor[:]); err != nil {
		return nil, fmt.Errorf("author: actor: %w", err)
	}
	for i, raw := range raws {
		st, err := stmt.Verify(raw, network)
		if err != nil {
			return nil, fmt.Errorf("author: statement %d: %w", i, err)
		}
		if OwnerOf(st) == a.owner && (st.Kind == stmt.KindOwner || st.Kind == stmt.KindSpec || st.Kind == stmt.KindSecret) {
			// Stale or early ones are no error: peers hold different sets.
			_, _ = a.state.applyVerified(st, nil, time.Time{})
		}
	}
	return a, nil
}

// Owner returns the owner's public key.
func (a *Author) Owner() stmt.Key { return a.owner }

// ErrNotOwner: it takes the owner's key, and the Author has a delegate's.
var ErrNotOwner = errors.New("crdt: this needs the owner's key")

// asOwner is an error unless the Author has the owner's key.
func (a *Author) asOwner() error {
	if key := stmt.KeyOf(a.key); key != a.owner {
		return fmt.Errorf("%w: %s is not %s", ErrNotOwner, key, a.owner)
	}
	return nil
}

// Instances returns the owner's live instances by ID, as the statements known
// to this Author have them.
func (a *Author) Instances() []Spec { return a.state.View().InstancesOf(a.owner) }

// Create makes a new instance from spec, whose ID, Owner and Generation are
// ignored. The statements belong together: submit all of them. Errors wrap
// ErrInvalid, ErrQuota or stmt.ErrTooLarge.
func (a *Author) Create(spec Spec) (id string, raws [][]byte, err error) {
	if err := a.asOwner(); err != nil {
		return "", nil, fmt.Errorf("create: %w", err)
	}
	if err := spec.validate(); err != nil {
		return "", nil, fmt.Errorf("create: %w", err)
	}
	if o := a.state.owners[a.owner]; o != nil && len(o.live) >= MaxInstances {
		return "", nil, fmt.Errorf("create: %w: %d instances", ErrQuota, MaxInstances)
	}
	counter := a.counter
	doc := InstanceID(a.owner, a.device, counter)
	vals, err := spec.opsFrom(&Spec{})
	if err != nil {
		return "", nil, fmt.Errorf("create: %w", err)
	}
	st, _, err := a.newRoot(vals, sortedKeys(spec.Delegates), a.device, counter, 1, 1, nil)
	if err != nil {
		return "", nil, fmt.Errorf("create: %w", err)
	}
	root, err := stmt.Sign(a.key, st)
	if err != nil {
		return "", nil, fmt.Errorf("create: %w", err)
	}
	page, err := a.signPage(doc, false)
	if err != nil {
		return "", nil, fmt.Errorf("create: %w", err)
	}
	a.counter++
	if err := a.apply(page, root); err != nil {
		return "", nil, fmt.Errorf("create: %w", err)
	}
	return doc.String(), [][]byte{page, root}, nil
}

// Set changes instance id by what mutate does to a copy of its spec; ID, Owner,
// Generation, Epoch, Term and Frozen are not for mutate to change. Keys that mutate
// leaves alone keep what other devices set at the same time. A change of nothing
// gives no statements. When the document's history has grown or has been quiet for
// some minutes, or it is frozen, the statement re-roots it; of two devices that do that at once only one is
// heard, and the other's Submit fails with ErrStale: load again and repeat. A
// delegate cannot re-root: when the document takes no more, and when Delegates or
// the partition contract are to change, it is told ErrNotOwner. Errors wrap ErrNotFound, ErrInvalid,
// ErrNotOwner or stmt.ErrTooLarge.
func (a *Author) Set(id string, mutate func(*Spec)) (raws [][]byte, err error) {
	doc, err := ParseDocID(id)
	d := a.state.listed(doc)
	if err != nil || d == nil || d.owner != a.owner {
		return nil, fmt.Errorf("set %s: %w", id, ErrNotFound)
	}
	vals, err := a.state.values(d)
	if err != nil {
		return nil, fmt.Errorf("set %s: %w", id, err)
	}
	old := &Spec{}
	old.setValues(vals)
	d.complete(old)
	spec := old.clone()
	mutate(&spec)
	if spec.Term = old.Term; !slices.Equal(spec.Voters, old.Voters) {
		spec.Term++
	}
	if err := spec.validate(); err != nil {
		return nil, fmt.Errorf("set %s: %w", id, err)
	}
	ops, err := spec.opsFrom(old)
	if err != nil {
		return nil, fmt.Errorf("set %s: %w", id, err)
	}
	spec.Delegates = sortedKeys(spec.Delegates)
	if len(ops) == 0 && slices.Equal(spec.Delegates, old.Delegates) {
		return nil, nil
	}
	change, body, err := a.next(d, replaced(vals, ops), spec.Delegates, old.Generation, ops)
	if err != nil {
		return nil, fmt.Errorf("set %s: %w", id, err)
	}
	st, err := stmt.Make(a.key, change)
	if err != nil {
		return nil, fmt.Errorf("set %s: %w", id, err)
	}
	if _, err := a.state.applyVerified(st, body.reading(st), time.Time{}); err != nil {
		return nil, fmt.Errorf("set %s: %w", id, err)
	}
	return [][]byte{st.Raw}, nil
}

// sortedKeys returns keys ascending, each once.
func sortedKeys(keys []stmt.Key) []stmt.Key {
	out := slices.Clone(keys)
	slices.SortFunc(out, stmt.Key.Compare)
	return slices.Compact(out)
}

// replaced returns vals with what ops set and without what they remove, and
// without the generation.
func replaced(vals, ops []Op) []Op {
	out := slices.DeleteFunc(slices.Clone(vals), func(v Op) bool {
		return v.Key == keyGeneration || slices.ContainsFunc(ops, func(op Op) bool { return op.Key == v.Key })
	})
	for _, op := range ops {
		if !isNull(op.Value) {
			out = append(out, op)
		}
	}
	return out
}

// next is the statement by which ops change d so that it has vals, to be signed,
// and its body.
func (a *Author) next(d *document, vals []Op, delegates []stmt.Key, generation uint64, ops []Op) (st stmt.Statement, b specBody, err error) {
	heads := d.heads()
	root, b, err := a.newRoot(vals, delegates, d.device, d.counter, d.epoch+1, generation+1, heads[:min(len(heads), stmt.MaxDeps)])
	if err != nil {
		return st, b, err
	}
	must := d.proof != nil || len(heads) > stmt.MaxDeps || len(ops) > MaxOps || !slices.Equal(delegates, d.delegates) ||
		changesContract(ops)
	quiet := d.order[len(d.order)-1].time <= a.Now().Add(-rerootQuiet).Unix()
	guest, burst := a.asOwner(), a.isBurst(d)
	switch {
	case guest == nil && (must || quiet || burst || len(d.order) >= RerootChanges || d.bytes >= RerootBytes):
		if burst {
			a.bursts[d.id] = d.epoch + 1
		}
		return root, b, nil
	case guest != nil && (must || d.bytes > MaxDocBytes):
		return st, b, fmt.Errorf("%w: only it can begin the document anew, which now has to be", guest)
	case guest != nil:
		if err := d.allows(stmt.KeyOf(a.key)); err != nil {
			return st, b, err
		}
	}
	// A change that would not fit a root must not be signed either, or the
	// document could never be re-rooted again.
	if err := stmt.Fits(root); err != nil {
		return st, b, err
	}
	var seq uint64
	for _, h := range heads {
		seq = max(seq, d.find(h).seqOf(a.actor))
	}
	b = specBody{Device: d.device, Counter: d.counter, Actor: a.actor, Root: d.root.id, Ops: ops}
	if guest != nil {
		b.Owner = a.owner
	}
	body, err := b.encode()
	return stmt.Statement{
		Kind: stmt.KindSpec, Network: a.state.network, Epoch: d.epoch, Seq: seq + 1,
		Time: a.Now().Unix(), Deps: heads, Body: body,
	}, b, err
}

// isBurst says whether this Author has said much of a document, and alone, since
// its root: more of it is best said by further roots, or the document would stay
// many times as large once it is at rest.
func (a *Author) isBurst(d *document) bool {
	if slices.ContainsFunc(d.order[1:], func(c *change) bool { return c.actor != a.actor }) {
		return false
	}
	return len(d.order) > burstChanges || d.root.actor == a.actor && a.bursts[d.id] == d.epoch
}

// newRoot is a root with the values of a spec, to be signed, and its body.
func (a *Author) newRoot(vals []Op, delegates []stmt.Key, device stmt.Key, counter, epoch, generation uint64, heads []stmt.ID) (st stmt.Statement, b specBody, err error) {
	ops := append(slices.Clip(vals), Op{Key: keyGeneration, Value: stmt.AppendUint(nil, generation)})
	sortOps(ops)
	if len(ops) > MaxOps {
		return st, b, fmt.Errorf("%w: %d keys, at most %d (environment and labels count one each)", ErrInvalid, len(ops), MaxOps)
	}
	if err := checkDelegates(a.owner, delegates); err != nil {
		return st, b, err
	}
	b = specBody{Device: device, Counter: counter, Actor: a.actor, Ops: ops, Delegates: delegates}
	body, err := b.encode()
	return stmt.Statement{
		Kind: stmt.KindSpec, Network: a.state.network, Author: a.owner, Epoch: epoch, Seq: 1,
		Time: a.Now().Unix(), Deps: heads, Body: body,
	}, b, err
}

// Delete deletes instance id for good. Errors wrap ErrNotFound or ErrNotOwner.
func (a *Author) Delete(id string) (raws [][]byte, err error) {
	if err := a.asOwner(); err != nil {
		return nil, fmt.Errorf("delete %s: %w", id, err)
	}
	doc, err := ParseDocID(id)
	if err != nil {
		return nil, fmt.Errorf("delete %s: %w", id, ErrNotFound)
	}
	if o := a.state.owners[a.owner]; o == nil || !o.lists(doc) {
		return nil, fmt.Errorf("delete %s: %w", id, ErrNotFound)
	}
	page, err := a.signPage(doc, true)
	if err != nil {
		return nil, fmt.Errorf("delete %s: %w", id, err)
	}
	if err := a.apply(page); err != nil {
		return nil, fmt.Errorf("delete %s: %w", id, err)
	}
	return [][]byte{page}, nil
}

// pageOf spreads an owner's instances over 64 pages, one owner statement each,
// so that tombstones (21 bytes each, kept for good) stay within a statement's
// size for more than twenty thousand deletions.
func pageOf(d DocID) byte { return d[0] >> 2 }

// signPage signs the page of doc with doc added or, when dead, buried. It
// subsumes every statement about the page that this Author knows.
func (a *Author) signPage(doc DocID, dead bool) ([]byte, error) {
	live, buried := map[DocID]bool{}, map[DocID]bool{}
	if o := a.state.owners[a.owner]; o != nil {
		live, buried = o.facts()
	}
	if live[doc] = true; dead {
		delete(live, doc)
		buried[doc] = true
	}
	page := func(set map[DocID]bool) []DocID {
		maps.DeleteFunc(set, func(d DocID, _ bool) bool { return pageOf(d) != pageOf(doc) })
		return slices.SortedFunc(maps.Keys(set), compareDocs)
	}
	b := ownerBody{Live: page(live), Dead: page(buried)}
	return a.signOwner(b)
}

// apply applies statements signed here: their signatures need no check.
func (a *Author) apply(raws ...[]byte) error {
	for _, raw := range raws {
		st, err := stmt.Peek(raw, a.state.network)
		if err != nil {
			return err
		}
		if _, err := a.state.applyNews(st, time.Time{}); err != nil {
			return err
		}
	}
	return nil
}
