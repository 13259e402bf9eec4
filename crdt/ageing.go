package crdt

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"maps"
	"slices"
	"time"

	"github.com/formthefog/formation/crdt/stmt"
)

// AgeAfter is how long a node has to be dead, all the time and by this node's own
// probes, before this node forgets it.
const AgeAfter = 7 * 24 * time.Hour

const (
	ageingName = "ageing" // who is dead for how long, and the husks
	maxAgeing  = 16 << 20
	// fewNodes is up to how many nodes one may have been left alone by all the
	// others: whoever is back holds a session with each of them.
	fewNodes = 32
)

// ageing is how long nodes have been dead. Time in which this node did not run
// does not count.
type ageing struct {
	dead map[stmt.Key]time.Duration
}

// The file: a CRC-32C (little endian uint32) of the rest, a canonical list.
type agedNode struct {
	_       struct{} `cbor:",toarray"`
	Node    stmt.Key
	Seconds uint64 // dead so far, while it is not forgotten
	ID      []byte // of its register; empty: none
	Epoch   uint64
	Seq     uint64
	Claims  []agedClaim
}

type agedClaim struct {
	_     struct{} `cbor:",toarray"`
	Doc   DocID
	Owner stmt.Key
	Slot  int
	ID    stmt.ID
	Epoch uint64
	Seq   uint64
}

// Age tells for how much longer than at the last call the nodes in dead have been
// dead by this node's probes; one that is not in dead has been alive, and its time
// begins anew. A node that has been dead for AgeAfter is forgotten: its register
// and claims count no more on this node, see [State.Forget]. In a swarm of more
// than 32 nodes nobody ages while most are dead: more likely this node is cut
// off. What Age counts survives a restart. The node is taken up again when it
// publishes something, or when a session with it begins.
func (r *Replica) Age(dead []stmt.Key, elapsed time.Duration) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	before := len(r.ageing.dead) + len(r.state.husks)
	now := map[stmt.Key]time.Duration{}
	for _, k := range dead {
		if k != r.key && r.state.husks[k] == nil {
			now[k] = r.ageing.dead[k]
		}
	}
	if n := r.state.nodes.len(); n <= fewNodes || 2*len(now) <= n {
		for _, k := range slices.SortedFunc(maps.Keys(now), stmt.Key.Compare) {
			if now[k] += elapsed; now[k] < AgeAfter {
				continue
			}
			delete(now, k)
			if r.state.Forget(k) {
				r.cfg.Logger.Info("forgot a node that was dead for long; form node forget takes it out of the network", "node", k, "dead", AgeAfter)
				r.wake()
			}
		}
	}
	r.ageing.dead = now
	if before+len(now)+len(r.state.husks) == 0 {
		return nil
	}
	if err := r.saveAgeing(); err != nil {
		return fmt.Errorf("age: %w", err)
	}
	return nil
}

// Forgotten are the member nodes that this node has forgotten, sorted.
func (r *Replica) Forgotten() []stmt.Key {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.SortedFunc(maps.Keys(r.state.husks), stmt.Key.Compare)
}

// saveAgeing writes the file of ageing. Under mu.
func (r *Replica) saveAgeing() error {
	var list []agedNode
	for k, d := range r.ageing.dead { // any order: sorted below
		list = append(list, agedNode{Node: k, Seconds: uint64(d / time.Second)})
	}
	for k, h := range r.state.husks { // any order: sorted below
		n := agedNode{Node: k, Epoch: h.node.epoch, Seq: h.node.seq}
		if h.node.id != (stmt.ID{}) {
			n.ID = h.node.id[:]
		}
		for ck, c := range h.claims { // any order: the file's means nothing
			n.Claims = append(n.Claims, agedClaim{Doc: ck.doc, Owner: ck.owner, Slot: ck.slot, ID: c.id, Epoch: c.epoch, Seq: c.seq})
		}
		list = append(list, n)
	}
	slices.SortFunc(list, func(a, b agedNode) int { return a.Node.Compare(b.Node) })
	b, err := stmt.Marshal(list)
	if err != nil {
		return err
	}
	if len(b) > maxAgeing {
		return fmt.Errorf("%d bytes of %s", len(b), ageingName)
	}
	return writeAtomic(r.fsys, ageingName, func(w io.Writer) error {
		_, err := w.Write(append(binary.LittleEndian.AppendUint32(nil, crc32.Checksum(b, castagnoli)), b...))
		return err
	})
}

// loadAgeing takes up what the file says, after the log was read. A damaged one
// counts as none: time begins anew, and what was forgotten comes back from peers.
func (r *Replica) loadAgeing() error {
	b, err := readSmall(r.fsys, ageingName, maxAgeing+5)
	if err != nil {
		return fmt.Errorf("read %s: %w", ageingName, err)
	}
	r.ageing.dead = map[stmt.Key]time.Duration{}
	if len(b) == 0 {
		return nil
	}
	list, err := decodeAgeing(b)
	if err != nil {
		r.cfg.Logger.Warn("it is not known which nodes have been dead for how long", "err", err)
		return nil
	}
	for _, n := range list {
		if len(n.ID) == 0 && len(n.Claims) == 0 {
			r.ageing.dead[n.Node] = time.Duration(n.Seconds) * time.Second
			continue
		}
		h := &husk{claims: map[claimKey]rec{}}
		if len(n.ID) > 0 {
			h.node = rec{id: stmt.ID(n.ID), author: n.Node, epoch: n.Epoch, seq: n.Seq}
		}
		for _, c := range n.Claims {
			h.claims[claimKey{n.Node, c.Doc, c.Owner, c.Slot}] = rec{id: c.ID, author: n.Node, epoch: c.Epoch, seq: c.Seq}
		}
		r.state.restore(n.Node, h)
	}
	return nil
}

func decodeAgeing(b []byte) ([]agedNode, error) {
	if len(b) < 4 || len(b) > maxAgeing+4 || crc32.Checksum(b[4:], castagnoli) != binary.LittleEndian.Uint32(b) {
		return nil, fmt.Errorf("%s is damaged", ageingName)
	}
	var list []agedNode
	if err := stmt.Unmarshal(b[4:], &list); err != nil {
		return nil, fmt.Errorf("%s: %w", ageingName, err)
	}
	for _, n := range list {
		if (len(n.ID) != 0 && len(n.ID) != len(stmt.ID{})) || n.Seconds > uint64(AgeAfter/time.Second) {
			return nil, fmt.Errorf("%s: node %s", ageingName, n.Node)
		}
		for _, c := range n.Claims {
			if c.Slot < 0 || c.Slot >= MaxReplicas {
				return nil, fmt.Errorf("%s: slot %d", ageingName, c.Slot)
			}
		}
	}
	return list, nil
}

// remember takes up a forgotten node that turns out to live. Under mu.
func (r *Replica) remember(node stmt.Key) {
	if r.state.Remember(node) {
		r.cfg.Logger.Info("a forgotten node is back", "node", node)
		if err := r.saveAgeing(); err != nil {
			r.cfg.Logger.Warn("a node that is back may be forgotten again at the next start", "node", node, "err", err)
		}
	}
}
