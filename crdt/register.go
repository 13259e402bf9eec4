package crdt

import (
	"bytes"
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/formthefog/formation/crdt/stmt"
)

// rec is a held statement without what can be decoded again.
type rec struct {
	id     stmt.ID
	raw    []byte
	author stmt.Key
	epoch  uint64
	seq    uint64
}

func recOf(st *stmt.Statement) rec {
	return rec{id: st.ID, raw: st.Raw, author: st.Author, epoch: st.Epoch, seq: st.Seq}
}

// beats says whether a register's statement r replaces old: the higher (epoch,
// seq), and of two with the same, which only an equivocating author makes, the
// higher ID, so that everyone still ends with the same one.
func (r rec) beats(old rec) bool {
	if r.epoch != old.epoch {
		return r.epoch > old.epoch
	}
	if r.seq != old.seq {
		return r.seq > old.seq
	}
	return r.id.Compare(old.id) > 0
}

// mark is a place in the order of one node's registers. The zero mark is before
// all of them.
type mark struct {
	_     struct{} `cbor:",toarray"`
	Epoch uint64
	Seq   uint64
}

// before says whether r was made before m.
func (r rec) before(m mark) bool {
	return r.epoch < m.Epoch || (r.epoch == m.Epoch && r.seq < m.Seq)
}

// nodeBody is the body of a node statement.
type nodeBody struct {
	Addrs    []string          `cbor:"addrs,omitempty"`
	CPUs     int               `cbor:"cpus,omitempty"`
	Memory   uint64            `cbor:"mem,omitempty"`
	Disk     uint64            `cbor:"disk,omitempty"`
	Labels   map[string]string `cbor:"labels,omitempty"`
	Region   string            `cbor:"region,omitempty"`
	Version  string            `cbor:"version,omitempty"`
	Accel    string            `cbor:"accel,omitempty"`
	GPU      string            `cbor:"gpu,omitempty"`
	Draining bool              `cbor:"draining,omitempty"`
	Restarts uint64            `cbor:"restarts,omitempty"`
	Holds    []string          `cbor:"holds,omitempty"`
	Floor    mark              `cbor:"floor,omitzero"`
	By       []byte            `cbor:"by,omitempty"`
	Mesh     stmt.Key          `cbor:"mesh,omitzero"`
	Mesh4    []byte            `cbor:"mesh4,omitempty"`
}

// encodeNode makes n fit a statement: a node that cannot publish its register is
// not there for the others. Of what is too much the last holds give way first, as
// they only speed up a fetch, then the last addresses, then the longest labels.
// Claims made before floor are void by it.
func encodeNode(n Node, floor mark) ([]byte, error) {
	b := nodeBody{
		Addrs: n.Addrs[:min(len(n.Addrs), MaxAddrs)], CPUs: n.Total.CPUs, Memory: n.Total.Memory, Disk: n.Total.Disk,
		Labels: maps.Clone(n.Labels), Region: n.Region, Version: n.Version, Accel: n.Accel, GPU: n.GPU,
		Draining: n.Draining, Restarts: n.Restarts, Holds: n.Holds[:min(len(n.Holds), MaxHolds)],
		Floor: floor, By: n.Operators, Mesh: n.MeshKey,
	}
	if n.Address4.Is4() {
		b.Mesh4 = n.Address4.AsSlice()
	}
	for {
		out, err := stmt.Marshal(b)
		if err != nil || len(out) <= maxNode {
			return out, err
		}
		switch {
		case len(b.Holds) > 0:
			b.Holds = b.Holds[:len(b.Holds)-1]
		case len(b.Addrs) > 0:
			b.Addrs = b.Addrs[:len(b.Addrs)-1]
		case len(b.Labels) > 0:
			delete(b.Labels, longestLabel(b.Labels))
		default:
			return nil, fmt.Errorf("%w: node register of %d bytes", stmt.ErrTooLarge, len(out))
		}
	}
}

// clone returns a copy that shares nothing which a caller may modify.
func (n Node) clone() Node {
	n.Addrs, n.Holds, n.Labels = slices.Clone(n.Addrs), slices.Clone(n.Holds), maps.Clone(n.Labels)
	return n
}

func longestLabel(labels map[string]string) string {
	return slices.MaxFunc(slices.Sorted(maps.Keys(labels)), func(a, b string) int {
		return cmp.Compare(len(a)+len(labels[a]), len(b)+len(labels[b]))
	})
}

func decodeNode(st *stmt.Statement) (n *Node, floor mark, err error) {
	var b nodeBody
	if err := stmt.Unmarshal(st.Body, &b); err != nil {
		return nil, mark{}, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if b.CPUs < 0 || len(b.Holds) > MaxHolds || len(b.Mesh4) != 0 && len(b.Mesh4) != net4 {
		return nil, mark{}, fmt.Errorf("%w: %d CPUs, %d holds, an IPv4 address of %d bytes", ErrInvalid, b.CPUs, len(b.Holds), len(b.Mesh4))
	}
	n = &Node{
		Key: st.Author, Addrs: b.Addrs, Total: Resources{b.CPUs, b.Memory, b.Disk}, Labels: b.Labels,
		Region: b.Region, Version: b.Version, Accel: b.Accel, GPU: b.GPU, Draining: b.Draining,
		Restarts: b.Restarts, Holds: b.Holds, Operators: b.By, MeshKey: b.Mesh, Epoch: st.Epoch, Seq: st.Seq,
	}
	n.Address4, _ = netip.AddrFromSlice(b.Mesh4)
	if len(b.By) > 0 {
		// What names nobody names nobody: the register counts without it.
		n.Named, _ = stmt.PeekOperators(b.By, st.Network, st.Author)
	}
	return n, b.Floor, nil
}

// net4 is the length of an IPv4 address, in bytes.
const net4 = 4

// claimBody is the body of a claim statement. Gone makes it a tombstone, whose
// further fields mean nothing.
type claimBody struct {
	Instance       DocID      `cbor:"inst"`
	Slot           int        `cbor:"slot"`
	Owner          stmt.Key   `cbor:"owner"`
	Gone           bool       `cbor:"gone,omitempty"`
	Generation     uint64     `cbor:"gen,omitempty"`
	Phase          ClaimPhase `cbor:"phase,omitempty"`
	Ready          bool       `cbor:"ready,omitempty"`
	Reason         string     `cbor:"reason,omitempty"`
	Pack           string     `cbor:"pack,omitempty"`
	Address        string     `cbor:"addr,omitempty"`
	Address6       string     `cbor:"addr6,omitempty"`
	MeshKey        string     `cbor:"mesh,omitempty"`
	SSHHostKey     string     `cbor:"ssh,omitempty"`
	Endpoint       string     `cbor:"endpoint,omitempty"`
	Accel          string     `cbor:"accel,omitempty"`
	SpecGeneration uint64     `cbor:"specgen,omitempty"`
	StartedAt      int64      `cbor:"started,omitempty"`
	ReadyAt        int64      `cbor:"readyat,omitempty"`
}

// claimKey names a claim register. The owner is part of it because claims on a
// deleted instance are dropped by what their owner says: a claim that lies about
// the owner must not displace, before it is dropped, one that does not.
type claimKey struct {
	node  stmt.Key
	doc   DocID
	owner stmt.Key
	slot  int
}

// Bounds of the texts in a claim, in bytes. Some come from the guest, so a claim
// is made to fit by leaving out what is too long, the reason first.
const (
	maxReason    = 256
	maxClaimText = 256
)

func encodeClaim(c Claim, gone bool) ([]byte, error) {
	doc, err := ParseDocID(c.Instance)
	if err != nil {
		return nil, err
	}
	b := claimBody{Instance: doc, Slot: c.Slot, Owner: c.Owner, Gone: gone}
	if !gone {
		b = claimBody{
			Instance: doc, Slot: c.Slot, Owner: c.Owner, Generation: c.Generation, Phase: c.Phase,
			Ready: c.Ready, Reason: cutText(c.Reason, maxReason), Pack: fitText(c.Pack), Address: fitText(c.Address),
			Address6: fitText(c.Address6), MeshKey: fitText(c.MeshKey), SSHHostKey: fitText(c.SSHHostKey),
			Endpoint: fitText(c.Endpoint), Accel: fitText(c.Accel),
			SpecGeneration: c.SpecGeneration, StartedAt: c.StartedAt, ReadyAt: c.ReadyAt,
		}
	}
	out, err := stmt.Marshal(b)
	if over := len(out) - MaxClaim; err == nil && over > 0 && b.Reason != "" {
		b.Reason = cutText(b.Reason, max(len(b.Reason)-over, 0))
		out, err = stmt.Marshal(b)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if len(out) > MaxClaim || c.Slot < 0 || c.Slot >= MaxReplicas || c.Owner.IsZero() {
		return nil, fmt.Errorf("%w: claim of %d bytes on slot %d", ErrInvalid, len(out), c.Slot)
	}
	return out, nil
}

// fitText is s, or nothing when it could not be published: a part of a key or an
// address is worse than none.
func fitText(s string) string {
	if len(s) > maxClaimText || !utf8.ValidString(s) {
		return ""
	}
	return s
}

func decodeClaim(st *stmt.Statement) (*claimBody, error) {
	if len(st.Body) > MaxClaim {
		return nil, fmt.Errorf("%w: claim of %d bytes", ErrInvalid, len(st.Body))
	}
	var b claimBody
	if err := stmt.Unmarshal(st.Body, &b); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if b.Slot < 0 || b.Slot >= MaxReplicas || b.Owner.IsZero() || b.Generation > MaxGeneration {
		return nil, fmt.Errorf("%w: claim on slot %d with generation %d", ErrInvalid, b.Slot, b.Generation)
	}
	return &b, nil
}

func (b *claimBody) claim(r rec) Claim {
	return Claim{
		Node: r.author, Instance: b.Instance.String(), Owner: b.Owner, Slot: b.Slot, Generation: b.Generation,
		Phase: b.Phase, Ready: b.Ready, Reason: b.Reason, Pack: b.Pack, Address: b.Address,
		Address6: b.Address6, MeshKey: b.MeshKey, SSHHostKey: b.SSHHostKey, Endpoint: b.Endpoint,
		Accel: b.Accel, SpecGeneration: b.SpecGeneration, StartedAt: b.StartedAt, ReadyAt: b.ReadyAt,
		Epoch: r.epoch, Seq: r.seq,
	}
}

// cutText makes s valid UTF-8 of at most n bytes.
func cutText(s string, n int) string {
	s = strings.ToValidUTF8(s, "?")
	if len(s) <= n {
		return s
	}
	for n > 0 && s[n]&0xc0 == 0x80 {
		n--
	}
	return s[:n]
}

// ownerBody is the body of an owner statement: instances of the author that it
// knows to live and to be dead, and devices that are listed and removed; each list
// strictly ascending, nothing in both of a pair. An instance lives when some held
// statement lists it live and none dead, and a device likewise.
type ownerBody struct {
	Live    []DocID      `cbor:"live,omitempty"`
	Dead    []DocID      `cbor:"dead,omitempty"`
	Devices []deviceBody `cbor:"devices,omitempty"`
	Gone    []stmt.Key   `cbor:"gone,omitempty"`
}

func decodeOwner(st *stmt.Statement) (b ownerBody, opaque bool, err error) {
	if err := stmt.Unmarshal(st.Body, &b); err != nil {
		return b, false, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	for _, list := range [][]DocID{b.Live, b.Dead} {
		for i := 1; i < len(list); i++ {
			if compareDocs(list[i-1], list[i]) >= 0 {
				return b, false, fmt.Errorf("%w: instances out of order or repeated", ErrInvalid)
			}
		}
	}
	for _, d := range b.Live {
		if _, both := slices.BinarySearchFunc(b.Dead, d, compareDocs); both {
			return b, false, fmt.Errorf("%w: instance %s both live and dead", ErrInvalid, d)
		}
	}
	if err := b.checkDevices(st.Author); err != nil {
		return b, false, err
	}
	again, err := stmt.Marshal(b)
	return b, string(again) != string(st.Body), err
}

// subsumes says whether every fact of o is also one of b, so that o need not be
// kept: b knows the same deaths, and knows of every instance that o lists live.
func (b ownerBody) subsumes(o ownerBody) bool {
	has := func(list []DocID, d DocID) bool {
		_, ok := slices.BinarySearchFunc(list, d, compareDocs)
		return ok
	}
	for _, d := range o.Dead {
		if !has(b.Dead, d) {
			return false
		}
	}
	for _, d := range o.Live {
		if !has(b.Live, d) && !has(b.Dead, d) {
			return false
		}
	}
	return b.subsumesDevices(o)
}

func compareDocs(a, b DocID) int { return bytes.Compare(a[:], b[:]) }
