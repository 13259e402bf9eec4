package des

import (
	"crypto/ed25519"
	"encoding/base32"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/lease"
	"github.com/formthefog/formation/crdt/place"
	"github.com/formthefog/formation/crdt/stmt"
	"github.com/formthefog/formation/fogvm/reconcile/plan"
	"github.com/formthefog/formation/sim/chance"
)

// owner is somebody who ships.
type owner struct {
	key    ed25519.PrivateKey
	author *crdt.Author
	raws   [][]byte // all it said
}

// perOwner is how many instances an owner has at most here.
const perOwner = 128

func (s *Sim) owner(i int) *owner {
	for len(s.owners) <= i {
		key := s.key("owner", len(s.owners))
		a, err := crdt.NewAuthorFrom(key, s.network, nil, authorDraws(s, len(s.owners)))
		if err != nil {
			s.violate("owner: %v", err)
			return nil
		}
		a.Now = func() time.Time { return time.Unix(wall, 0) }
		s.owners = append(s.owners, &owner{key: key, author: a})
	}
	return s.owners[i]
}

// authorDraws is where an owner's device has its randomness from.
func authorDraws(s *Sim, i int) *rand.ChaCha8 {
	return rand.NewChaCha8([32]byte(s.key("author", i).Seed()))
}

// Workload is what runs from the beginning: Instances of Replicas each, running
// where they rank.
type Workload struct {
	Instances, Replicas int
	// Partition is the contract of all, and Voters how many each that needs them has,
	// drawn.
	Partition string
	Voters    int
	// Need of one replica; zero fields are as in package place.
	VCPU   int
	Memory uint64
}

// PackName is the CID of the n-th pack.
func PackName(n int) string {
	cid := append([]byte{1, 0x71, 0x12, 0x20}, make([]byte, 32)...) // v1, DAG-CBOR, SHA-256
	binary.BigEndian.PutUint64(cid[4:], uint64(n))
	return "b" + base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding).EncodeToString(cid)
}

// Boot starts every node with the same state: all are members and have published
// their registers, and w runs. Of errors in making it Bad tells. In a run that is cut
// meanwhile none or some of the nodes are up.
func (s *Sim) Boot(w Workload) {
	add := func(raw []byte, err error) {
		if err == nil {
			var v stmt.Verified
			if v, err = s.pool.check(raw); err == nil {
				s.genesis = append(s.genesis, v)
				return
			}
		}
		s.violate("genesis: %v", err)
	}
	for i, n := range s.nodes {
		add(stmt.SignMember(s.rootKey, s.network, stmt.MemberBody{Key: n.key, Role: stmt.RoleNode}, nil, 0, uint64(i)))
		s.members[s.genesis[len(s.genesis)-1].Statement().ID] = n.key
	}
	add(stmt.SignMember(s.rootKey, s.network, stmt.MemberBody{Role: stmt.RoleOwner, AnyOwner: true}, nil, 1, 1))
	for i := range w.Instances {
		if s.Stopped() {
			return
		}
		o := s.owner(i / perOwner)
		_, raws, err := o.author.Create(s.spec(w, i))
		o.raws = append(o.raws, raws...)
		if err != nil {
			s.violate("genesis: %v", err)
		}
		for _, raw := range raws {
			add(raw, nil)
		}
	}
	s.heed()
	s.populate()
	h := s.pool.hold(s.genesis)
	h.users = 0
	for _, n := range s.nodes {
		if s.Stopped() {
			return
		}
		n.disk.votes.memory = &lease.Memory{Boot: n.bootID()} // it has been there for long
		if n.absent {
			continue
		}
		n.h = h
		h.users++
		n.disk.base = s.genesis
		n.start(true)
		if len(s.nodes) >= shareFrom && n.i%planSample != 0 {
			// It runs what it would decide to run; some of the nodes see to that.
			in := n.input()
			n.look(in.World, n.knowledge(&in))
		}
	}
}

func (s *Sim) spec(w Workload, i int) crdt.Spec {
	out := crdt.Spec{
		Name: fmt.Sprint("app-", i), Pack: PackName(i + 1), Replicas: w.Replicas, Phase: crdt.PhaseRunning,
		VCPU: w.VCPU, MemoryBytes: w.Memory, Partition: w.Partition,
	}
	rng := chance.Stream(s.cfg.Seed, useVoters, uint64(i))
	for _, v := range rng.Perm(len(s.nodes))[:w.Voters] {
		out.Voters = append(out.Voters, s.nodes[v].key)
	}
	return out
}

// populate has every node say who it is and run what it ranks for.
func (s *Sim) populate() {
	h := s.pool.hold(s.genesis)
	view := h.state.View()
	there := slices.DeleteFunc(slices.Clone(s.nodes), func(n *node) bool { return n.absent })
	slices.SortFunc(there, func(a, b *node) int { return a.key.Compare(b.key) })
	nodes := make([]crdt.Node, len(there))
	for i, n := range there {
		nodes[i] = crdt.Node{Key: n.key, Total: s.cfg.Node, Labels: s.labels(n.i), Region: s.Region(int(n.i))}
	}
	field := s.ranks.Field(nodes) // which decisions will ask too
	claims := map[int32][]crdt.Claim{}
	free := make([]crdt.Resources, len(s.nodes))
	for i := range free {
		free[i] = s.cfg.Node
	}
	for _, spec := range view.Instances() {
		if s.Stopped() {
			break
		}
		slot, r := 0, place.Need(spec)
		for at := range field.Order(spec, anyNode) {
			if slot >= active(spec) {
				break
			}
			n := there[at]
			if f := &free[n.i]; f.CPUs*plan.CPUOvercommit >= r.CPUs && f.Memory >= r.Memory && f.Disk >= r.Disk {
				f.Memory, f.Disk = f.Memory-r.Memory, f.Disk-r.Disk
				claims[n.i] = append(claims[n.i], n.runs(spec, slot))
				slot++
			}
		}
		spare(spec, field, there)
	}
	for _, n := range s.nodes {
		if n.absent {
			continue
		}
		if s.Stopped() {
			break
		}
		n.regs = crdt.NewRegisters(n.priv, s.network, 0)
		node, err := n.regs.Node(h.state, n.register())
		if err == nil {
			var vs []stmt.Verified
			vs, err = n.regs.Claims(h.state, claims[n.i])
			node = append(node, vs...)
		}
		if err != nil {
			s.violate("genesis: %v", err)
		}
		for _, v := range node {
			s.pool.learn(v)
			s.genesis = append(s.genesis, v)
		}
		n.disk.epoch = n.regs.Epoch()
	}
	s.pool.release(h)
}

// active is how many replicas of an instance run at once.
func active(spec crdt.Spec) int {
	if spec.Partition == crdt.PartitionFence {
		return 1
	}
	return spec.Replicas
}

// spare puts the pack where it is to be held beside the nodes that run it.
func spare(spec crdt.Spec, field *place.Field, there []*node) {
	left := min(spec.Replicas, len(there)-spec.Replicas)
	byPack := spec
	byPack.ID = spec.Pack
	for at := range field.Order(byPack, anyNode) {
		if left <= 0 {
			return
		}
		if n := there[at]; n.packs[spec.Pack] == nil {
			n.gains(spec.Pack)
			left--
		}
	}
}

func anyNode(int) bool { return true }

// runs makes n run a replica, and is its claim.
func (n *node) runs(spec crdt.Spec, slot int) crdt.Claim {
	v := &vm{owner: spec.Owner, run: true, pausing: n.pausing(), VM: plan.VM{
		ID: plan.VMID(spec.ID, slot), Slot: plan.Slot{Instance: spec.ID, Slot: slot}, Pack: spec.Pack, Run: true,
		Incarnation: plan.Incarnation(&spec, spec.Pack), Restart: plan.RestartToken(&spec),
		Fenced: spec.Partition == crdt.PartitionFence,
	}}
	n.vms[v.ID] = v
	n.gains(spec.Pack)
	return crdt.Claim{
		Instance: spec.ID, Owner: spec.Owner, Slot: slot, Generation: 1, Phase: crdt.ClaimRunning, Ready: true,
		Pack: spec.Pack, Accel: "kvm", SpecGeneration: spec.Generation, StartedAt: wall, ReadyAt: wall,
	}
}

// Ship has an owner bring a new instance to a node, which acknowledges it once it
// is on disk. It returns the instance's ID.
func (s *Sim) Ship(ownerNo, i int, spec crdt.Spec) string {
	id, raws, err := s.owner(ownerNo).author.Create(spec)
	if err != nil {
		s.violate("ship: %v", err)
		return ""
	}
	s.bring(ownerNo, i, raws, spec.Pack, nil)
	return id
}

// Set has an owner change an instance at a node.
func (s *Sim) Set(ownerNo, i int, id string, change func(*crdt.Spec)) {
	s.change(ownerNo, i, id, s.byThisVersion(change))
}

func (s *Sim) change(ownerNo, i int, id string, change func(*crdt.Spec)) {
	raws, err := s.owner(ownerNo).author.Set(id, change)
	if err != nil {
		s.violate("set: %v", err)
		return
	}
	s.bring(ownerNo, i, raws, "", nil)
}

// Delete has an owner delete an instance at a node, and calls acked, which may be
// nil, if that node acknowledges it.
func (s *Sim) Delete(ownerNo, i int, id string, acked func()) {
	raws, err := s.owner(ownerNo).author.Delete(id)
	if err != nil {
		s.violate("delete: %v", err)
		return
	}
	s.bring(ownerNo, i, raws, "", acked)
}

// Rest ends what Changes began.
func (s *Sim) Rest() { s.resting = true }

// Changes has owners restart an instance so often, drawn, at nodes drawn, until Rest.
func (s *Sim) Changes(mean time.Duration) {
	rng := chance.Stream(s.cfg.Seed, useWorld, uint64(len(s.nodes)), 1)
	wait := func() time.Duration { return time.Duration(rng.ExpFloat64() * float64(mean)) }
	var next func()
	next = func() {
		if s.resting {
			return
		}
		if len(s.owners) == 0 { // nobody has shipped yet
			s.Do(wait(), next)
			return
		}
		owner := rng.IntN(len(s.owners))
		mine, up := s.Instances(owner), s.Honest()
		if len(mine) > 0 && len(up) > 0 {
			s.Set(owner, up[rng.IntN(len(up))], mine[rng.IntN(len(mine))].ID, func(spec *crdt.Spec) { spec.Restart++ })
			s.Seen["an owner changed something"]++
		}
		s.Do(wait(), next)
	}
	s.Do(wait(), next)
}

// Statements is how many there were.
func (s *Sim) Statements() int { return len(s.pool.made) }

// Key is who a node is.
func (s *Sim) Key(i int) stmt.Key { return s.nodes[i].key }

// Owners is how many there are.
func (s *Sim) Owners() int { return len(s.owners) }

// Instances are those of an owner, as its own statements have them.
func (s *Sim) Instances(ownerNo int) []crdt.Spec { return s.owner(ownerNo).author.Instances() }

// bring has a node be brought what an owner has said, and a pack if it names one.
func (s *Sim) bring(ownerNo, i int, raws [][]byte, pack string, acked func()) {
	o := s.owner(ownerNo)
	o.raws = append(o.raws, raws...)
	s.heed()
	s.submit(i, raws, pack, acked)
}

func (s *Sim) submit(i int, raws [][]byte, pack string, acked func()) {
	n := s.nodes[i]
	if !n.up {
		s.violate("statements are brought to %v, which is down", n)
		return
	}
	var vs []stmt.Verified
	for _, raw := range raws {
		v, err := s.pool.check(raw)
		if err != nil {
			s.violate("submit: %v", err)
			return
		}
		vs = append(vs, v)
	}
	if pack != "" {
		n.brings(pack)
	}
	b := &brought{n.i, raws, pack, acked}
	s.brought = append(s.brought, b)
	var refused error
	refused = n.commit(vs, func() {
		s.brought = slices.DeleteFunc(s.brought, func(o *brought) bool { return o == b })
		if errors.Is(refused, crdt.ErrPending) || errors.Is(refused, crdt.ErrNotMember) {
			// It is set aside in memory, which is no acknowledgement (crdt.Replica.Submit).
			s.Seen["an owner was told that something is missing"]++
			s.Do(elsewhere, func() { s.bringAgain(b) })
			return
		}
		s.acked = append(s.acked, vs...)
		if acked != nil {
			acked()
		}
	})
}

// brought is what an owner has brought to a node that has not acknowledged it yet.
type brought struct {
	at    int32
	raws  [][]byte
	pack  string
	acked func()
}

// elsewhere is how long after its node has ended an owner goes to another.
const elsewhere = 5 * time.Second

// unanswered has owners whose node ended before it acknowledged what they brought
// bring it to others, until one does.
func (s *Sim) unanswered(i int32) {
	var again []*brought
	s.brought = slices.DeleteFunc(s.brought, func(b *brought) bool {
		if b.at == i {
			again = append(again, b)
		}
		return b.at == i
	})
	for _, b := range again {
		s.Do(elsewhere, func() { s.bringAgain(b) })
	}
}

func (s *Sim) bringAgain(b *brought) {
	up := s.Reachable()
	if len(up) == 0 {
		s.Do(elsewhere, func() { s.bringAgain(b) })
		return
	}
	s.Seen["an owner went to another node"]++
	rng := chance.Stream(s.cfg.Seed, useAgain, uint64(s.Seen["an owner went to another node"]))
	s.submit(up[rng.IntN(len(up))], b.raws, b.pack, b.acked)
}
