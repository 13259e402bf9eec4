package agent

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/formthefog/formation/cmd/internal/mesh"
	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/policy"
	"github.com/formthefog/formation/crdt/stmt"
	"github.com/formthefog/formation/wg"
)

// Identity is who the device is.
type Identity struct {
	Network stmt.NetworkID
	stmt.Settings
	Owner  stmt.Key
	Device stmt.Key
}

// Testimony is what a node says of an owner's mesh. Statements prove themselves,
// and Name and Root are those whose hash, with the network's settings, is its ID.
type Testimony struct {
	Name       string
	Root       stmt.Key
	Statements [][]byte
}

// Errors of a device that has no place on the mesh.
var (
	// ErrRoot: who answers names another network's root.
	ErrRoot = errors.New("the peer names another root than the network's")
	// ErrUnlisted: the owner does not list the device with its mesh key.
	ErrUnlisted = errors.New("the owner does not list this device")
)

// maxStatements bounds a testimony: MaxPeers replicas, each on an instance of its
// own with an epoch's changes.
const maxStatements = 1 << 16

// Peer is a replica or a node that the device may talk to.
type Peer struct {
	mesh.Peer
	Endpoint string // where its host says that it is; "": as the node
}

// String is its name for people.
func (p Peer) String() string {
	if p.IsNode() {
		return "node " + p.Node.String()
	}
	return fmt.Sprintf("%s/%d", p.Name, p.Slot)
}

// Roster is what statements prove of an owner's mesh.
type Roster struct {
	Peers []Peer
	Book  *mesh.Book

	lasting [][]byte
}

// After is t after what an earlier testimony has proved for good: whom owner or
// network have taken out does not come back because somebody tells the past.
func (t Testimony) After(r Roster) Testimony {
	t.Statements = slices.Concat(r.lasting, t.Statements)
	return t
}

// Judge is pure: the nodes and replicas that statements prove to be the device's
// peers. Of two with one key a node has it, as the owner runs that.
// Statements that prove nothing are ignored.
func Judge(id Identity, key wg.Key, space wg.Space, t Testimony) (Roster, error) {
	if id.NetworkID(t.Name, t.Root) != id.Network {
		return Roster{}, ErrRoot
	}
	if len(t.Statements) > maxStatements {
		return Roster{}, fmt.Errorf("%d statements; at most %d are looked at", len(t.Statements), maxStatements)
	}
	s := crdt.NewState(id.Network, t.Root, crdt.NewModel())
	for _, raw := range t.Statements {
		_, _ = s.Apply(raw, time.Time{}) // what is forged, stale or of no use says nothing
	}
	r, v := Roster{lasting: s.Lasting()}, s.View()
	listed := func(d crdt.Device) bool { return d.Key == id.Device && wg.Key(d.MeshKey) == key }
	if !slices.ContainsFunc(v.Devices(id.Owner), listed) {
		return r, ErrUnlisted
	}
	r.Book = mesh.NewBook(v, space)
	parties, taken := policy.NodesOf(v, id.Owner, id.Device), map[policy.Key]bool{}
	for _, p := range parties {
		taken[p.Key] = true
	}
	for _, p := range policy.OfDevice(v, id.Owner, id.Device) {
		if !taken[p.Key] && len(parties) < policy.MaxPeers {
			parties = append(parties, p)
		}
	}
	for _, p := range r.Book.Peers(parties) {
		r.Peers = append(r.Peers, Peer{Peer: p, Endpoint: endpointOf(v, p.Party)})
	}
	return r, nil
}

func endpointOf(v *crdt.View, p policy.Party) string {
	for _, c := range v.Claims(p.Instance) {
		if c.Node == p.Node && c.Slot == p.Slot {
			return c.Endpoint
		}
	}
	return ""
}

// Target is what of the mesh is meant: a replica, a node when Node alone is set, or
// who has an address.
type Target struct {
	Instance string     `json:"instance,omitempty"`
	Slot     int        `json:"slot"`
	Node     stmt.Key   `json:"node,omitzero"`    // zero: wherever the replica is
	Address  netip.Addr `json:"address,omitzero"` // zero: whatever it has
}

// find is the peer that is meant.
func find(peers []Peer, t Target) (Peer, bool) {
	i := slices.IndexFunc(peers, func(p Peer) bool {
		switch {
		case t.Instance != "" && (p.Instance != t.Instance || p.Slot != t.Slot):
			return false
		case !t.Node.IsZero() && p.Node != t.Node:
			return false
		case t.Address.IsValid():
			return t.Address == p.Address6 || t.Address == p.Address4
		}
		return t.Instance != "" || p.IsNode() && !t.Node.IsZero()
	})
	if i < 0 {
		return Peer{}, false
	}
	return peers[i], true
}
