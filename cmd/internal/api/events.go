package api

import (
	"net/http"
	"slices"
	"time"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/stmt"
)

// snapshot is what events are told from: the owner's instances and claims.
type snapshot struct {
	specs  map[string]crdt.Spec
	claims map[claimKey]crdt.Claim
}

type claimKey struct {
	instance string
	node     stmt.Key
	slot     int
}

func takeSnapshot(v *crdt.View, owner stmt.Key, only string) snapshot {
	s := snapshot{map[string]crdt.Spec{}, map[claimKey]crdt.Claim{}}
	for _, spec := range v.InstancesOf(owner) {
		if only != "" && spec.ID != only {
			continue
		}
		s.specs[spec.ID] = spec
		for _, c := range v.Claims(spec.ID) {
			s.claims[claimKey{c.Instance, c.Node, c.Slot}] = c
		}
	}
	return s
}

// changes are the events between two snapshots, in a fixed order.
func changes(a, b snapshot, now time.Time) []Event {
	var out []Event
	for _, id := range sortedKeys(a.specs, b.specs) {
		old, was := a.specs[id]
		spec, is := b.specs[id]
		e := Event{Time: now, Instance: id, Phase: string(spec.Phase), Detail: spec.Name}
		switch {
		case !was:
			e.Kind = "instance.created"
		case !is:
			e.Kind, e.Detail, e.Phase = "instance.deleted", old.Name, string(old.Phase)
		case old.Generation != spec.Generation || old.Phase != spec.Phase || old.Pack != spec.Pack ||
			old.Replicas != spec.Replicas || old.Restart != spec.Restart:
			e.Kind = "instance.changed"
		default:
			continue
		}
		out = append(out, e)
	}
	for k, c := range b.claims {
		old, was := a.claims[k]
		if was && old.Phase == c.Phase && old.Ready == c.Ready && old.Reason == c.Reason {
			continue
		}
		out = append(out, Event{
			Time: now, Kind: "replica.phase", Instance: k.instance, Node: k.node.String(), Slot: k.slot,
			Phase: string(c.Phase), Detail: c.Reason,
		})
	}
	for k, c := range a.claims {
		if _, is := b.claims[k]; !is {
			out = append(out, Event{
				Time: now, Kind: "replica.gone", Instance: k.instance, Node: k.node.String(), Slot: k.slot,
				Phase: string(c.Phase),
			})
		}
	}
	slices.SortStableFunc(out, func(x, y Event) int {
		if x.Instance != y.Instance {
			return compareStrings(x.Instance, y.Instance)
		}
		return x.Slot - y.Slot
	})
	return out
}

func compareStrings(a, b string) int {
	if a < b {
		return -1
	} else if a > b {
		return 1
	}
	return 0
}

func sortedKeys(maps ...map[string]crdt.Spec) []string {
	var keys []string
	for _, m := range maps {
		for k := range m {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	return slices.Compact(keys)
}

func (s *server) events(w http.ResponseWriter, r *http.Request) error {
	ctx, owner, only := r.Context(), CallerOf(r.Context()).Owner, r.URL.Query().Get("instance")
	v := s.State.View()
	if only != "" {
		if spec, ok := v.Instance(only); ok && spec.Owner != owner {
			return Problemf(ExitNotAllowed, "instance %s is another owner's", only)
		}
	}
	watch := s.State.Watch(ctx)
	last := takeSnapshot(v, owner, only)
	e := newEventWriter(w)
	idle := time.NewTicker(keepAlive)
	defer idle.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case v, ok := <-watch:
			if !ok {
				return nil
			}
			next := takeSnapshot(v, owner, only)
			for _, ev := range changes(last, next, s.Now().UTC()) {
				if err := e.send("", ev); err != nil {
					return nil // the peer is gone
				}
			}
			last = next
		case <-idle.C:
			if err := e.comment(); err != nil {
				return nil // the peer is gone
			}
		}
	}
}
