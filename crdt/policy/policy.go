// Package policy says who may talk with whom on the mesh: a pure function of
// what is known.
//
// A device talks with the instances of its owner; a replica with its owner's
// devices and with the replicas of its owner's instances, its own among them. A
// node's own device talks with the devices of who runs it, and with the nodes that
// the same one runs.
// Nobody else gets a key, so WireGuard answers nobody else. So each party has
// tens of peers, whatever the size of the fleet.
//
// Guarantees: the relation is symmetric, so that who is a peer of somebody has
// that as a peer, as soon as both know the same; only claims of member nodes that
// the owner lets run the instance count, of each node one of an instance, and of
// each slot the two with the highest generations; what a claim says that cannot be is not there.
//
// Not guaranteed: that a replica's host is honest. It can be the replica that it
// runs, and no other; it cannot be a device.
package policy

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"net/netip"
	"slices"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/stmt"
)

// State is what the policy is a function of; *crdt.View is one.
type State interface {
	InstancesOf(owner stmt.Key) []crdt.Spec
	Claims(instance string) []crdt.Claim
	Devices(owner stmt.Key) []crdt.Device
	MayRun(spec *crdt.Spec, node stmt.Key) bool
}

// Claims is the part of a State that says where replicas are.
type Claims interface {
	Claims(instance string) []crdt.Claim
	MayRun(spec *crdt.Spec, node stmt.Key) bool
}

// MaxPeers is how many peers a party has at most: devices come first, then
// replicas by instance, slot and generation.
const MaxPeers = 1024

// perSlot is how many claims of a slot count: a replica that moves is two.
const perSlot = 2

// Key is a WireGuard public key.
type Key [32]byte

// Party is somebody on the mesh: a device when Device is set, a replica when
// Instance is, else a node.
type Party struct {
	Key   Key
	Owner stmt.Key

	Device stmt.Key
	Name   string // of the device, or the instance

	Instance string
	Slot     int
	Node     stmt.Key // the node, or the replica's host, through which it is reached

	// Address4 is what the party claims; it is not known to be its own. The zero
	// Addr: nothing.
	Address4 netip.Addr
	Ready    bool // the replica
}

// Identity is what the party's addresses follow from (docs/wire.md): it stays
// when the key is replaced.
func (p Party) Identity() []byte {
	if !p.Device.IsZero() {
		return slices.Concat([]byte("d"), p.Owner[:], p.Device[:])
	}
	if p.IsNode() {
		return slices.Concat([]byte("n"), p.Node[:])
	}
	return slices.Concat([]byte("r"), p.Node[:], []byte(p.Instance), []byte{byte(p.Slot)})
}

func (p Party) compare(o Party) int {
	return cmp.Or(devicesFirst(p, o), p.Device.Compare(o.Device),
		cmp.Compare(p.Instance, o.Instance), cmp.Compare(p.Slot, o.Slot))
}

func devicesFirst(p, o Party) int {
	switch a, b := p.Device.IsZero(), o.Device.IsZero(); {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

// OfDevice returns the peers of an owner's device: the replicas of the owner's
// instances. None when the device is not one of the owner's.
func OfDevice(s State, owner, device stmt.Key) []Party {
	all := parties(s, owner)
	if !slices.ContainsFunc(all, func(p Party) bool { return p.Device == device && !device.IsZero() }) {
		return nil
	}
	return bound(slices.DeleteFunc(all, func(p Party) bool { return !p.Device.IsZero() }))
}

// OfReplica returns the peers of the replica that node runs: its owner's devices
// and all other replicas of the owner's instances. None when the replica's claim
// does not count.
func OfReplica(s State, owner stmt.Key, instance string, slot int, node stmt.Key) []Party {
	all := parties(s, owner)
	self := func(p Party) bool {
		return p.Device.IsZero() && p.Instance == instance && p.Slot == slot && p.Node == node
	}
	if !slices.ContainsFunc(all, self) {
		return nil
	}
	return bound(slices.DeleteFunc(all, self))
}

func bound(all []Party) []Party { return all[:min(len(all), MaxPeers)] }

// parties lists the mesh of an owner, devices first. Two of them never have one
// key: the first keeps it.
func parties(s State, owner stmt.Key) []Party {
	var all []Party
	for _, d := range s.Devices(owner) {
		if !d.MeshKey.IsZero() {
			all = append(all, Party{Key: Key(d.MeshKey), Owner: owner, Device: d.Key, Name: d.Name})
		}
	}
	for _, spec := range s.InstancesOf(owner) {
		all = append(all, Replicas(s, spec)...)
	}
	slices.SortStableFunc(all, Party.compare)
	taken := make(map[Key]bool, len(all))
	return slices.DeleteFunc(all, func(p Party) bool {
		was := taken[p.Key]
		taken[p.Key] = true
		return was
	})
}

// Replicas returns those of an instance whose claims count, by slot, of a slot
// that with the highest generation first. Two may say that they have one key.
func Replicas(s Claims, spec crdt.Spec) []Party {
	claims := counting(s, spec)
	out := make([]Party, 0, len(claims))
	for _, c := range claims {
		key, ok := parseKey(c.MeshKey)
		if !ok {
			continue
		}
		out = append(out, Party{Key: key, Owner: spec.Owner, Name: spec.Name, Instance: spec.ID, Slot: c.Slot, Node: c.Node,
			Address4: parseAddr(c.Address), Ready: c.Ready})
	}
	return out
}

// counting returns the claims of an instance that count, in the order of Replicas.
func counting(s Claims, spec crdt.Spec) []*crdt.Claim {
	all := s.Claims(spec.ID)
	claims := make([]*crdt.Claim, 0, len(all))
	for i := range all {
		if c := &all[i]; c.Owner == spec.Owner && c.Slot < spec.Replicas && s.MayRun(&spec, c.Node) {
			claims = append(claims, c)
		}
	}
	slices.SortFunc(claims, func(a, b *crdt.Claim) int {
		return cmp.Or(cmp.Compare(a.Slot, b.Slot), cmp.Compare(b.Generation, a.Generation), bytes.Compare(b.Node[:], a.Node[:]))
	})
	out := claims[:0]
	slot, counted := -1, 0
	lowest := map[stmt.Key]int{}
	for _, c := range claims {
		if low, has := lowest[c.Node]; has && low < c.Slot {
			continue
		}
		lowest[c.Node] = c.Slot
		if c.Slot != slot {
			slot, counted = c.Slot, 0
		}
		if counted++; counted <= perSlot {
			out = append(out, c)
		}
	}
	return out
}

// parseKey and parseAddr read what a claim says, as it says it; nothing else.
func parseKey(text string) (Key, bool) {
	b, err := base64.StdEncoding.Strict().DecodeString(text)
	if err != nil || len(b) != len(Key{}) {
		return Key{}, false
	}
	return Key(b), Key(b) != Key{}
}

func parseAddr(text string) netip.Addr {
	a, err := netip.ParseAddr(text)
	if err != nil || !a.Is4() {
		return netip.Addr{}
	}
	return a
}
