package des

import (
	"github.com/formthefog/formation/crdt/live"
	"github.com/formthefog/formation/crdt/stmt"
	"time"
)

// peersEvery is how many ticks lie between two looks at who there is, and
// viaTimeout how long a helper's answer is waited for (fogvm/reconcile).
const (
	peersEvery = 4
	viaTimeout = probeTimeout + time.Second
)

// via is an indirect probe that this node makes for another.
type via struct {
	asker  int32
	target int32
	asked  int64 // when, by the asker
}

// Sizes of what probes say.
const (
	pingSize   = 8
	viaSize    = 32
	answerSize = 1
)

func (n *node) tick() {
	n.after(probeTick, evTick, 0, 0, nil)
	if n.ticks%peersEvery == 0 && n.unwatched {
		n.unwatched, n.told = false, n.view().roster
		n.step(live.Peers{All: n.told.keys, Interest: n.interest, Epochs: n.told.epochs})
		for k := range n.dead { // any order: each by itself
			if n.detect.Status(k).State != live.Dead {
				delete(n.dead, k)
				n.deadVer++
			}
		}
	}
	n.ticks++
	n.step(live.Tick{})
	n.renew()
}

// bootTime is what the machine's clock of time since boot shows.
func (n *node) bootTime() time.Duration { return n.clock.at(n.sim.now) }

func (n *node) step(ev live.Event) {
	if c, ok := ev.(live.Contact); ok {
		n.greet(c.Key)
	}
	n.stepped = n.bootTime()
	for _, e := range n.detect.Step(n.stepped, ev) {
		switch e := e.(type) {
		case live.Ping:
			n.tell(Probes, pingSize, evPing, n.sim.index[e.To], int64(n.sim.now), 0)
		case live.PingReq:
			for _, k := range e.Via {
				n.tell(Probes, viaSize, evVia, n.sim.index[k], int64(n.sim.index[e.Target]), int64(n.sim.now))
			}
		case live.Tell:
			n.spread(e.Hint)
		case live.Changed:
			n.note(e)
		default:
			n.sim.violate("%v: the detector wants %T, which nothing here does", n, e)
		}
	}
}

func (n *node) tell(class Class, size int, k kind, to int32, a, b int64) {
	n.sim.send(class, size, event{kind: k, node: to, from: n.i, a: a, b: b})
}

func (n *node) contact(i int32) { n.step(live.Contact{Key: n.sim.nodes[i].key}) }

// greet looks again when a peer was heard of that was not seen before: it may be a
// voter.
func (n *node) greet(k stmt.Key) {
	if !n.sim.contracts {
		return
	}
	if s := n.detect.Status(k); s.Contact == 0 && s.State != live.Dead {
		n.seenVer++
		n.plan()
	}
}

// sees says whether a node was heard of and is not confirmed dead.
func (n *node) sees(k stmt.Key) bool {
	s := n.detect.Status(k)
	return n.bootTime()-n.stepped <= sleepGap && s.Contact != 0 && s.State != live.Dead
}

// note keeps what the detector found.
func (n *node) note(e live.Changed) {
	_, was := n.dead[e.Key]
	switch e.State {
	case live.Dead:
		n.dead[e.Key] = n.bootTime()
		n.sim.confirmed(n, e.Key)
	case live.Alive:
		delete(n.dead, e.Key)
	}
	if was != (e.State == live.Dead) {
		n.deadVer++
		n.plan()
	}
}

func (n *node) probe(e *event) {
	switch e.kind {
	case evPing:
		n.contact(e.from)
		n.tell(Probes, pingSize, evEcho, e.from, e.a, e.b)
	case evEcho:
		if e.b == 0 {
			if int64(n.sim.now)-e.a < int64(probeTimeout) {
				n.contact(e.from)
			}
			return
		}
		if v, ok := n.vias[e.b]; ok {
			delete(n.vias, e.b)
			n.tell(Probes, answerSize, evViaEcho, v.asker, int64(v.target), v.asked<<1|1)
		}
	case evVia:
		n.lastVia++
		n.vias[n.lastVia] = via{asker: e.from, target: int32(e.a), asked: e.b}
		n.after(probeTimeout, evViaEnd, n.lastVia, 0, nil)
		n.tell(Probes, pingSize, evPing, int32(e.a), int64(n.sim.now), n.lastVia)
	case evViaEcho:
		if int64(n.sim.now)-e.b>>1 < int64(viaTimeout) {
			n.contact(e.from)
			if e.b&1 == 1 {
				n.contact(int32(e.a))
			}
		}
	}
}

// viaEnd answers that the target of an indirect probe did not.
func (n *node) viaEnd(nonce int64) {
	if v, ok := n.vias[nonce]; ok {
		delete(n.vias, nonce)
		n.tell(Probes, answerSize, evViaEcho, v.asker, int64(v.target), v.asked<<1)
	}
}
