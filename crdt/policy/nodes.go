package policy

import (
	"cmp"
	"slices"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/stmt"
)

// Fleet is what the policy of nodes is a function of; *crdt.View is one.
type Fleet interface {
	Nodes() []crdt.Node // of members alone, by key
	Devices(owner stmt.Key) []crdt.Device
	Root() stmt.Key
	Rank(node stmt.Key) uint64
}

// around is how many nodes of its group a node has as peers on each side, by key:
// so that who has somebody is had, also where a group is larger.
const around = MaxPeers / 4

// OfNode returns the peers of a node's own device: the devices of those who run
// it, as both it and they or the root say, and the nodes of its group. Those are,
// with an operator that the root named for it, the nodes with the same; without one,
// and when it names none itself, the nodes that are alike, in a network that has a
// root: whoever holds that runs them. What a node alone says of its operators brings
// it nobody: anybody can say it. None when the node has no device.
func OfNode(f Fleet, node stmt.Key) []Party {
	all := nodes(f)
	at := slices.IndexFunc(all, func(n crdt.Node) bool { return n.Key == node })
	if at < 0 {
		return nil
	}
	self := all[at]
	var out []Party
	taken := map[Key]bool{Key(self.MeshKey): true}
	for _, owner := range operators(f, self) {
		for _, p := range devices(f, owner) {
			if !taken[p.Key] && len(out) < MaxPeers/2 {
				taken[p.Key] = true
				out = append(out, p)
			}
		}
	}
	slices.SortFunc(out, Party.compare)
	for _, n := range neighbours(f, all, self) {
		if !taken[Key(n.MeshKey)] {
			out = append(out, ofNode(n))
		}
	}
	return out
}

// NodesOf returns the nodes that an owner's device may reach: those that the owner
// runs, as they say themselves and the owner or the root does too. None when the device is not one of the
// owner's.
func NodesOf(f Fleet, owner, device stmt.Key) []Party {
	own := devices(f, owner)
	if !slices.ContainsFunc(own, func(p Party) bool { return p.Device == device }) {
		return nil
	}
	var out []Party
	for _, n := range nodes(f) {
		if !slices.Contains(operators(f, n), owner) || slices.ContainsFunc(own, func(p Party) bool { return p.Key == Key(n.MeshKey) }) {
			continue
		}
		if out = append(out, ofNode(n)); len(out) == MaxPeers {
			break
		}
	}
	return out
}

// Nodes returns the nodes that have a device, by key.
func Nodes(f Fleet) []Party {
	all := nodes(f)
	out := make([]Party, len(all))
	for i, n := range all {
		out[i] = ofNode(n)
	}
	return out
}

// IsNode says whether the party is a node's own device.
func (p Party) IsNode() bool { return p.Device.IsZero() && p.Instance == "" }

func ofNode(n crdt.Node) Party {
	return Party{Key: Key(n.MeshKey), Owner: n.Operator, Node: n.Key, Address4: n.Address4, Ready: true}
}

// nodes lists those with a device, by key. Of two with one WireGuard key the one
// that was admitted first has it.
func nodes(f Fleet) []crdt.Node {
	holder := map[stmt.Key]crdt.Node{}
	for _, n := range f.Nodes() {
		if n.MeshKey.IsZero() {
			continue
		}
		old, taken := holder[n.MeshKey]
		if !taken || cmp.Or(cmp.Compare(f.Rank(n.Key), f.Rank(old.Key)), n.Key.Compare(old.Key)) < 0 {
			holder[n.MeshKey] = n
		}
	}
	out := make([]crdt.Node, 0, len(holder))
	for _, n := range f.Nodes() {
		if !n.MeshKey.IsZero() && holder[n.MeshKey].Key == n.Key {
			out = append(out, n)
		}
	}
	slices.SortFunc(out, func(a, b crdt.Node) int { return a.Key.Compare(b.Key) })
	return out
}

// operators are the keys that run a node: it names them, and the root names them too
// or they list it.
func operators(f Fleet, n crdt.Node) []stmt.Key {
	lists := func(owner stmt.Key) bool {
		return slices.ContainsFunc(f.Devices(owner), func(d crdt.Device) bool { return d.Node && d.Key == n.Key })
	}
	var out []stmt.Key
	for _, k := range n.Named {
		if !k.IsZero() && (k == n.Operator || lists(k)) {
			out = append(out, k)
		}
	}
	return out
}

// devices lists those of an owner that have a key, by their own.
func devices(f Fleet, owner stmt.Key) []Party {
	var out []Party
	for _, d := range f.Devices(owner) {
		if !d.MeshKey.IsZero() && !slices.ContainsFunc(out, func(p Party) bool { return p.Key == Key(d.MeshKey) }) {
			out = append(out, Party{Key: Key(d.MeshKey), Owner: owner, Device: d.Key, Name: d.Name})
		}
	}
	return out
}

// neighbours are the nodes of self's group, without self: all of them, or those
// next to it in the ring of their keys.
func neighbours(f Fleet, all []crdt.Node, self crdt.Node) []crdt.Node {
	group := slices.DeleteFunc(slices.Clone(all), func(n crdt.Node) bool { return !sameGroup(f, self, n) })
	at := slices.IndexFunc(group, func(n crdt.Node) bool { return n.Key == self.Key })
	if at < 0 {
		return nil
	}
	if len(group) <= 2*around {
		return slices.Delete(group, at, at+1)
	}
	var out []crdt.Node
	for d := -around; d <= around; d++ {
		if d != 0 {
			out = append(out, group[(at+d+len(group))%len(group)])
		}
	}
	slices.SortFunc(out, func(a, b crdt.Node) int { return a.Key.Compare(b.Key) })
	return out
}

func sameGroup(f Fleet, a, b crdt.Node) bool {
	if !a.Operator.IsZero() || !b.Operator.IsZero() {
		return a.Operator == b.Operator
	}
	return !f.Root().IsZero() && len(a.Operators) == 0 && len(b.Operators) == 0
}
