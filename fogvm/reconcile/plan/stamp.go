package plan

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/stmt"
)

// Stamp names all that a decision of one node depends on of its World, but for since
// when nodes are dead and which voters are seen: where it is equal, and so is the rest
// of the Input, Plan decides the same and Interest is the same. Another stamp says
// nothing. Who keeps it from one decision to the next need not decide when something
// changes that is no concern of the node. It is the first half of a SHA-256, so that
// nobody who says something can make two contents have one.
type Stamp [16]byte

// stamps are those of a Brief that are the same for all nodes.
type stamps struct {
	nodes Stamp              // the list of nodes, as far as it ranks them
	world Stamp              // that, who is a member, dead or full, and what all look at
	owner map[stmt.Key]Stamp // all that owners have who are bounded
}

// Stamp is that of in. It is not known without a Brief, unless the World is Stamped,
// and while a node drains: then its replicas wait for one another, wherever they are.
func (in *Input) Stamp() (s Stamp, known bool) {
	b := in.World.brief
	if b == nil || !in.World.Stamped || b.drains {
		return s, false
	}
	t := tag(b.stamps.world[:])
	for _, i := range b.by[in.Self] {
		b.concern(&t, &in.World, i)
	}
	t.part()
	for _, i := range b.watch[in.Self] {
		t.add(b.found[i].stamp[:])
	}
	t.part()
	for _, id := range b.straysOf(in.Self) {
		for _, c := range in.World.Claims[id] {
			if c.Node == in.Self {
				stray := claimStamp(c)
				t.add(stray[:])
			}
		}
	}
	t.part()
	for _, id := range sortedKeys(in.VMs) {
		instance, _, _ := strings.Cut(id, "-")
		_, lives := b.at[instance]
		t.text(id)
		t.flags(lives, in.World.deleted(id, in.VMs[id].Owner))
	}
	t.part()
	for _, id := range sortedKeys(in.Timers.Tries) {
		_, lives := b.at[id]
		t.text(id)
		t.flags(lives)
	}
	return t.stamp(), true
}

// straysOf are the instances that are not there and that k has claims on; hardly ever
// are there any.
func (b *Brief) straysOf(k stmt.Key) []string {
	if len(b.strays) == 0 {
		return nil
	}
	return b.strays[k]
}

// concern adds an instance that a node looks at.
func (b *Brief) concern(t *tag, w *World, i int) {
	t.add(b.found[i].stamp[:])
	if all, bounded := b.stamps.owner[w.Instances[i].Owner]; bounded {
		t.add(all[:])
	}
}

// stamp fills in the stamps, when all else is known. likeNodes: that of the nodes is
// as before.
func (b *Brief) stamp(w, before World, likeNodes bool) {
	if likeNodes {
		b.stamps.nodes = before.brief.stamps.nodes
	} else {
		b.stamps.nodes = nodesStamp(w.Nodes)
	}
	b.stamps.owner = b.owners(w)
	t := tag(b.stamps.nodes[:])
	t.add(w.Members[:])
	for _, k := range slices.SortedFunc(maps.Keys(w.Dead), stmt.Key.Compare) {
		t.add(k[:])
	}
	t.part()
	if len(b.full) > 0 {
		for _, need := range b.needs {
			t.resources(need)
		}
		for _, k := range slices.SortedFunc(maps.Keys(b.full), stmt.Key.Compare) {
			t.add(k[:])
			t.text(b.full[k])
		}
	}
	t.part()
	for _, i := range b.all {
		b.concern(&t, &w, i)
	}
	b.stamps.world = t.stamp()
}

// owners names what bounded owners have: a share of the quota may go to any of it.
func (b *Brief) owners(w World) map[stmt.Key]Stamp {
	if w.Quota == nil {
		return nil
	}
	tags, free := map[stmt.Key]*tag{}, map[stmt.Key]bool{}
	for i := range w.Instances {
		owner := w.Instances[i].Owner
		if free[owner] {
			continue
		}
		t := tags[owner]
		if t == nil {
			quota, bounded := w.Quota(owner)
			if !bounded {
				free[owner] = true
				continue
			}
			t = &tag{}
			t.text(fmt.Sprint(quota))
			tags[owner] = t
		}
		t.add(b.found[i].stamp[:])
	}
	out := make(map[stmt.Key]Stamp, len(tags))
	for k, t := range tags { // any order: each by itself
		out[k] = t.stamp()
	}
	return out
}

// nodesStamp names what alike compares.
func nodesStamp(nodes []crdt.Node) Stamp {
	h := sha256.New()
	t := make(tag, 0, 256)
	for i := range nodes {
		n := &nodes[i]
		t = t[:0]
		t.add(n.Key[:])
		t.add(n.Operator[:])
		t.resources(n.Total)
		t.text(n.Region)
		t.text(n.GPU)
		t.flags(n.Draining)
		for _, l := range sortedKeys(n.Labels) {
			t.text(l)
			t.text(n.Labels[l])
		}
		t.part()
		h.Write(t)
	}
	return Stamp(h.Sum(nil))
}

// stampOf names an instance and the claims on it.
func stampOf(s *crdt.Spec, claims []crdt.Claim) Stamp {
	var t tag
	t.encode(*s)
	t.encode(claims)
	return t.stamp()
}

func claimStamp(c crdt.Claim) Stamp {
	var t tag
	t.encode(c)
	return t.stamp()
}

// tag is what a Stamp is the digest of: parts that tell their lengths.
type tag []byte

func (t *tag) add(fixed []byte) { *t = append(*t, fixed...) }

// part ends a list.
func (t *tag) part() { *t = append(*t, 0xff) }

func (t *tag) text(s string) {
	*t = binary.AppendUvarint(*t, uint64(len(s)))
	*t = append(*t, s...)
}

func (t *tag) flags(flags ...bool) {
	for _, f := range flags {
		if f {
			*t = append(*t, 1)
		} else {
			*t = append(*t, 0)
		}
	}
}

func (t *tag) resources(r crdt.Resources) {
	*t = binary.AppendVarint(*t, int64(r.CPUs))
	*t = binary.AppendUvarint(*t, r.Memory)
	*t = binary.AppendUvarint(*t, r.Disk)
}

// encode adds a value, all of it. What a View says has an encoding, having had one.
func (t *tag) encode(v any) {
	b, err := stmt.Marshal(v)
	if err != nil {
		b = fmt.Appendf(nil, "%#v", v)
	}
	t.text(string(b))
}

func (t *tag) stamp() Stamp {
	sum := sha256.Sum256(*t)
	return Stamp(sum[:len(Stamp{})])
}
