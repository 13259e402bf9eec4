package main

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/formthefog/formation/cmd/internal/api"
	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/stmt"
)

// submitter is the API's way to the state. Statements are judged by the state
// alone; beside that, an owner who comes through the unix socket is taken for
// this node's operator, and admitted where this node can.
type submitter struct {
	*crdt.Replica
	id     *identity
	accept *acceptance
	now    func() time.Time
	log    *slog.Logger
}

// Submit merges owners' statements. Errors are Problems.
func (s *submitter) Submit(ctx context.Context, raws ...[]byte) ([]stmt.ID, error) {
	for i, raw := range raws {
		st, err := stmt.Verify(raw, s.id.network())
		if err != nil {
			return nil, submitProblem(err)
		}
		switch st.Kind {
		case stmt.KindOwner, stmt.KindSpec, stmt.KindSecret:
			if api.CallerOf(ctx).Local && crdt.OwnerOf(st) == st.Author { // a delegate operates nothing
				if err := s.adopt(ctx, st.Author); err != nil {
					return nil, err
				}
			}
		case stmt.KindMember, stmt.KindBase:
		default:
			return nil, api.Problemf(api.ExitNotAllowed, "statement %d: a %s statement is not for the API", i, st.Kind)
		}
	}
	ids, err := s.Replica.Submit(ctx, raws...)
	if err != nil {
		return nil, submitProblem(err)
	}
	return ids, nil
}

// adopt makes an owner the operator of this node and a member of its network.
func (s *submitter) adopt(ctx context.Context, owner stmt.Key) error {
	if err := s.accept.learn(owner); err != nil {
		return err
	}
	v := s.View()
	if v.OwnerAllowed(owner) || v.Revoked(owner) {
		return nil
	}
	raw, err := s.id.sign(owner, stmt.RoleOwner, s.now())
	if err != nil {
		return err
	}
	if _, err := s.Replica.Submit(ctx, raw); err != nil {
		return submitProblem(err)
	}
	s.log.Info("admitted the operator's key as an owner", "owner", owner)
	return nil
}

func submitProblem(err error) error {
	var p *api.Problem
	switch {
	case errors.As(err, &p):
		return p
	case errors.Is(err, crdt.ErrNotMember), errors.Is(err, stmt.ErrAuthority):
		return api.Problemf(api.ExitNotAllowed, "%v", err).
			WithHint("the owner must be a member: use a ticket (form net invite), or a node's own unix socket")
	case errors.Is(err, stmt.ErrSignature), errors.Is(err, stmt.ErrExpired):
		return api.Problemf(api.ExitNotAllowed, "%v", err)
	case errors.Is(err, crdt.ErrNotFound):
		return api.Problemf(api.ExitNotFound, "%v", err)
	case errors.Is(err, stmt.ErrNetwork):
		return api.Problemf(api.ExitUsage, "%v", err).WithHint("the statement is for another network")
	case errors.Is(err, crdt.ErrStale):
		return api.Problemf(api.ExitFailed, "%v", err).WithHint("it was changed meanwhile; try again")
	case errors.Is(err, crdt.ErrPending):
		return api.Problemf(api.ExitFailed, "set aside, as this node lacks what it builds on: %v", err).
			WithHint("nothing is saved yet: it may take effect once the rest arrives; look with form ls in a minute, and try again, here or at another node (--peer)")
	case errors.Is(err, crdt.ErrFrozen):
		return api.Problemf(api.ExitFailed, "%v", err).
			WithHint("two changes were signed as one and the same: stop whoever else signs with this key, and try again")
	case errors.Is(err, crdt.ErrQuota):
		return api.Problemf(api.ExitUsage, "%v", err).WithHint("delete what is not needed any more: form ls, form rm")
	case errors.Is(err, crdt.ErrInvalid), errors.Is(err, stmt.ErrShape), errors.Is(err, stmt.ErrEncoding), errors.Is(err, stmt.ErrTooLarge):
		return api.Problemf(api.ExitUsage, "%v", err)
	}
	return err
}
