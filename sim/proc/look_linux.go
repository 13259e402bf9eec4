package proc

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/formthefog/formation/crdt/stmt"
	"github.com/formthefog/formation/sim/record"
	"github.com/formthefog/formation/sim/regions"
)

// lookEvery lies between two looks at the swarm, and askEvery between two times that
// its daemons are asked what they run; askLimit is how long they may take to say.
const (
	lookEvery = 250 * time.Millisecond
	askEvery  = time.Second
	askLimit  = 5 * time.Second
)

// unknown is what these tiers do not know of a run.
var unknown = []string{record.OfEvents, record.OfStatements, record.OfSends, record.OfFetches, record.OfDeaths}

// classes of traffic: what is in a packet is the daemons' own.
var classes = []string{"packets"}

// seen is what has been seen of a run.
type seen struct {
	record.Looker
	picked int               // the node that a step is about; -1: none by number
	away   []int             // one side of a split; nil: there is none
	sent   []record.Sent     // of each node
	wanted map[string]int    // replicas, by instance, as nodes listed them last
	names  map[string]string // of instances, by ID
	looked time.Duration
	asked  time.Duration
	asking bool
	said   chan []running
	spans  map[spanKey]bool // of machines that were told of; whether they are over
}

// running is what the daemon of a node says that it runs.
type running struct {
	n     *node
	key   stmt.Key
	of    *exec.Cmd // the daemon
	slots []record.Slot
	err   error
}

type spanKey struct {
	node int
	record.Slot
	from time.Time
}

func newSeen(nodes int) *seen {
	return &seen{picked: -1, sent: make([]record.Sent, nodes), wanted: map[string]int{}, names: map[string]string{}, said: make(chan []running, 1), spans: map[spanKey]bool{}}
}

// starts forgets what was seen before the scenario begins.
func (r *run) starts(ctx context.Context) {
	r.look.Looker, r.look.looked, r.look.asked, r.look.spans = record.Looker{}, 0, -askEvery, map[spanKey]bool{}
	r.count()
	r.look.Begin([]record.Sent{r.total()})
	r.observe(ctx)
}

// observe records what is other than at the look before.
func (r *run) observe(ctx context.Context) {
	now := r.now()
	at := record.In(now)
	r.look.looked = now
	for _, n := range r.nodes {
		r.look.Node(at, n.i, n.states()...)
		if r.ticks == nil && (n.cmd == nil || n.killed) { // what starts no machines is the daemon itself
			r.runs(at, n, nil)
		}
	}
	if r.ticks != nil {
		r.ticked(at)
	} else if !r.look.asking && now-r.look.asked >= askEvery {
		r.look.asking, r.look.asked = true, now
		r.ask(ctx)
	}
	r.look.Reach(at, r.reach())
	r.count()
	r.look.Traffic(at, []record.Sent{r.total()}, 0)
}

// states of a node, as a recording has them.
func (n *node) states() (is []string) {
	switch {
	case n.gone:
		return []string{record.Gone}
	case n.cmd == nil || n.killed || !n.ready:
		return []string{record.Down}
	}
	is = []string{record.Up}
	if n.asleep {
		is = append(is, record.Asleep)
	} else if n.stopped {
		is = append(is, record.Stalled)
	}
	if n.drains {
		is = append(is, record.Draining)
	}
	return is
}

// reach is who reaches whom.
func (r *run) reach() record.Net {
	out := record.Net{Loss: r.loss}
	if r.look.away != nil {
		out.Sides = [][]int{r.look.away}
	}
	for c := range r.cuts { // any order: the recorder sorts them
		if slices.Contains(r.look.away, c[0]) == slices.Contains(r.look.away, c[1]) {
			out.Cuts = append(out.Cuts, c)
		}
	}
	return out
}

// ask has the daemons that are up say what they run. Those that do not answer leave
// it at what they said last.
func (r *run) ask(ctx context.Context) {
	var asked []running
	for _, n := range r.nodes {
		if n.up() {
			asked = append(asked, running{n: n, key: n.key, of: n.cmd})
		}
	}
	go func() {
		ctx, cancel := context.WithTimeout(ctx, askLimit)
		defer cancel()
		done := make(chan struct{})
		for i := range asked {
			go func() {
				asked[i].slots, asked[i].err = runsSelf(ctx, asked[i].n.client, asked[i].key)
				done <- struct{}{}
			}()
		}
		for range asked {
			<-done
		}
		r.look.said <- asked
	}()
}

// runsSelf is what a node lists as ready on itself.
func runsSelf(ctx context.Context, c *client, self stmt.Key) (out []record.Slot, err error) {
	all, err := get[[]instance](ctx, c, "/v1/instances")
	for _, i := range all {
		for _, rep := range i.Replicas {
			if rep.Node == self && rep.Ready {
				out = append(out, record.Slot{Instance: i.ID, Slot: rep.Slot})
			}
		}
	}
	return out, err
}

// answered takes in what daemons say that they run.
func (r *run) answered(all []running) {
	r.look.asking = false
	at := record.In(r.now())
	for _, a := range all {
		if a.err == nil && a.of == a.n.cmd && !a.n.killed {
			r.runs(at, a.n, a.slots)
		}
	}
}

// runs says what runs on a node from now on.
func (r *run) runs(at record.Micros, n *node, slots []record.Slot) {
	for _, s := range r.look.Running(n.i) {
		if !slices.Contains(slots, s) {
			r.replica(at, n.i, s, false)
		}
	}
	for _, s := range slots {
		r.replica(at, n.i, s, true)
	}
}

func (r *run) replica(at record.Micros, n int, s record.Slot, runs bool) {
	r.look.Replica(at, record.Replica{Instance: s.Instance, Name: r.nameOf(s.Instance), Slot: s.Slot, Node: n, Runs: runs}, 0)
}

// nameOf is what an owner calls an instance.
func (r *run) nameOf(id string) string {
	if _, known := r.look.names[id]; !known {
		for _, o := range r.owners {
			for name, is := range o.named { // any order: an ID has one name
				r.look.names[is] = name
			}
		}
	}
	return r.look.names[id]
}

// ticked records which machines run, by what they were seen to write: from when until
// when is known once they have not for a while.
func (r *run) ticked(at record.Micros) {
	now, there := time.Now(), map[spanKey]bool{}
	for _, s := range r.ticks.All() {
		if s.To.Before(r.began) {
			continue
		}
		key := spanKey{s.Node, record.Slot{Instance: s.Instance, Slot: s.Slot}, s.From}
		there[key] = true
		over, told := r.look.spans[key]
		if !told {
			r.replica(max(0, record.In(s.From.Sub(r.began))), s.Node, key.Slot, true)
		}
		off := r.nodes[s.Node].off
		switch {
		case over:
		case s.From.Before(off) && s.To.Before(off.Add(2*watchEvery)):
			r.replica(at, s.Node, key.Slot, false)
			over = true
		case now.Sub(s.To) >= r.ticks.Pause:
			r.replica(record.In(s.To.Sub(r.began)), s.Node, key.Slot, false)
			over = true
		}
		r.look.spans[key] = over
	}
	for key, over := range r.look.spans { // any order: each is by itself
		if !there[key] && !over { // it was forgiven
			r.replica(at, key.node, key.Slot, false)
			r.look.spans[key] = true
		}
	}
}

// count reads what each node has sent. What cannot be read, as of a daemon that has
// just ended, is as it was.
func (r *run) count() {
	for _, n := range r.nodes {
		if n.cmd == nil {
			continue
		}
		pid := n.cmd.Process.Pid
		if !inside(r.h.ns(n.i))(strconv.Itoa(pid)) {
			continue // ip has not become the daemon yet, or it has ended
		}
		s, err := sentBy(pid)
		switch {
		case err == nil:
			r.look.sent[n.i] = s
		case !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.EINVAL) && !errors.Is(err, syscall.ESRCH):
			r.Note("what n%d has sent is not known: %v", n.i, err)
		}
	}
}

func (r *run) total() (sum record.Sent) {
	for _, s := range r.look.sent {
		sum.Messages, sum.Bytes = sum.Messages+s.Messages, sum.Bytes+s.Bytes
	}
	return sum
}

// sentBy is what the network of a process has sent through its one interface.
func sentBy(pid int) (record.Sent, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/net/dev", pid))
	if err != nil {
		return record.Sent{}, err
	}
	defer func() { _ = f.Close() }() // only read
	in := bufio.NewScanner(f)
	for in.Scan() {
		if name, rest, ok := strings.Cut(strings.TrimSpace(in.Text()), ":"); ok && name == "eth0" {
			return sentIn(rest)
		}
	}
	return record.Sent{}, errors.Join(in.Err(), fs.ErrNotExist)
}

// sentIn reads the counters of an interface as /proc/net/dev has them: eight of what
// was received, and then bytes and packets of what was sent.
func sentIn(counters string) (out record.Sent, err error) {
	f := strings.Fields(counters)
	if len(f) < 10 {
		return out, fmt.Errorf("counters of an interface: %q", counters)
	}
	if out.Bytes, err = strconv.ParseUint(f[8], 10, 64); err == nil {
		out.Messages, err = strconv.ParseUint(f[9], 10, 64)
	}
	return out, err
}

// step records one that was begun at a time.
func (r *run) step(at time.Duration, n int, text string) {
	r.look.Add(record.Line{At: record.In(at), Step: &record.Step{N: n, Text: text, Node: r.look.picked}})
}

// wants notes how many replicas nodes list as desired.
func (r *run) wants(all []instance) {
	clear(r.look.wanted)
	for _, i := range all {
		r.look.wanted[i.ID] = i.Desired.Replicas
	}
}

// finish measures the run, and has its recording.
func (r *run) finish() {
	if r.look.asking {
		<-r.look.said
	}
	res, at := r.res, record.In(max(r.res.Real, r.look.looked))
	wanted := func(s record.Slot) bool { return s.Slot < r.look.wanted[s.Instance] }
	res.Metrics = r.look.Metrics(at, res.Nodes, classes, []record.Sent{r.total()}, 0, wanted)
	res.Notes = append(res.Metrics.Words(unknown), res.Notes...)
	res.Acknowledged = 0
	for _, o := range r.owners {
		res.Acknowledged += len(o.acked)
	}
	if res.Cut {
		r.note("cut short after %v: nothing is said of what comes later", at.Duration().Round(time.Millisecond))
	}
	for _, b := range res.Bad {
		r.look.Add(record.Line{At: record.In(b.At), Broken: &record.Broken{Of: string(b.Of), What: b.What}})
	}
	h := record.Header{
		Scenario: res.Scenario, About: r.Plan.About, Tier: res.Tier, Seed: strconv.FormatUint(res.Seed, 10), Nodes: res.Nodes, Steps: res.Steps,
		Replay: res.Replay(), Classes: classes, Unknown: unknown,
	}
	if r.Plan.Network.Regions {
		h.Regions, h.At = record.World(), regions.Places(r.Plan.Nodes, r.Plan.Seed)
	}
	res.Recording = r.look.End(h, at, record.End{Cut: res.Cut, Metrics: res.Metrics})
}
