package crdt

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/formthefog/formation/crdt/stmt"
)

// load reads the epoch of earlier runs.
func (o *ownRegisters) load(fsys fileSystem) error {
	b, err := readSmall(fsys, epochName, 64)
	if err != nil {
		return fmt.Errorf("read epoch: %w", err)
	}
	text := strings.TrimSpace(string(b))
	if text == "" {
		return nil
	}
	// Damage is no reason to stay away: the log has the registers that were
	// published, and when it is gone too, that there was an epoch tells that
	// something was lost, and peers tell which.
	if o.stored, err = strconv.ParseUint(text, 10, 64); err != nil || o.stored == 0 {
		o.stored = 1
	}
	return nil
}

// bootEpoch returns the epoch of this run, choosing and persisting it first: one
// above every epoch that this disk or, as far as is known, any peer has seen.
// Under mu.
func (r *Replica) bootEpoch() (uint64, error) {
	o := &r.own
	if o.epoch > 0 && o.epoch > o.seen {
		return o.epoch, nil
	}
	next := o.nextEpoch(r.state, r.key)
	err := writeAtomic(r.fsys, epochName, func(w io.Writer) error {
		_, err := io.WriteString(w, strconv.FormatUint(next, 10)+"\n")
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("persist boot epoch: %w", err)
	}
	o.begin(next)
	return next, nil
}

// noticeOwn looks at a statement by this node that came from outside. When it is
// of this run's epoch or a later one and not this run's work, an earlier life of
// the node got further than its disk remembers: the run takes a higher epoch and
// says everything again. Under mu.
func (r *Replica) noticeOwn(st *stmt.Statement, err error) {
	if r.own.notice(r.key, st, err) {
		select {
		case r.readopt <- struct{}{}:
		default:
		}
	}
}

// sign signs one own register with the next number. Under mu.
func (r *Replica) sign(kind stmt.Kind, body []byte) (*stmt.Statement, error) {
	epoch, err := r.bootEpoch()
	if err != nil {
		return nil, err
	}
	r.own.seq++
	return stmt.Make(r.cfg.Key, stmt.Statement{
		Kind: kind, Network: r.cfg.Network, Epoch: epoch, Seq: r.own.seq,
		Time: r.cfg.Now().Unix(), Body: body,
	})
}

// SetNode publishes this node's register; Key, Operator, Epoch and Seq of n are
// ignored. The same register again does nothing. When it returns nil the
// register is on disk and on its way. What does not fit a statement is left out:
// holds, then addresses, from their ends. Errors wrap ErrNotMember while the node
// is not admitted.
func (r *Replica) SetNode(ctx context.Context, n Node) error {
	if _, err := encodeNode(n, mark{}); err != nil {
		return fmt.Errorf("set node: %w", err)
	}
	n = n.clone()
	if err := r.setOwn(ctx, func() ([]*stmt.Statement, error) {
		r.own.node = &n
		return r.own.nodeChanges(r.state, r.key, r.sign)
	}); err != nil {
		return fmt.Errorf("set node: %w", err)
	}
	return nil
}

// SetClaims publishes the full set of this node's claims. What differs from what
// is published is signed anew, and what is missing from claims becomes a
// tombstone; the same set again does nothing. Node, Epoch and Seq are ignored;
// a zero Owner is filled from the spec. Claims on instances that are unknown and
// name no owner, or that are deleted, are left out. So is, with a warning, a
// claim that cannot be published (over MaxClaim, or on no slot): one bad claim
// must not silence the node. When it returns nil the set is on disk and on its
// way. Errors wrap ErrNotMember while the node is not admitted.
func (r *Replica) SetClaims(ctx context.Context, claims []Claim) error {
	if err := r.setOwn(ctx, func() ([]*stmt.Statement, error) {
		r.own.claims = slices.Clone(claims)
		if r.own.claims == nil {
			r.own.claims = []Claim{}
		}
		return r.claimChanges()
	}); err != nil {
		return fmt.Errorf("set claims: %w", err)
	}
	return nil
}

// tidyOwn keeps this node's tombstones few: see ownRegisters.tidy.
func (r *Replica) tidyOwn(ctx context.Context) error {
	return r.setOwn(ctx, func() ([]*stmt.Statement, error) {
		sts, unfit, err := r.own.tidy(r.state, r.key, r.sign)
		if unfit != nil {
			r.tellBad(unfit)
		}
		return sts, err
	})
}

// readoptOwn says everything again after a higher epoch of this node appeared.
func (r *Replica) readoptOwn(ctx context.Context) error {
	return r.setOwn(ctx, func() ([]*stmt.Statement, error) {
		var out []*stmt.Statement
		if r.own.node != nil {
			sts, err := r.own.nodeChanges(r.state, r.key, r.sign)
			if err != nil {
				return nil, err
			}
			out = sts
		}
		if r.own.claims != nil {
			sts, err := r.claimChanges()
			if err != nil {
				return nil, err
			}
			out = append(out, sts...)
		}
		return out, nil
	})
}

// setOwn commits the statements that changes makes under mu.
func (r *Replica) setOwn(ctx context.Context, changes func() ([]*stmt.Statement, error)) error {
	r.ownMu.Lock() // keeps the order of signing and committing
	defer r.ownMu.Unlock()
	r.mu.Lock()
	err := r.state.authorise(r.key, stmt.KindNode)
	var sts []*stmt.Statement
	if err == nil {
		sts, err = changes()
	}
	r.mu.Unlock()
	if err != nil {
		return err
	}
	return r.commit(ctx, sts, stmt.Key{})
}

// claimChanges signs what differs between the wanted and the published claims,
// and warns of those that cannot be published. Under mu.
func (r *Replica) claimChanges() ([]*stmt.Statement, error) {
	sts, bad, err := r.own.claimChanges(r.state, r.key, r.sign, false)
	r.tellBad(bad)
	return sts, err
}

// tellBad warns of claims that are left out, once. Under mu.
func (r *Replica) tellBad(err error) {
	text := fmt.Sprint(err)
	if err != nil && text != r.own.bad {
		r.cfg.Logger.Warn("claims are left out", "err", err)
	}
	r.own.bad = text
}

// errNoRoot: this node does not hold the network's root key.
var errNoRoot = errors.New("crdt: this node does not hold the network's root key")

// signMember signs and commits a member statement by the root key.
func (r *Replica) signMember(ctx context.Context, m stmt.MemberBody, epoch, seq uint64) error {
	if len(r.cfg.RootKey) != ed25519.PrivateKeySize {
		return fmt.Errorf("%s: %w", m.Key, errNoRoot)
	}
	raw, err := stmt.SignMember(r.cfg.RootKey, r.cfg.Network, m, nil, epoch, seq)
	if err != nil {
		return err
	}
	_, err = r.Submit(ctx, raw)
	return err
}

// AdmitMember admits key to role by the root key, which this node must hold.
// Admitting a member again does nothing.
func (r *Replica) AdmitMember(ctx context.Context, key stmt.Key, role stmt.Role) error {
	v := r.View()
	if v.Open() || slices.Contains(v.Roles(key), role) {
		return nil
	}
	return r.signMember(ctx, stmt.MemberBody{Key: key, Role: role}, 0, 0)
}

// RevokeMember revokes key for good by the root key, which this node must hold.
func (r *Replica) RevokeMember(ctx context.Context, key stmt.Key) error {
	return r.signMember(ctx, stmt.MemberBody{Key: key, Revoked: true}, 0, 0)
}

// RevokeNode takes key out as a node for good by the root key, which this node
// must hold; what else it is admitted to stays.
func (r *Replica) RevokeNode(ctx context.Context, key stmt.Key) error {
	return r.signMember(ctx, stmt.MemberBody{Key: key, Role: stmt.RoleNode, Revoked: true}, 0, 0)
}

// NameOperator says by the root key, which this node must hold, whom a node belongs
// to; zero: nobody. The latest word holds.
func (r *Replica) NameOperator(ctx context.Context, node, operator stmt.Key) error {
	if r.View().OperatorOf(node) == operator {
		return nil
	}
	var epoch, seq uint64
	r.mu.Lock()
	if a := r.state.members.admitted[node][admitKey{role: stmt.RoleNode}]; a != nil {
		epoch, seq = a.epoch, a.seq
	}
	r.mu.Unlock()
	return r.signMember(ctx, stmt.MemberBody{Key: node, Role: stmt.RoleNode, Operator: operator}, epoch, seq+1)
}

// SetAnyOwner makes every key an owner by the root key, which this node must
// hold, or ends that. What holds already is not said again.
func (r *Replica) SetAnyOwner(ctx context.Context, on bool) error {
	v := r.View()
	if v.Open() || v.AnyOwner() == on {
		return nil
	}
	r.mu.Lock()
	seq := r.state.members.wildcard.seq + 1
	r.mu.Unlock()
	return r.signMember(ctx, stmt.MemberBody{Role: stmt.RoleOwner, AnyOwner: true, Revoked: !on}, 1, seq)
}
