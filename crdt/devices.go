package crdt

import (
	"bytes"
	"cmp"
	"fmt"
	"maps"
	"slices"

	"github.com/formthefog/formation/crdt/stmt"
)

// MaxDevices is how many devices of an owner count, the first by key.
const MaxDevices = 32

// MaxOwnNodes is how many nodes that an owner lists count, the first by key.
const MaxOwnNodes = 256

// maxDeviceNumber bounds how often a device is described anew.
const maxDeviceNumber = 1 << 32

// Device is a key that speaks for its owner: it opens sessions, and may be named a
// delegate of instances. It signs nothing in the owner's name.
type Device struct {
	Key  stmt.Key
	Name string // a DNS label, for people; "" = none
	// MeshKey is the device's WireGuard public key, zero when it has none.
	MeshKey stmt.Key
	// Node: it is no device, but a node that the owner runs. It does not speak for the
	// owner, and its MeshKey is in its own register.
	Node bool
}

// deviceBody is a device in an owner statement, or a node of the owner's. Of two
// descriptions of a key the one with the higher (Number, Name, Mesh, Node) holds.
type deviceBody struct {
	Key    stmt.Key `cbor:"key"`
	Number uint64   `cbor:"n,omitempty"`
	Name   string   `cbor:"name,omitempty"`
	Mesh   stmt.Key `cbor:"mesh,omitzero"`
	Node   bool     `cbor:"node,omitempty"`
}

func (d deviceBody) compare(o deviceBody) int {
	return cmp.Or(cmp.Compare(d.Number, o.Number), cmp.Compare(d.Name, o.Name), bytes.Compare(d.Mesh[:], o.Mesh[:]), compareBools(d.Node, o.Node))
}

func compareBools(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

// checkDevices holds for the device lists of an owner statement.
func (b *ownerBody) checkDevices(owner stmt.Key) error {
	for i, d := range b.Devices {
		switch {
		case i > 0 && b.Devices[i-1].Key.Compare(d.Key) >= 0:
			return fmt.Errorf("%w: devices out of order or repeated", ErrInvalid)
		case d.Key.IsZero() || d.Key == owner:
			return fmt.Errorf("%w: the owner or nobody as a device", ErrInvalid)
		case d.Name != "" && !isLabel(d.Name):
			return fmt.Errorf("%w: device name %.80q is no DNS label", ErrInvalid, d.Name)
		case d.Node && !d.Mesh.IsZero():
			return fmt.Errorf("%w: a mesh key of node %s, which its register has", ErrInvalid, d.Key)
		case d.Number >= maxDeviceNumber:
			return fmt.Errorf("%w: description %d of device %s", ErrInvalid, d.Number, d.Key)
		}
		if _, gone := slices.BinarySearchFunc(b.Gone, d.Key, stmt.Key.Compare); gone {
			return fmt.Errorf("%w: device %s both listed and removed", ErrInvalid, d.Key)
		}
	}
	for i := 1; i < len(b.Gone); i++ {
		if b.Gone[i-1].Compare(b.Gone[i]) >= 0 {
			return fmt.Errorf("%w: removed devices out of order or repeated", ErrInvalid)
		}
	}
	return nil
}

// subsumesDevices says whether b knows the same removals as o, and of every device
// that o lists that it is removed or a description no older.
func (b ownerBody) subsumesDevices(o ownerBody) bool {
	gone := func(k stmt.Key) bool {
		_, ok := slices.BinarySearchFunc(b.Gone, k, stmt.Key.Compare)
		return ok
	}
	for _, k := range o.Gone {
		if !gone(k) {
			return false
		}
	}
	for _, d := range o.Devices {
		at, ok := slices.BinarySearchFunc(b.Devices, d, func(x, y deviceBody) int { return x.Key.Compare(y.Key) })
		if !gone(d.Key) && (!ok || b.Devices[at].compare(d) < 0) {
			return false
		}
	}
	return true
}

// deviceFacts returns the devices of an owner that are listed, each by the
// description that holds, and those that are removed.
func (o *ownerState) deviceFacts() (listed map[stmt.Key]deviceBody, gone map[stmt.Key]bool) {
	listed, gone = map[stmt.Key]deviceBody{}, map[stmt.Key]bool{}
	for _, st := range o.stmts { // any order: the highest description
		for _, k := range st.body.Gone {
			gone[k] = true
		}
		for _, d := range st.body.Devices {
			if old, ok := listed[d.Key]; !ok || old.compare(d) < 0 {
				listed[d.Key] = d
			}
		}
	}
	for k := range gone { // any order: each by itself
		delete(listed, k)
	}
	return listed, gone
}

// devicesOf are the devices and nodes of an owner that count, by key.
func (s *State) devicesOf(owner stmt.Key) []Device {
	o := s.owners[owner]
	if o == nil || o.closed {
		return nil
	}
	listed, _ := o.deviceFacts()
	var out []Device
	counted := map[bool]int{}
	for _, k := range slices.SortedFunc(maps.Keys(listed), stmt.Key.Compare) {
		d := listed[k]
		if counted[d.Node]++; counted[d.Node] <= mostOf(d.Node) {
			out = append(out, Device{Key: k, Name: d.Name, MeshKey: d.Mesh, Node: d.Node})
		}
	}
	return out
}

func mostOf(nodes bool) int {
	if nodes {
		return MaxOwnNodes
	}
	return MaxDevices
}

// refreshDevices recomputes the devices that the next View has of owner.
func (s *State) refreshDevices(owner stmt.Key) {
	list := s.devicesOf(owner)
	if len(list) == 0 && len(s.devices[owner]) == 0 {
		return
	}
	s.devices = maps.Clone(s.devices) // a View may refer to it
	if s.devices == nil {
		s.devices = map[stmt.Key][]Device{}
	}
	if s.devices[owner] = list; len(list) == 0 {
		delete(s.devices, owner)
	}
}

// Devices returns the devices of owner and the nodes that it runs, by key: those
// listed and not removed.
func (v *View) Devices(owner stmt.Key) []Device { return v.devices[owner] }

// SpeaksFor says whether key may speak for owner now: as itself, or as one of its
// devices, while owner's instances count here.
func (v *View) SpeaksFor(key, owner stmt.Key) bool {
	return v.OwnerAllowed(owner) && (key == owner ||
		slices.ContainsFunc(v.devices[owner], func(d Device) bool { return d.Key == key && !d.Node }))
}

// devicePage spreads devices over 64 pages, as instances are.
func devicePage(k stmt.Key) byte { return k[0] >> 2 }

// Devices returns the owner's devices and nodes as the statements known to this Author have
// them.
func (a *Author) Devices() []Device { return a.state.devicesOf(a.owner) }

// SetDevice lists a device or a node, or describes it anew. A removed one is
// ErrInvalid: removal is for ever; so is one that would become the other. Errors also wrap ErrQuota, ErrNotOwner or stmt.ErrTooLarge.
func (a *Author) SetDevice(d Device) (raws [][]byte, err error) {
	return a.changeDevices(d.Key, func(listed map[stmt.Key]deviceBody, gone map[stmt.Key]bool) error {
		old, known := listed[d.Key]
		switch {
		case gone[d.Key]:
			return fmt.Errorf("%w: device %s was removed, which is for ever: it needs a new key", ErrInvalid, d.Key)
		case known && old.Node != d.Node:
			return fmt.Errorf("%w: %s is listed as a device or as a node, and cannot be both", ErrInvalid, d.Key)
		case !known && countOf(listed, d.Node) >= mostOf(d.Node):
			return fmt.Errorf("%w: %d devices or nodes", ErrQuota, mostOf(d.Node))
		}
		add := deviceBody{Key: d.Key, Name: d.Name, Mesh: d.MeshKey, Node: d.Node}
		if known {
			add.Number = old.Number + 1
		}
		listed[d.Key] = add
		return nil
	})
}

func countOf(listed map[stmt.Key]deviceBody, nodes bool) (n int) {
	for _, d := range listed { // any order: a number
		if d.Node == nodes {
			n++
		}
	}
	return n
}

// RemoveDevice removes a device, or a node, for ever. Errors wrap ErrNotFound or ErrNotOwner.
func (a *Author) RemoveDevice(key stmt.Key) (raws [][]byte, err error) {
	return a.changeDevices(key, func(listed map[stmt.Key]deviceBody, gone map[stmt.Key]bool) error {
		if _, ok := listed[key]; !ok {
			return fmt.Errorf("%w: no device %s", ErrNotFound, key)
		}
		delete(listed, key)
		gone[key] = true
		return nil
	})
}

// changeDevices signs the page of key after a change. It subsumes every statement
// about the page's devices that this Author knows.
func (a *Author) changeDevices(key stmt.Key, change func(map[stmt.Key]deviceBody, map[stmt.Key]bool) error) ([][]byte, error) {
	fail := func(err error) ([][]byte, error) { return nil, fmt.Errorf("device %s: %w", key, err) }
	if err := a.asOwner(); err != nil {
		return fail(err)
	}
	o := a.state.owners[a.owner]
	if o == nil {
		o = &ownerState{}
	}
	listed, gone := o.deviceFacts()
	if err := change(listed, gone); err != nil {
		return fail(err)
	}
	var b ownerBody
	for _, k := range slices.SortedFunc(maps.Keys(listed), stmt.Key.Compare) {
		if devicePage(k) == devicePage(key) {
			b.Devices = append(b.Devices, listed[k])
		}
	}
	for _, k := range slices.SortedFunc(maps.Keys(gone), stmt.Key.Compare) {
		if devicePage(k) == devicePage(key) {
			b.Gone = append(b.Gone, k)
		}
	}
	if err := b.checkDevices(a.owner); err != nil {
		return fail(err)
	}
	raw, err := a.signOwner(b)
	if err != nil {
		return fail(err)
	}
	if err := a.apply(raw); err != nil {
		return fail(err)
	}
	return [][]byte{raw}, nil
}

func (a *Author) signOwner(b ownerBody) ([]byte, error) {
	body, err := stmt.Marshal(b)
	if err != nil {
		return nil, err
	}
	return stmt.Sign(a.key, stmt.Statement{
		Kind: stmt.KindOwner, Network: a.state.network, Time: a.Now().Unix(), Body: body,
	})
}
