package plan

import (
	"encoding/hex"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/place"
	"github.com/formthefog/formation/crdt/stmt"
)

// AcceptLabel is the node label that says whose instances the node runs, so
// that the others do not wait for it: "any", or "keys:" and the first 16 hex
// digits of each owner's key. Without the label a node is taken to accept all.
const AcceptLabel = "formd.accept"

// MaxAcceptKeys bounds the keys in an AcceptLabel.
const MaxAcceptKeys = 32

// AcceptLabelOf is the label's value for a list of owners; anybody makes it
// "any". At most MaxAcceptKeys owners are listed.
func AcceptLabelOf(anybody bool, owners []stmt.Key) string {
	if anybody {
		return "any"
	}
	words := make([]string, 0, len(owners))
	for _, k := range owners[:min(len(owners), MaxAcceptKeys)] {
		words = append(words, hex.EncodeToString(k[:8]))
	}
	slices.Sort(words)
	return "keys:" + strings.Join(words, ",")
}

func labelAccepts(label string, owner stmt.Key) bool {
	list, ok := strings.CutPrefix(label, "keys:")
	return !ok || slices.Contains(strings.Split(list, ","), hex.EncodeToString(owner[:8]))
}

// CPUOvercommit is how many virtual CPUs in all a node runs per core it offers.
// Memory and disk are never promised twice.
const CPUOvercommit = 4

// World is the part of a view that decisions depend on, and what this node's
// own probes add to it. Its content is only read.
type World struct {
	Instances []crdt.Spec // owners that the network admits, by ID
	Nodes     []crdt.Node // members, by key
	// Claims by instance, in any order; only claims that count (crdt.View
	// leaves the others out). Claims on unknown instances are in it too.
	Claims map[string][]crdt.Claim
	// Ranks, when not nil, is kept from one decision to the next.
	Ranks *Ranks
	// Members is another whenever MayRun answers otherwise.
	Members stmt.ID
	// MayRun says whether a node is a member on the spec's operators list.
	MayRun func(s *crdt.Spec, node stmt.Key) bool
	// Quota bounds what an owner may have. nil bounds nobody.
	Quota func(owner stmt.Key) (q stmt.Quota, bounded bool)
	// Deleted says whether an owner has deleted an instance, by ID, which may be
	// anybody's. nil knows of no deletion.
	Deleted func(owner stmt.Key, instance string) bool
	// Dead holds the nodes this node has confirmed dead, and since when.
	Dead map[stmt.Key]time.Duration
	// Seen holds the voters that this node has heard of and not confirmed dead,
	// itself among them.
	Seen map[stmt.Key]bool

	// Stamped: a Brief is made with what Input.Stamp is of, which costs something.
	Stamped bool

	used  map[stmt.Key]crdt.Resources // usage, when it is counted already
	brief *Brief
}

// Counted returns w for many questions: what its claims take is counted once.
// Instances and Claims must not change afterwards.
func (w World) Counted() World {
	w.used = w.usage()
	return w
}

// WorldOf reads a view. self's own claims are included even on instances the
// view does not know.
func WorldOf(v *crdt.View, self stmt.Key, dead map[stmt.Key]time.Duration) World {
	w := World{Nodes: v.Nodes(), Claims: map[string][]crdt.Claim{}, Members: v.Admissions(), MayRun: v.MayRun, Quota: v.Quota, Deleted: v.Deleted, Dead: dead}
	for _, s := range v.Instances() {
		if v.OwnerAllowed(s.Owner) {
			w.Instances = append(w.Instances, s)
			w.Claims[s.ID] = v.Claims(s.ID)
		}
	}
	for _, c := range v.ClaimsBy(self) {
		if !slices.ContainsFunc(w.Claims[c.Instance], func(o crdt.Claim) bool { return o.Node == self && o.Slot == c.Slot }) {
			w.Claims[c.Instance] = append(slices.Clip(w.Claims[c.Instance]), c)
		}
	}
	return w
}

// Own lists the claims of one node, by instance.
func (w World) Own(self stmt.Key) []crdt.Claim {
	var out []crdt.Claim
	for _, id := range w.claimedBy(self) {
		for _, c := range w.Claims[id] {
			if c.Node == self {
				out = append(out, c)
			}
		}
	}
	return out
}

// claimedBy lists the instances that a node may have claims on, by ID.
func (w World) claimedBy(k stmt.Key) []string {
	if w.brief == nil {
		return sortedKeys(w.Claims)
	}
	out := slices.Clone(w.brief.strays[k])
	for _, i := range w.brief.by[k] {
		out = append(out, w.Instances[i].ID)
	}
	slices.Sort(out)
	return out
}

// deleted says whether a VM is of an instance that the owner it was defined for has
// deleted. Nobody else's word ends it.
func (w World) deleted(vm string, owner stmt.Key) bool {
	if w.Deleted == nil || owner.IsZero() {
		return false
	}
	instance, _, _ := strings.Cut(vm, "-")
	return w.Deleted(owner, instance)
}

func (w World) dead(k stmt.Key) bool {
	_, dead := w.Dead[k]
	return dead
}

// usage is what every node's claims take by the specs as they are now. It is only
// read.
func (w World) usage() map[stmt.Key]crdt.Resources {
	switch {
	case w.used != nil:
		return w.used
	case w.brief != nil:
		return w.brief.used
	}
	used := map[stmt.Key]crdt.Resources{}
	for i := range w.Instances {
		s := &w.Instances[i]
		for _, c := range w.Claims[s.ID] {
			if c.Phase == crdt.ClaimFailed {
				continue
			}
			used[c.Node] = plus(used[c.Node], place.Need(*s))
		}
	}
	return used
}

// Free is what a node can still admit by the claims in w.
func (w World) Free(n crdt.Node) crdt.Resources {
	u := w.usage()[n.Key]
	return crdt.Resources{
		CPUs:   max(0, n.Total.CPUs*CPUOvercommit-u.CPUs),
		Memory: n.Total.Memory - min(u.Memory, n.Total.Memory),
		Disk:   n.Total.Disk - min(u.Disk, n.Total.Disk),
	}
}

// full says why n has no room for one more replica of s beside used; empty when
// it has. Total capacity is judged by barred.
func full(n *crdt.Node, used crdt.Resources, s *crdt.Spec) string {
	return lacks(n, used, place.Need(*s))
}

// lacks is full of what a replica takes.
func lacks(n *crdt.Node, used, r crdt.Resources) string {
	switch {
	case used.CPUs+r.CPUs > n.Total.CPUs*CPUOvercommit:
		return "its CPUs are taken"
	case used.Memory+r.Memory > n.Total.Memory:
		return "its memory is taken"
	case used.Disk+r.Disk > n.Total.Disk:
		return "its disk is taken"
	}
	return ""
}

// candidate is a node as package place sees it, taken for alive and willing.
func candidate(n *crdt.Node) place.Candidate {
	return place.Candidate{
		Key: n.Key, Operator: n.Operator, Total: n.Total, Labels: n.Labels, Region: n.Region, GPU: n.GPU, Alive: true,
	}
}

// barred says why n must not run s whatever it has free; empty when it may.
// Being dead or draining is not judged here.
func (w World) barred(n *crdt.Node, s *crdt.Spec) string {
	if !w.MayRun(s, n.Key) {
		return "not on the operators list"
	}
	if !labelAccepts(n.Labels[AcceptLabel], s.Owner) {
		return "does not accept this owner's instances"
	}
	if ok, why := place.Eligible(*s, candidate(n)); !ok {
		return why
	}
	return ""
}

func sortedKeys[V any](m map[string]V) []string {
	if len(m) == 0 {
		return nil
	}
	return slices.Sorted(maps.Keys(m))
}

// runnable says whether slots of s are to be filled at all.
func runnable(s *crdt.Spec) bool {
	return s.Phase != crdt.PhaseStopped && refusal(s) == "" && place.OutOfBounds(*s) == ""
}

// refusal says why no node of this version may run s; empty when it may.
func refusal(s *crdt.Spec) string {
	switch {
	case len(s.Critical) > 0:
		return "it needs what this version does not know: " + strings.Join(s.Critical, ", ")
	}
	return contractRefusal(s)
}
