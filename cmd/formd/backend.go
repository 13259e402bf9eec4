package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/formthefog/formation/cmd/internal/api"
	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/stmt"
	"github.com/formthefog/formation/fogvm"
	"github.com/formthefog/formation/fogvm/reconcile"
	"github.com/formthefog/formation/fogvm/reconcile/plan"
	"github.com/formthefog/formation/store"
)

// placement is api.Placement by package plan and this node's probes.
type placement struct {
	self   stmt.Key
	rec    *reconcile.Reconciler
	prober *reconcile.Prober

	mu    sync.Mutex
	view  *crdt.View // of world
	world plan.World
	at    time.Time // when world was made
}

// worldFor is how long a World of one view serves: the probes may say something
// else by then.
const worldFor = time.Second

// of is the World of a view, made once for the many instances of one answer.
func (p *placement) of(v *crdt.View) plan.World {
	p.mu.Lock()
	defer p.mu.Unlock()
	if now := time.Now(); p.view != v || now.Sub(p.at) > worldFor {
		p.view, p.world, p.at = v, p.rec.WorldOf(v).Counted(), now
	}
	return p.world
}

// Status is plan.Status.
func (p *placement) Status(v *crdt.View, s crdt.Spec) (word, reason string) {
	return plan.Status(p.of(v), &s)
}

// Live is what the probes say.
func (p *placement) Live(k stmt.Key) string {
	if k == p.self {
		return "alive"
	}
	return p.prober.Live(k)
}

// Wanted is plan's WantedHolders.
func (p *placement) Wanted(v *crdt.View, c string) int { return p.of(v).WantedHolders(c) }

// Explain is the reconciler's in the API's words.
func (p *placement) Explain(v *crdt.View, s crdt.Spec) api.Explain {
	e := p.rec.Explain(v, &s)
	out := api.Explain{Eligible: []api.ExplainNode{}, Excluded: []api.ExplainNode{}, Slots: []api.ExplainSlot{}}
	for _, n := range e.Nodes {
		node := api.ExplainNode{Node: n.Node, Live: p.Live(n.Node), Domain: n.Domain, Weight: n.Weight, Reason: n.Reason}
		if n.Reason == "" {
			out.Eligible = append(out.Eligible, node)
		} else {
			out.Excluded = append(out.Excluded, node)
		}
	}
	for _, w := range e.Slots {
		slot := api.ExplainSlot{Slot: w.Slot, Rank: append([]stmt.Key{}, w.Rank...), Why: append([]string{}, w.Why...)}
		if !w.Keeper.IsZero() {
			slot.Keeper = &w.Keeper
		}
		if w.Due != 0 {
			due := int64(max(0, w.Due-e.Now).Seconds())
			slot.Due = &due
		}
		out.Slots = append(out.Slots, slot)
	}
	out.Budget = api.ExplainBudget{
		Takeovers: e.Budget.Takeovers, Slots: plan.TakeoverBudget, RepairBytes: e.Budget.RepairBytes, Bytes: plan.RepairBytes,
		Moves: e.Budget.Moves, MovesMost: plan.MoveBudget, Window: int64(e.Budget.Window.Seconds()),
	}
	return out
}

// content is api.Packs over the store.
type content struct {
	store  *store.Store
	rec    *reconcile.Reconciler
	accept *acceptance
}

// List shows the store.
func (c *content) List(ctx context.Context) ([]api.Pack, error) {
	list, err := c.store.List(ctx)
	if err != nil {
		return nil, err
	}
	out := make([]api.Pack, 0, len(list))
	for _, i := range list {
		p := api.Pack{
			CID: i.CID.String(), Kind: i.Kind, Name: i.Name, Size: i.Size, Complete: i.Complete,
			Pinned: i.Pinned, AddedAt: i.Added.UTC(),
		}
		if i.Base.Defined() {
			p.Base = i.Base.String()
		}
		if i.Kind == "pack" && i.Complete {
			root, err := c.store.Pack(ctx, i.CID)
			if err != nil {
				return nil, fmt.Errorf("pack %s: %w", i.CID, err)
			}
			for _, u := range root.Run.Users {
				p.Users = append(p.Users, u.Name)
			}
		}
		out = append(out, p)
	}
	return out, nil
}

// Fetch brings a pack here for somebody whose instances may run here.
func (c *content) Fetch(ctx context.Context, owner stmt.Key, text string, r api.FetchRequest, progress func(api.FetchProgress)) error {
	id, err := cid.Decode(text)
	if err != nil {
		return api.Problemf(api.ExitUsage, "%q is no CID: %v", text, err)
	}
	if !owner.IsZero() && !c.accept.accepts(owner) {
		return api.Problemf(api.ExitNotAllowed, "this node does not accept packs of %s", owner).
			WithHint("its operator decides by --accept; ship to another peer")
	}
	var from []peer.ID
	for _, w := range r.From {
		p, err := peer.Decode(w)
		if err != nil {
			return api.Problemf(api.ExitUsage, "from: %q is no peer ID", w)
		}
		from = append(from, p)
	}
	err = c.rec.Fetch(ctx, id, from, func(s store.Progress) {
		stage := "image"
		if s.Total == 0 {
			stage = "root"
		}
		progress(api.FetchProgress{Stage: stage, Bytes: s.Done, Total: s.Total, Moved: s.Fetched})
	})
	if err != nil {
		return storeProblem(err)
	}
	if r.Pin {
		return c.store.Pin(ctx, id)
	}
	return nil
}

func storeProblem(err error) error {
	switch {
	case errors.Is(err, store.ErrNoPeer):
		return api.Problemf(api.ExitUnreachable, "%v", err)
	case errors.Is(err, store.ErrNotFound):
		return api.Problemf(api.ExitNotFound, "%v", err)
	case errors.Is(err, store.ErrCorrupt), errors.Is(err, store.ErrTooLarge):
		return api.Problemf(api.ExitUsage, "%v", err).WithHint("the bytes are not a whole pack: get them again from somewhere else")
	case errors.Is(err, store.ErrIncomplete):
		return api.Problemf(api.ExitUsage, "%v", err).WithHint("take its base in first")
	}
	return err
}

// guests is api.Guests over the hypervisor.
type guests struct{ vms guestVMs }

// Logs is the entrypoint's output of one replica.
func (g guests) Logs(ctx context.Context, instance string, o api.LogOptions) (io.ReadCloser, error) {
	r, err := g.vms.Logs(ctx, plan.VMID(instance, o.Slot), fogvm.LogOptions{Tail: o.Tail, Follow: o.Follow})
	if errors.Is(err, fogvm.ErrNotFound) {
		return nil, api.Problemf(api.ExitNotFound, "%v", err)
	}
	return r, err
}

// Count is the number of VMs.
func (g guests) Count() int { return len(g.vms.List()) }

// operator is api.Operator.
type operator struct {
	id    *identity
	addrs func() []string
	state *crdt.Replica
	store *store.Store
	rec   *reconcile.Reconciler
	now   func() time.Time
}

// How long invites last: that of a new network's first ticket, one that is asked
// for without saying how long, and the most.
const (
	defaultInvite = 30 * 24 * time.Hour
	shortInvite   = 24 * time.Hour
	maxInvite     = 366 * 24 * time.Hour
)

// Invite makes a ticket: a new invite by the root key, else the one this node
// joined by, if that admits to no more, and no longer, than is asked for.
func (o *operator) Invite(_ context.Context, r api.InviteRequest) (api.Invite, error) {
	if r.Seconds < 0 || r.Seconds > int64(maxInvite/time.Second) {
		return api.Invite{}, api.Problemf(api.ExitUsage, "an invite lasts from 1 s to %d s", int64(maxInvite/time.Second))
	}
	roles := []stmt.Role{}
	for _, w := range r.Roles {
		role := stmt.Role(w)
		if role != stmt.RoleNode && role != stmt.RoleOperator && role != stmt.RoleOwner {
			return api.Invite{}, api.Problemf(api.ExitUsage, "%q is not a role: node, operator or owner", w)
		}
		roles = append(roles, role)
	}
	if err := o.mayName(r.Operators, roles); err != nil {
		return api.Invite{}, err
	}
	inv, err := o.open(r, roles)
	if err != nil || len(r.Operators) == 0 {
		return inv, err
	}
	t, err := stmt.ParseTicket(inv.Ticket)
	if err != nil {
		return api.Invite{}, err
	}
	t.Operators = r.Operators
	inv.Ticket = t.String()
	return inv, nil
}

// mayName says why a ticket may not name these operators; nil: it may.
func (o *operator) mayName(keys []stmt.Key, roles []stmt.Role) error {
	switch {
	case len(keys) == 0:
		return nil
	case len(keys) > stmt.MaxOperators:
		return api.Problemf(api.ExitUsage, "%d operators, at most %d", len(keys), stmt.MaxOperators)
	case o.id.open():
		return api.Problemf(api.ExitUsage, "the network %q is open: nobody can be kept out of it", o.id.Name).WithHint("ask for its ticket without --operator")
	case len(roles) > 0 && !slices.Contains(roles, stmt.RoleNode):
		return api.Problemf(api.ExitUsage, "an operator runs nodes, and the invite admits none").WithHint("give it to whom you admit as a node: --role node")
	}
	return nil
}

// open makes the ticket itself.
func (o *operator) open(r api.InviteRequest, roles []stmt.Role) (api.Invite, error) {
	life, quota := time.Duration(r.Seconds)*time.Second, stmt.Quota(r.Quota)
	bounded := quota != stmt.Quota{}
	switch {
	case quota.Instances < 0 || quota.Replicas < 0 || quota.CPUs < 0:
		return api.Invite{}, api.Problemf(api.ExitUsage, "a quota is not negative")
	case bounded && len(roles) > 0 && !slices.ContainsFunc(roles, func(r stmt.Role) bool { return r != stmt.RoleNode }):
		return api.Invite{}, api.Problemf(api.ExitUsage, "a quota bounds owners, and the invite admits none").WithHint("give it to whom you admit as an owner: --role owner")
	case o.id.open() && (len(roles) > 0 || life > 0 || bounded):
		return api.Invite{}, api.Problemf(api.ExitUsage, "the network %q is open: whoever knows it is a member, for any role and for ever", o.id.Name).
			WithHint("ask for its ticket without --role, --ttl and --max-…")
	case o.id.open():
		return api.Invite{Ticket: o.id.ticket(bootstrapOf(o.addrs())).String()}, nil
	case o.id.RootKey == nil:
		return o.id.handOn(o.addrs(), roles, life, quota, o.now())
	}
	if len(roles) == 0 {
		roles = []stmt.Role{stmt.RoleNode, stmt.RoleOwner}
	}
	if life == 0 {
		life = shortInvite
	}
	return o.id.invite(o.addrs(), stmt.InviteBody{Roles: roles, Expires: o.now().Add(life).Unix(), Quota: quota})
}

// NameBase publishes a name for a base that is complete here, importing it
// first when the request names a file.
func (o *operator) NameBase(ctx context.Context, r api.BaseRequest) (api.Base, error) {
	if r.Name == "" || len(r.Name) > stmt.MaxBaseName {
		return api.Base{}, api.Problemf(api.ExitUsage, "a base's name has 1 to %d bytes", stmt.MaxBaseName)
	}
	var c cid.Cid
	var err error
	if r.Path != "" {
		if c, err = o.importCAR(ctx, r.Path); err != nil {
			return api.Base{}, err
		}
		if r.CID != "" && r.CID != c.String() {
			return api.Base{}, api.Problemf(api.ExitUsage, "%s holds %s, not %s", r.Path, c, r.CID)
		}
	} else if c, err = cid.Decode(r.CID); err != nil {
		return api.Base{}, api.Problemf(api.ExitUsage, "%q is no CID: %v", r.CID, err)
	}
	if _, err := o.store.Base(ctx, c); err != nil {
		return api.Base{}, storeProblem(fmt.Errorf("base %s: %w", c, err))
	}
	if ok, err := o.store.Complete(ctx, c); err != nil || !ok {
		return api.Base{}, errors.Join(err, api.Problemf(api.ExitNotFound, "base %s is not complete here", c))
	}
	if err := o.store.Pin(ctx, c); err != nil {
		return api.Base{}, err
	}
	if err := o.store.SetName(r.Name, c, nil); err != nil {
		return api.Base{}, err
	}
	raw, err := stmt.SignBase(o.id.Key, o.id.network(), stmt.BaseBody{Name: r.Name, CID: c.String()}, 1, uint64(o.now().Unix()))
	if err != nil {
		return api.Base{}, err
	}
	if _, err := o.state.Submit(ctx, raw); err != nil {
		return api.Base{}, submitProblem(err)
	}
	o.rec.Rescan(ctx)
	return api.Base{Name: r.Name, CID: c.String(), Publisher: o.id.self(), Local: true, Trusted: true}, nil
}

func (o *operator) importCAR(ctx context.Context, path string) (cid.Cid, error) {
	f, err := os.Open(path)
	if err != nil {
		return cid.Undef, api.Problemf(api.ExitNotFound, "%v", err)
	}
	defer f.Close()
	c, err := o.store.Import(ctx, f)
	if err != nil {
		return cid.Undef, storeProblem(fmt.Errorf("%s: %w", path, err))
	}
	return c, nil
}

// Drain starts or ends the draining of this node.
// Forget revokes a node for good by the root key.
func (o *operator) Forget(ctx context.Context, node stmt.Key) error {
	v := o.state.View()
	switch {
	case o.id.open():
		return api.Problemf(api.ExitUsage, "the network %q is open: nobody can be kept out of it", o.id.Name).
			WithHint("a node that is dead for a week counts no more by itself")
	case node == o.id.self():
		return api.Problemf(api.ExitUsage, "%s is the node that answers", node).WithHint("form node drain, then stop it; another node can forget it")
	case v.Revoked(node):
		return nil
	case !v.IsMember(node, stmt.RoleNode):
		return api.Problemf(api.ExitNotFound, "no node %s is a member of this network", node).WithHint("who is there: form node ls")
	case o.id.RootKey == nil:
		return api.Problemf(api.ExitNotAllowed, "this node does not hold the network's root key, and only that or the node's operator can take it out").
			WithHint("run the same on the node that made the network, or with the key that the node named by --operator")
	}
	return o.state.RevokeNode(ctx, node)
}

// NameOperator says by the root key whom a node belongs to.
func (o *operator) NameOperator(ctx context.Context, node, owner stmt.Key) error {
	switch v := o.state.View(); {
	case o.id.open():
		return api.Problemf(api.ExitUsage, "the network %q is open: nodes belong to nobody in it", o.id.Name)
	case !v.IsMember(node, stmt.RoleNode):
		return api.Problemf(api.ExitNotFound, "no node %s is a member of this network", node).WithHint("who is there: form node ls")
	case o.id.RootKey == nil:
		return api.Problemf(api.ExitNotAllowed, "this node does not hold the network's root key, so it cannot say whom a node belongs to").
			WithHint("run the same on the node that made the network; or the owner says it itself: form node operator NODE")
	}
	return o.state.NameOperator(ctx, node, owner)
}

func (o *operator) Drain(_ context.Context, draining bool) error { return o.rec.SetDraining(draining) }

// invite makes a ticket that admits to roles until expires, by the root key.
func (i *identity) invite(addrs []string, body stmt.InviteBody) (api.Invite, error) {
	seed := newSeed()
	raw, err := stmt.NewInvite(i.RootKey, i.network(), seed, body)
	if err != nil {
		return api.Invite{}, err
	}
	t := i.ticket(bootstrapOf(addrs))
	t.InviteSeed, t.Invite = seed, raw
	return api.Invite{Ticket: t.String(), Expires: time.Unix(body.Expires, 0).UTC()}, nil
}

// handOn is the ticket that this node joined by. Nobody but the root can narrow
// an invite: one that admits to another role than those asked for (none: any),
// for longer than life (0: any), or owners to more than quota, is refused.
func (i *identity) handOn(addrs []string, roles []stmt.Role, life time.Duration, quota stmt.Quota, now time.Time) (api.Invite, error) {
	refuse := func(format string, args ...any) (api.Invite, error) {
		return api.Invite{}, api.Problemf(api.ExitNotAllowed, format, args...).
			WithHint("ask a node that holds the network's root key: form net invite, over there")
	}
	if len(i.Invite) == 0 {
		return refuse("this node holds neither the network's root key nor an invite")
	}
	v, err := stmt.Verify(i.Invite, i.network())
	if err != nil {
		return api.Invite{}, err
	}
	var has stmt.InviteBody
	if err := stmt.Unmarshal(v.Body, &has); err != nil {
		return api.Invite{}, err
	}
	expires := time.Unix(has.Expires, 0).UTC()
	switch {
	case !expires.After(now):
		return refuse("the invite this node joined by ended at %s", expires.Format(time.RFC3339))
	case len(roles) > 0 && !sameRoles(roles, has.Roles):
		return refuse("this node can only hand on the invite it joined by, which admits to %s", has.Roles)
	case life > 0 && expires.After(now.Add(life)):
		return refuse("this node can only hand on the invite it joined by, which lasts until %s", expires.Format(time.RFC3339))
	case !has.Quota.Within(quota):
		return refuse("this node can only hand on the invite it joined by, which allows an owner more than asked for")
	}
	return api.Invite{Ticket: i.ticket(bootstrapOf(addrs)).String(), Expires: expires}, nil
}

// sameRoles says whether two lists hold the same roles.
func sameRoles(a, b []stmt.Role) bool {
	in := func(list []stmt.Role) func(stmt.Role) bool {
		return func(r stmt.Role) bool { return !slices.Contains(list, r) }
	}
	return !slices.ContainsFunc(a, in(b)) && !slices.ContainsFunc(b, in(a))
}

// bootstrapOf chooses the addresses a ticket carries: those that may work from
// elsewhere first, loopback at the end, for swarms on one machine.
func bootstrapOf(addrs []string) []string {
	out := slices.Clone(addrs)
	slices.SortStableFunc(out, func(a, b string) int { return loopbackRank(a) - loopbackRank(b) })
	return out[:min(len(out), stmt.MaxBootstrap)]
}
