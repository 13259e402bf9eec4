package crdt

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/formthefog/formation/crdt/stmt"
)

// ownRegisters is what a node writes: its node register and its claims. It
// decides what is to be signed; signing, and keeping the epoch over a restart,
// are the caller's.
type ownRegisters struct {
	epoch  uint64 // boot epoch; 0 until the first publication of this run
	seq    uint64
	stored uint64  // the last epoch that was persisted
	seen   uint64  // highest epoch anybody holds of this node
	node   *Node   // last wanted
	claims []Claim // last wanted, nil before the first SetClaims
	said   map[claimKey]saidClaim
	bad    string // which of them cannot be published, as last told

	further func(stmt.Kind, []byte) []byte // see Registers.Further

	floor   mark // published with the node register
	renewed mark // where the latest renewal of all claims began; zero when its floor is published
}

// saidClaim is a wanted claim, its place in the order left out, and the statement
// that was found to say just that: most stay as they are, and need no look then.
type saidClaim struct {
	claim Claim
	id    stmt.ID
}

// maxTombstones is how many tombstones a node keeps before it raises its floor
// over them.
const maxTombstones = 256

// signer signs one own register with the next number.
type signer func(kind stmt.Kind, body []byte) (*stmt.Statement, error)

// nextEpoch is one above every epoch that this disk or, as far as s knows, any
// peer has seen of self. It must be persisted before begin makes it this run's.
func (o *ownRegisters) nextEpoch(s *State, self stmt.Key) uint64 {
	next := max(o.stored, o.epoch, o.seen)
	if n := s.nodes.get(self); n != nil {
		next = max(next, n.epoch)
	}
	for _, c := range s.byNode.get(self) {
		next = max(next, c.epoch)
	}
	return next + 1
}

func (o *ownRegisters) begin(epoch uint64) { o.stored, o.epoch, o.seq = epoch, epoch, 0 }

// notice looks at a statement by this node that came from outside, with what
// applying it gave. It says whether an earlier life of the node got further than
// its disk remembers, so that everything must be said again.
func (o *ownRegisters) notice(self stmt.Key, st *stmt.Statement, err error) (readopt bool) {
	if st.Author != self || (st.Kind != stmt.KindNode && st.Kind != stmt.KindClaim) || (err != nil && !transient(err)) {
		return false
	}
	if o.epoch > 0 && (st.Epoch < o.epoch || (st.Epoch == o.epoch && st.Seq <= o.seq)) {
		return false
	}
	o.seen = max(o.seen, st.Epoch)
	return o.epoch > 0
}

// nodeChanges signs the node register unless it is published already.
func (o *ownRegisters) nodeChanges(s *State, self stmt.Key, sign signer) ([]*stmt.Statement, error) {
	held := s.nodes.get(self)
	if held != nil && (rec{epoch: o.floor.Epoch, seq: o.floor.Seq}).before(held.floor) {
		o.floor = held.floor // an earlier run's
	}
	body, err := o.nodeBody()
	if err != nil {
		return nil, err
	}
	if held != nil && held.epoch == o.epoch && held.epoch >= o.seen {
		if st, err := stmt.Reread(held.raw); err == nil && string(st.Body) == string(body) {
			return nil, nil
		}
	}
	st, err := sign(stmt.KindNode, body)
	if err != nil {
		return nil, err
	}
	return []*stmt.Statement{st}, nil
}

func (o *ownRegisters) nodeBody() ([]byte, error) {
	body, err := encodeNode(*o.node, o.floor)
	if err == nil && o.further != nil {
		body = o.further(stmt.KindNode, body)
	}
	return body, err
}

func (o *ownRegisters) claimBody(c Claim, gone bool) ([]byte, error) {
	body, err := encodeClaim(c, gone)
	if err == nil && o.further != nil {
		body = o.further(stmt.KindClaim, body)
	}
	return body, err
}

// tidy is to be called now and then. It keeps the node's tombstones few, and voids
// what earlier lives of the node claimed and its disk has forgotten: one call
// signs all claims anew, and the next the node register, with a floor below which
// claims are void. Between the two the claims have time to reach the others, who
// would else see the node without them for a moment.
func (o *ownRegisters) tidy(s *State, self stmt.Key, sign signer) (out []*stmt.Statement, unfit, err error) {
	if o.node == nil || o.claims == nil || o.epoch == 0 {
		return nil, nil, nil
	}
	if floor := o.renewed; floor != (mark{}) {
		o.renewed = mark{}
		for _, c := range s.byNode.get(self) {
			if !c.gone && c.before(floor) {
				return nil, nil, nil // it could not be said anew: begin again
			}
		}
		o.floor = floor
		out, err = o.nodeChanges(s, self, sign)
		return out, nil, err
	}
	if o.tombstones(s, self) <= maxTombstones && (o.epoch == 1 || o.floor.Epoch >= o.epoch) {
		return nil, nil, nil
	}
	if out, unfit, err = o.claimChanges(s, self, sign, true); err != nil {
		return nil, unfit, err
	}
	o.renewed = mark{Epoch: o.epoch, Seq: o.seq - uint64(len(out)) + 1}
	return out, unfit, nil
}

func (o *ownRegisters) tombstones(s *State, self stmt.Key) int {
	n := 0
	for _, c := range s.byNode.get(self) {
		if c.gone {
			n++
		}
	}
	return n
}

// claimChanges signs what differs between the wanted and the published claims, or
// all that is wanted when it is to be said anew. unfit tells of those that are
// left out because they cannot be published.
func (o *ownRegisters) claimChanges(s *State, self stmt.Key, sign signer, anew bool) (out []*stmt.Statement, unfit, err error) {
	bodies, wants, said := map[claimKey][]byte{}, map[claimKey]Claim{}, map[claimKey]saidClaim{}
	var bad []error
	for _, c := range o.claims {
		doc, err := ParseDocID(c.Instance)
		if err != nil {
			bad = append(bad, err)
			continue
		}
		if c.Owner.IsZero() {
			if d := s.docs.get(doc); d != nil {
				c.Owner = d.owner
			}
		}
		if ow := s.owners[c.Owner]; c.Owner.IsZero() || (ow != nil && ow.dead[doc]) {
			continue
		}
		k := claimKey{self, doc, c.Owner, c.Slot}
		c.Epoch, c.Seq = 0, 0
		held := s.claim(k)
		if was := o.said[k]; !anew && held != nil && held.id == was.id && held.epoch >= o.seen && was.claim == c {
			said[k] = was
			delete(bodies, k) // of two for one slot the last counts
			continue
		}
		body, err := o.claimBody(c, false)
		if err != nil {
			bad = append(bad, fmt.Errorf("instance %s: %w", c.Instance, err))
			continue
		}
		bodies[k], wants[k] = body, c
		delete(said, k)
	}
	for _, c := range s.byNode.get(self) { // signed in order below
		k := c.key
		if _, same := said[k]; same {
			continue
		}
		if _, wanted := bodies[k]; wanted {
			st, err := stmt.Reread(c.raw)
			if err == nil && string(st.Body) == string(bodies[k]) && c.epoch >= o.seen && !anew {
				delete(bodies, k)
				said[k] = saidClaim{wants[k], c.id}
			}
			continue
		}
		if c.gone && c.epoch >= o.seen {
			continue
		}
		body, err := o.claimBody(Claim{Instance: k.doc.String(), Slot: k.slot, Owner: k.owner}, true)
		if err != nil {
			return nil, nil, err
		}
		bodies[k] = body
	}
	o.said = said
	for _, k := range slices.SortedFunc(maps.Keys(bodies), claimKey.compareNames) {
		st, err := sign(stmt.KindClaim, bodies[k])
		if err != nil {
			return nil, nil, err
		}
		out = append(out, st)
	}
	return out, errors.Join(bad...), nil
}

// Registers writes the registers of one node over a State that the caller drives
// by itself: what [Replica.SetNode] and [Replica.SetClaims] do, without disk and
// network. The caller applies, keeps and spreads what it returns, in order.
type Registers struct {
	own  ownRegisters
	key  ed25519.PrivateKey
	self stmt.Key
	net  stmt.NetworkID
}

// NewRegisters begins a run of the node whose private key is key. stored is the
// boot epoch of its last run, 0 at the first.
func NewRegisters(key ed25519.PrivateKey, network stmt.NetworkID, stored uint64) *Registers {
	return &Registers{own: ownRegisters{stored: stored}, key: key, self: stmt.KeyOf(key), net: network}
}

// Epoch is the boot epoch of this run, to be kept for the next; 0 before the
// first statement.
func (r *Registers) Epoch() uint64 { return r.own.epoch }

// Further has the bodies of all that is said from now on be what f makes of them:
// what a later version says beside what this one knows. It is for swarms of several
// versions.
func (r *Registers) Further(f func(stmt.Kind, []byte) []byte) { r.own.further = f }

// Node returns the statements that make s hold n as the node's register.
func (r *Registers) Node(s *State, n Node) ([]stmt.Verified, error) {
	r.own.node = &n
	return r.all(r.own.nodeChanges(s, r.self, r.sign(s)))
}

// Claims returns the statements that make s hold exactly claims as the node's.
func (r *Registers) Claims(s *State, claims []Claim) ([]stmt.Verified, error) {
	r.own.claims = append([]Claim{}, claims...)
	sts, unfit, err := r.own.claimChanges(s, r.self, r.sign(s), false)
	return r.all(sts, errors.Join(unfit, err))
}

// Tidy returns what keeps the node's tombstones few; it is called every half
// minute or so.
func (r *Registers) Tidy(s *State) ([]stmt.Verified, error) {
	sts, unfit, err := r.own.tidy(s, r.self, r.sign(s))
	return r.all(sts, errors.Join(unfit, err))
}

// Notice looks at a statement that came from outside, with what applying it to s
// gave, and returns everything said anew when it shows that an earlier life of
// the node got further than its disk remembers.
func (r *Registers) Notice(s *State, v stmt.Verified, applied error) ([]stmt.Verified, error) {
	if !r.own.notice(r.self, v.Statement(), applied) {
		return nil, nil
	}
	var out []*stmt.Statement
	if r.own.node != nil {
		sts, err := r.own.nodeChanges(s, r.self, r.sign(s))
		if err != nil {
			return nil, err
		}
		out = sts
	}
	sts, unfit, err := r.own.claimChanges(s, r.self, r.sign(s), false)
	return r.all(append(out, sts...), errors.Join(unfit, err))
}

func (r *Registers) sign(s *State) signer {
	return func(kind stmt.Kind, body []byte) (*stmt.Statement, error) {
		if r.own.epoch == 0 || r.own.epoch <= r.own.seen {
			r.own.begin(r.own.nextEpoch(s, r.self))
		}
		r.own.seq++
		return stmt.Make(r.key, stmt.Statement{Kind: kind, Network: r.net, Epoch: r.own.epoch, Seq: r.own.seq, Body: body})
	}
}

func (r *Registers) all(sts []*stmt.Statement, err error) ([]stmt.Verified, error) {
	if err != nil {
		return nil, err
	}
	out := make([]stmt.Verified, len(sts))
	for i, st := range sts {
		if out[i], err = stmt.Check(st.Raw, r.net); err != nil {
			return nil, err
		}
	}
	return out, nil
}
