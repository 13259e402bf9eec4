package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/formthefog/formation/cmd/form/internal/cli"
	"github.com/formthefog/formation/cmd/form/internal/swarm"
	"github.com/formthefog/formation/cmd/internal/api"
	"github.com/formthefog/formation/cmd/internal/spell"
	"github.com/formthefog/formation/crdt/names"
	"github.com/formthefog/formation/crdt/stmt"
)

// host is what a user writes for an instance or one of its replicas:
// [USER@]NAME|ID|ADDRESS[/SLOT], or a name of the mesh.
type host struct {
	text  string // as written, without user
	user  string
	name  string
	slot  int      // -1: any
	owner stmt.Key // zero: the caller
}

func parseHost(s string) (host, error) {
	h := host{slot: -1, name: s}
	if u, rest, ok := strings.Cut(h.name, "@"); ok {
		if u == "" || strings.HasPrefix(u, "-") {
			return h, cli.Errorf(api.ExitUsage, "%q: no user before the @", s)
		}
		h.user, h.name = u, rest
	}
	h.text = h.name
	if n, slot, ok := strings.Cut(h.name, "/"); ok {
		v, err := strconv.ParseUint(slot, 10, 16)
		if err != nil {
			return h, cli.Errorf(api.ExitUsage, "%q: the replica after the / must be a number, as in name/0", s)
		}
		h.name, h.slot = n, int(v)
	}
	h.name = strings.TrimSuffix(strings.ToLower(h.name), ".")
	if h.name == "" || strings.HasPrefix(h.name, "-") {
		return h, cli.Errorf(api.ExitUsage, "%q names no instance", s).
			Hint("an instance is named by its name, its ID, or one of its replicas (name/0): form ls")
	}
	return h, nil
}

// in is h with a name of the mesh understood as one of the zone.
func (h host) in(zone string) (host, error) {
	ref, ok := names.Parse(h.name, zone)
	if !ok {
		return h, nil
	}
	if h.slot >= 0 && ref.Slot >= 0 {
		return h, cli.Errorf(api.ExitUsage, "%q names two replicas", h.text)
	}
	h.name, h.owner, h.slot = ref.App, ref.Owner, max(h.slot, ref.Slot)
	return h, nil
}

// isDomain says whether a name may be one of the mesh: no instance's has a dot.
func (h host) isDomain() bool {
	_, err := netip.ParseAddr(h.name)
	return err != nil && strings.Contains(h.name, ".")
}

// wholeInstance is parseHost for what names neither a replica nor a user.
func wholeInstance(s string) (host, error) {
	h, err := parseHost(s)
	if err == nil {
		err = h.whole()
	}
	return h, err
}

// whole is an error when h names a replica or a user.
func (h host) whole() error {
	switch {
	case h.slot >= 0:
		return cli.Errorf(api.ExitUsage, "%s names one replica, and this is about the whole instance", h.text).
			Hint("leave /%d out: %s", h.slot, h.name).Hint("fewer replicas: form scale %s N", h.name)
	case h.user != "":
		return cli.Errorf(api.ExitUsage, "%s@%s names a user, and this is about the whole instance", h.user, h.text).
			Hint("leave %s@ out: %s", h.user, h.name)
	}
	return nil
}

// find resolves a host among the caller's own instances, then, for an ID, among
// everyone's. The host it returns is h as the network's zone has it.
func (a *app) find(ctx context.Context, c *swarm.Conn, h host) (api.Instance, host, error) {
	if h.isDomain() {
		_, settings, err := c.Settled(ctx)
		if err == nil {
			h, err = h.in(settings.Full().Zone)
		}
		if err != nil {
			return api.Instance{}, h, err
		}
	}
	i, err := a.findAmong(ctx, c, h)
	return i, h, err
}

// findWhole is find for what names neither a replica nor a user.
func (a *app) findWhole(ctx context.Context, c *swarm.Conn, h host) (api.Instance, error) {
	i, h, err := a.find(ctx, c, h)
	if err == nil {
		err = h.whole()
	}
	return i, err
}

func (a *app) findAmong(ctx context.Context, c *swarm.Conn, h host) (api.Instance, error) {
	owner, err := a.owner()
	if err != nil {
		return api.Instance{}, err
	}
	if !h.owner.IsZero() {
		owner = h.owner
	}
	mine, err := c.API().Instances(ctx, &owner)
	if err != nil {
		return api.Instance{}, err
	}
	found := matches(mine, h.name)
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return a.findForeign(ctx, c, h, mine)
	}
	return api.Instance{}, ambiguous(h.text, found)
}

// findForeign looks for somebody else's instance by its ID.
func (a *app) findForeign(ctx context.Context, c *swarm.Conn, h host, mine []api.Instance) (api.Instance, error) {
	if looksLikeID(h.name) {
		inst, err := c.API().Instance(ctx, h.name)
		if err == nil || api.ExitOf(err) != api.ExitNotFound {
			return inst, err
		}
	}
	e := cli.Errorf(api.ExitNotFound, "no instance %q among yours", h.name)
	var all []string
	for _, i := range mine {
		all = append(all, i.Name)
	}
	if near := spell.Nearest(h.name, all); near != "" {
		e.Hint("did you mean %s?", near)
	}
	return api.Instance{}, e.Hint("what runs: form ls (form ls --all shows other owners' too)")
}

// matches is the instances that a name, ID, ID prefix or mesh address means: the
// best kind of match only.
func matches(all []api.Instance, name string) []api.Instance {
	pick := func(ok func(api.Instance) bool) (out []api.Instance) {
		for _, i := range all {
			if ok(i) {
				out = append(out, i)
			}
		}
		return out
	}
	if f := pick(func(i api.Instance) bool { return i.ID == name || i.Name == name }); len(f) > 0 {
		return f
	}
	if addr, err := netip.ParseAddr(name); err == nil {
		is := func(s *string) bool {
			if s == nil {
				return false
			}
			got, err := netip.ParseAddr(*s)
			return err == nil && got == addr
		}
		return pick(func(i api.Instance) bool {
			return slices.ContainsFunc(i.Replicas, func(r api.Replica) bool { return is(r.Address) || is(r.Address6) })
		})
	}
	if len(name) < 6 {
		return nil
	}
	return pick(func(i api.Instance) bool { return strings.HasPrefix(i.ID, name) })
}

func looksLikeID(s string) bool {
	return len(s) == 32 && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz234567") == ""
}

func ambiguous(what string, found []api.Instance) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%q may be any of %d instances:", what, len(found))
	for _, i := range found {
		fmt.Fprintf(&b, "\n  %s  %s  %s", i.ID, i.Name, i.Status)
	}
	return cli.Errorf(api.ExitUsage, "%s", b.String()).Hint("use the ID")
}

// replicas is the claims that may answer, best first: ready before running,
// alive before suspect. With a slot only that replica's.
func replicas(i api.Instance, h host) ([]api.Replica, error) {
	var out []api.Replica
	slots := map[int]bool{}
	for _, r := range i.Replicas {
		slots[r.Slot] = true
		if h.slot >= 0 && r.Slot != h.slot {
			continue
		}
		if rank(r) < notRunning {
			out = append(out, r)
		}
	}
	if len(out) > 0 {
		slices.SortStableFunc(out, func(a, b api.Replica) int { return cmp.Compare(rank(a), rank(b)) })
		return out, nil
	}
	if h.slot >= 0 && !slots[h.slot] && h.slot >= i.Desired.Replicas {
		return nil, cli.Errorf(api.ExitNotFound, "%s has no replica %d; it wants %d", i.Name, h.slot, i.Desired.Replicas).
			Hint("form manage inspect %s", i.Name)
	}
	what := i.Name
	if h.slot >= 0 {
		what = fmt.Sprintf("%s/%d", i.Name, h.slot)
	}
	if i.Desired.Phase == "stopped" {
		return nil, cli.Errorf(api.ExitFailed, "%s is stopped", what).Hint("form manage start %s", i.Name)
	}
	return nil, cli.Errorf(api.ExitFailed, "%s does not run: %s", what, statusText(i)).
		Hint("why: form manage explain %s", i.Name)
}

// notRunning is the rank from which a claim has no guest to talk to.
const notRunning = 10

func rank(r api.Replica) int {
	n := notRunning
	switch r.Phase {
	case "running", "unhealthy", "draining":
		n = 2
		if r.Ready {
			n = 0
		}
	case "launching":
		n = 4
	}
	switch r.Live {
	case "suspect":
		n++
	case "dead":
		n += 5
	}
	return n
}

// onReplica runs f for the replicas that may answer until one is reachable.
func (a *app) onReplica(i api.Instance, h host, f func(api.Replica) error) error {
	list, err := replicas(i, h)
	if err != nil {
		return err
	}
	var first error
	for n, r := range list {
		err := f(r)
		var u *swarm.UnreachableError
		if err == nil || !errors.As(err, &u) && api.ExitOf(err) != api.ExitUnreachable {
			return err
		}
		if first == nil {
			first = err
		}
		if n+1 < len(list) {
			a.p.Note("replica %s/%d on node %s: %v; trying the next", i.Name, r.Slot, short(r.Node), err)
		}
	}
	return first
}

// short is a key for people; the last characters of a peer ID tell it apart.
func short(k stmt.Key) string {
	s := k.String()
	if len(s) < 12 {
		return s
	}
	return "…" + s[len(s)-8:]
}

// statusText is what `form manage get status` prints, byte for byte.
func statusText(i api.Instance) string {
	if i.Status == api.StatusFailure {
		return fmt.Sprintf("FAILURE { reason: %s }", i.Reason)
	}
	return i.Status
}
