package crdt

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/formthefog/formation/crdt/stmt"
)

// Submit merges statements that somebody brought, puts them on disk and gossips
// them; it returns their IDs in the order given. Statements that are held
// already are no error. All are verified before the first is merged; an error
// names the statement, and then those before it may have been merged. When
// Submit returns nil, all are on disk.
//
// The admission of this node itself is merged also when its invite is over: a
// member that lost its disk is still one, and whether others let it in is for
// them to say.
func (r *Replica) Submit(ctx context.Context, raws ...[]byte) ([]stmt.ID, error) {
	ids := make([]stmt.ID, len(raws))
	sts := make([]*stmt.Statement, len(raws))
	for i, raw := range raws {
		st, err := stmt.Verify(raw, r.cfg.Network)
		if err != nil {
			return nil, fmt.Errorf("submit statement %d: %w", i, err)
		}
		ids[i], sts[i] = st.ID, st
	}
	slices.SortStableFunc(sts, func(a, b *stmt.Statement) int { return byRank(a.Kind, b.Kind) })
	if err := r.commit(ctx, sts, r.key); err != nil {
		return nil, fmt.Errorf("submit: %w", err)
	}
	return ids, nil
}

// commit applies statements, syncs them to disk and publishes what was news. The
// invite that admits the key late may be over.
func (r *Replica) commit(ctx context.Context, sts []*stmt.Statement, late stmt.Key) error {
	now := r.cfg.Now()
	var failed error
	r.mu.Lock()
	for _, st := range sts {
		at := now
		if st.Kind == stmt.KindMember {
			if m, err := stmt.MemberOf(st, r.cfg.Root); err == nil && m.Key == late {
				at = time.Time{}
			}
		}
		if err := r.apply(st, at); err != nil {
			failed = fmt.Errorf("%s statement %.8s: %w", st.Kind, st.ID, err)
			break
		}
	}
	news := r.record()
	pos, err := r.catchUp()
	r.mu.Unlock()
	if err == nil {
		err = r.log.syncTo(pos)
	}
	if err != nil {
		return errors.Join(err, failed)
	}
	r.publish(ctx, news)
	return failed
}

// publish gossips statements. A failure is not the caller's concern: whoever
// missed them gets them by anti-entropy.
func (r *Replica) publish(ctx context.Context, sts []*stmt.Statement) {
	if r.cfg.Gossip == nil || len(sts) == 0 {
		return
	}
	for topic, msgs := range batches(sts) {
		for _, raws := range msgs {
			msg, err := encodeGossip(raws)
			if err == nil {
				err = r.cfg.Gossip.Publish(ctx, topic, msg)
			}
			if err != nil {
				r.cfg.Logger.Debug("gossip", "topic", topic, "err", err)
			}
		}
	}
}

// Admit is for the admission check of a connection: it verifies the member
// statement that a peer presents, including that its invite is not over, merges
// and gossips it, and returns which key it admits to which role. A key that has
// the role already is admitted whatever the clock says; so is vouched, if not
// zero: a peer for which whoever brought this node here has vouched, by naming it
// in the ticket. Errors wrap those of [State.Apply].
func (r *Replica) Admit(ctx context.Context, raw []byte, vouched stmt.Key) (stmt.Key, stmt.Role, error) {
	m, err := stmt.CheckMember(raw, r.cfg.Network, r.cfg.Root)
	if err != nil {
		return stmt.Key{}, "", fmt.Errorf("admit: %w", err)
	}
	if r.View().IsMember(m.Key, m.Role) {
		return m.Key, m.Role, nil
	}
	if err := r.commit(ctx, []*stmt.Statement{m.Statement}, vouched); err != nil {
		return stmt.Key{}, "", fmt.Errorf("admit: %w", err)
	}
	if !r.View().IsMember(m.Key, m.Role) {
		return stmt.Key{}, "", fmt.Errorf("admit: %w: %s", ErrNotMember, m.Key)
	}
	return m.Key, m.Role, nil
}
