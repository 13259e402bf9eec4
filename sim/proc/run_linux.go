package proc

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/formthefog/formation/crdt/stmt"
	"github.com/formthefog/formation/sim/chance"
	"github.com/formthefog/formation/sim/des"
)

// How long things may take that are no faults: a busy machine starts slowly.
const (
	startLimit = 2 * time.Minute
	meetLimit  = 2 * time.Minute
	calmLimit  = 2 * time.Minute
	bootLimit  = 10 * time.Minute       // of machines, which may be emulated
	look       = 500 * time.Millisecond // between two looks at what is waited for
)

// Run carries out a plan. The error says why it could not; what did not hold is in
// the result. The end of ctx cuts it short: the result is of what there was until
// then. However it ends, everything is removed.
func Run(ctx context.Context, cfg Config) (res *Result, err error) {
	if err := Refuse(cfg.Plan, cfg.tier()); err != nil {
		return nil, err
	}
	if err := able(cfg.tier()); err != nil {
		return nil, err
	}
	if cfg.Note == nil {
		cfg.Note = func(string, ...any) {}
	}
	swept, err := sweep(ctx)
	for _, id := range swept {
		cfg.Note("removed what %s had left, which was killed", id)
	}
	if err != nil {
		return nil, fmt.Errorf("what an earlier run has left: %w", err)
	}
	h, err := named(os.Getpid())
	if err != nil {
		return nil, err
	}
	p := cfg.Plan
	r := &run{
		Config: cfg, h: h, tell: make(chan happening, 4*p.Nodes), seen: map[string]int{}, pack: "",
		cuts: map[[2]int]bool{}, fenced: map[string]bool{}, loss: p.Network.Loss,
		res:  &Result{Scenario: p.Name, Tier: cfg.tier(), Nodes: p.Nodes, Seed: p.Seed, Steps: len(p.Steps), Notes: []string{}, Bad: []des.Broken{}, Unknown: unknown},
		look: newSeen(p.Nodes),
	}
	// The end of ctx must not keep it from being undone.
	defer func() {
		err = errors.Join(err, r.undo(context.WithoutCancel(ctx)))
		r.finish()
	}()
	if err = r.begin(ctx); err == nil {
		err = r.whole(ctx)
	}
	if r.res.Cut = ctx.Err() != nil; err != nil && !r.res.Cut {
		return r.res, r.explain(err)
	}
	return r.res, nil
}

func able(tier string) error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("%w: this user is not root", ErrUnable)
	}
	tools := []string{"ip", "nft"}
	if tier == TierVM {
		tools = append(tools, "qemu-system-x86_64")
	}
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			return fmt.Errorf("%w: %w", ErrUnable, err)
		}
	}
	return nil
}

// run is one run of a scenario. All of it happens in one goroutine; those of
// daemons tell it news.
type run struct {
	Config
	h     *host
	nodes []*node
	tell  chan happening
	res   *Result
	look  *seen

	network stmt.NetworkID
	pack    string   // CID of what all instances run
	owners  []*owner // by number
	seen    map[string]int
	cuts    map[[2]int]bool // from, to
	loss    float64
	fenced  map[string]bool // instances of that contract, by ID
	ticks   *watcher        // of machines; nil: none are real
	walls   []string        // what each node's firewall was told last
	later   []due           // by time
	began   time.Time
}

func (r *run) now() time.Duration { return time.Since(r.began) }

func (r *run) note(format string, args ...any) {
	r.res.Notes = append(r.res.Notes, fmt.Sprintf(format, args...))
}

func (r *run) fail(of des.Invariant, format string, args ...any) {
	b := des.Broken{Of: of, At: r.now().Round(time.Millisecond), What: fmt.Sprintf(format, args...)}
	r.Note("%v", b)
	if len(r.res.Bad) < 100 {
		r.res.Bad = append(r.res.Bad, b)
	}
}

// explain adds to an error what the daemons said last.
func (r *run) explain(err error) error {
	for _, n := range r.nodes {
		if _, serr := os.Stat(n.log); serr == nil {
			r.Note("the last words of n%d: %s", n.i, n.lastWords())
		}
	}
	return err
}

// begin makes the machines and has a swarm on them that runs what the scenario
// wants from the beginning.
func (r *run) begin(ctx context.Context) error {
	r.began = time.Now()
	size := int64(diskSize)
	if r.Base != "" {
		size = diskSizeVM
	}
	if err := r.h.make(ctx, r.Plan.Nodes, size, linesOf(r.Plan)); err != nil {
		return err
	}
	if err := r.prepare(ctx); err != nil {
		return err
	}
	if r.Base != "" {
		r.ticks = watch(r.nodes)
	}
	first := r.nodes[0]
	if err := first.start(r.tell); err != nil {
		return err
	}
	if err := r.allReady(ctx, startLimit); err != nil {
		return err
	}
	inv, err := post[invite](ctx, first.client, "/v1/invites", struct{}{})
	if err != nil {
		return err
	}
	for _, n := range r.nodes[1:] {
		n.args = append(n.args, "--join", inv.Ticket)
		if err := n.start(r.tell); err != nil {
			return err
		}
	}
	if err := r.allReady(ctx, startLimit); err != nil {
		return err
	}
	if err := r.meet(ctx); err != nil {
		return err
	}
	if err := r.populate(ctx); err != nil {
		return err
	}
	r.Note("%d daemons run and know each other after %v", len(r.nodes), r.now().Round(time.Millisecond))
	return r.firewall(ctx)
}

// holders is how many nodes have the pack from the beginning: the others fetch it.
const holders = 3

// prepare makes the nodes, without a daemon yet.
func (r *run) prepare(ctx context.Context) error {
	logs := r.Logs
	if logs == "" {
		logs = r.h.dir
	}
	config := r.h.path("formd.toml")
	if err := os.WriteFile(config, nil, 0o600); err != nil { // so that the machine's own is not read
		return err
	}
	driver := "fake"
	if r.Base != "" {
		driver = "qemu"
	}
	for i := range r.Plan.Nodes {
		n := &node{i: i, h: r.h, log: filepath.Join(logs, fmt.Sprintf("n%d.log", i))}
		dir := n.dir()
		socket, data, at := filepath.Join(dir, "api.sock"), filepath.Join(r.h.disk(i), "data"), address(i)
		n.client = newClient(socket)
		n.args = slices.Concat(r.Formd, []string{
			"run", "--config", config, "--data", data, "--api", "unix://" + socket, "--vm-driver", driver, "--stop-vms",
			"--web", "off", "--metrics", "off", "--no-mdns", "--no-portmap", "--mesh", "off", "--accept", "any",
			"--listen", fmt.Sprintf("/ip4/%s/tcp/51820", at), "--listen", fmt.Sprintf("/ip4/%s/udp/51820/quic-v1", at),
			"--cpus", "16", "--memory", "32G", "--disk", "200G",
		})
		n.env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir, mark + "=" + r.h.id}, r.Env...)
		if i < holders {
			put := func() (string, error) { return seed(ctx, filepath.Join(data, "store"), dir, r.Plan.Seed) }
			if r.Base != "" {
				put = func() (string, error) { return seedMachine(ctx, filepath.Join(data, "store"), r.Base, r.Plan.Seed) }
			}
			pack, err := put()
			if err != nil {
				return fmt.Errorf("pack: %w", err)
			}
			r.pack = pack
		}
		r.nodes = append(r.nodes, n)
	}
	r.walls = make([]string, len(r.nodes))
	return nil
}

// allReady waits until every daemon that runs has said that it is.
func (r *run) allReady(ctx context.Context, limit time.Duration) error {
	waiting := func() (who []int) {
		for _, n := range r.nodes {
			if n.cmd != nil && !n.ready {
				who = append(who, n.i)
			}
		}
		return who
	}
	timer := time.NewTimer(limit)
	defer timer.Stop()
	for len(waiting()) > 0 {
		select {
		case h := <-r.tell:
			if h.n.happens(h) {
				return fmt.Errorf("n%d has ended before it was ready: %w", h.n.i, h.err)
			}
		case <-timer.C:
			return fmt.Errorf("not ready after %v: %v", limit, waiting())
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// until looks again and again whether ok, within limit; false: it never was, and
// why says the latest reason.
func (r *run) until(ctx context.Context, limit time.Duration, ok func(context.Context) (bool, string)) (is bool, why string, err error) {
	end := time.Now().Add(limit)
	for {
		if is, why = ok(ctx); is {
			return true, "", nil
		}
		if time.Now().After(end) {
			return false, why, nil
		}
		if err := r.pass(ctx, r.now()+look); err != nil {
			return false, why, err
		}
	}
}

// meet waits until each node knows all others, and learns who they are.
func (r *run) meet(ctx context.Context) error {
	for _, n := range r.nodes {
		s, err := get[self](ctx, n.client, "/v1/node")
		if err != nil {
			return err
		}
		n.key = s.Node.Key
		if _, err := hex.Decode(r.network[:], []byte(s.Network.ID)); err != nil {
			return fmt.Errorf("network %q: %w", s.Network.ID, err)
		}
	}
	ok, why, err := r.until(ctx, meetLimit, func(ctx context.Context) (bool, string) {
		for _, n := range r.nodes {
			s, err := get[status](ctx, n.client, "/v1/status")
			if err != nil || s.NodesAlive != len(r.nodes) {
				return false, fmt.Sprintf("n%d sees %d of %d (%v)", n.i, s.NodesAlive, len(r.nodes), err)
			}
		}
		return true, ""
	})
	if err == nil && !ok {
		err = fmt.Errorf("they have not met after %v: %s", meetLimit, why)
	}
	return err
}

// whole is the run from its first step to its end. Times count from here.
func (r *run) whole(ctx context.Context) error {
	r.began = time.Now()
	defer func() { r.res.Real = r.now().Round(time.Millisecond) }()
	r.starts(ctx)
	for _, s := range r.Plan.Steps {
		if err := r.pass(ctx, s.At); err != nil {
			return err
		}
		begun := r.now()
		r.look.picked = -1
		if err := actions[s.Do](ctx, r, s, chance.Stream(s.Draw)); err != nil {
			return fmt.Errorf("step %v: %w", s, err)
		}
		if err := r.firewall(ctx); err != nil {
			return err
		}
		r.step(begun, s.N, s.String())
		r.observe(ctx)
	}
	if err := r.pass(ctx, r.Plan.End); err != nil {
		return err
	}
	if err := r.judge(ctx); err != nil {
		return err
	}
	r.observe(ctx)
	r.endAll()
	return nil
}

// pass waits until a time of the run, and meanwhile does what is due, hears what
// happens and looks at the swarm.
func (r *run) pass(ctx context.Context, until time.Duration) error {
	for {
		at := min(until, r.look.looked+lookEvery)
		if len(r.later) > 0 {
			at = min(at, r.later[0].at)
		}
		timer := time.NewTimer(at - r.now())
		select {
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case h := <-r.tell:
			timer.Stop()
			if err := r.heard(h); err != nil {
				return err
			}
			continue
		case said := <-r.look.said:
			timer.Stop()
			r.answered(said)
			continue
		case <-timer.C:
		}
		if r.now() >= r.look.looked+lookEvery {
			r.observe(ctx)
		}
		if len(r.later) == 0 || r.later[0].at > r.now() {
			if until > r.now() {
				continue
			}
			return nil
		}
		next := r.later[0]
		r.later = r.later[1:]
		if err := next.do(ctx); err != nil {
			return err
		}
	}
}

// after has something done once d has passed, behind what is due at the same time.
func (r *run) after(d time.Duration, do func(context.Context) error) {
	r.later = insert(r.later, due{r.now() + d, do})
}

// restartAfter is how long whatever looks after a daemon lets pass until it starts
// one that has ended.
const restartAfter = 2 * time.Second

// heard takes in news of a daemon. One that ends while its disk has no room is
// started again, as a service manager would; any other must not end.
func (r *run) heard(h happening) error {
	if !h.n.happens(h) {
		return nil
	}
	n := h.n
	if !n.hadFull {
		r.fail(DaemonsStay, "the daemon of n%d has ended by itself (%v): %s", n.i, h.err, n.lastWords())
	}
	r.seen["a daemon ended without room on disk"]++
	r.after(restartAfter, func(context.Context) error { return r.start(n) })
	return nil
}

// start has the daemon of a node run that does not, unless the machine is gone.
func (r *run) start(n *node) error {
	if n.cmd != nil || n.gone {
		return nil
	}
	r.seen["restart"]++
	if err := r.outlived(n); err != nil {
		return err
	}
	return n.start(r.tell)
}

// firewall has each node's be as the cuts and losses are.
func (r *run) firewall(ctx context.Context) error {
	for _, n := range r.nodes {
		w := wall{loss: r.loss}
		for o := range r.nodes {
			if r.cuts[[2]int{o, n.i}] {
				w.from = append(w.from, address(o))
			}
		}
		rules := w.rules()
		if rules == r.walls[n.i] {
			continue
		}
		if err := command(ctx, rules, "ip", "netns", "exec", r.h.ns(n.i), "nft", "-f", "-"); err != nil {
			return err
		}
		r.walls[n.i] = rules
	}
	return nil
}

// endAll has every daemon end in order, and holds it to leaving nothing.
func (r *run) endAll() {
	for _, n := range r.nodes {
		if err := n.end(); err != nil {
			r.fail(LeavesNothing, "%v", err)
		}
	}
	pids, err := r.h.processes()
	for _, p := range pids {
		r.fail(LeavesNothing, "all daemons have ended, and process %d is there: %s", p, commandOf(p))
	}
	mounts, err2 := r.h.mounts()
	for _, at := range mounts {
		if !slices.ContainsFunc(r.nodes, func(n *node) bool { return r.h.disk(n.i) == at }) {
			r.fail(LeavesNothing, "all daemons have ended, and %s is mounted", at)
		}
	}
	sockets, err3 := r.h.sockets()
	for _, at := range sockets {
		if slices.ContainsFunc(r.nodes, func(n *node) bool { return n.gone && strings.HasPrefix(at, n.dir()+"/") }) {
			continue // a machine that is gone tidies nothing up
		}
		r.fail(LeavesNothing, "all daemons have ended, and the socket %s is there", at)
	}
	if err := errors.Join(err, err2, err3); err != nil {
		r.fail(LeavesNothing, "%v", err)
	}
}

// undo removes everything that the run has made, and holds it to that.
func (r *run) undo(ctx context.Context) error {
	if r.ticks != nil {
		r.ticks.stop()
	}
	for _, n := range r.nodes {
		if err := n.kill(); err != nil { // reaped here, and by nobody else
			return err
		}
	}
	if err := r.h.remove(ctx); err != nil {
		return err
	}
	left, err := r.h.left()
	for _, what := range left {
		r.fail(LeavesNothing, "the run has ended, and left %s", what)
	}
	return err
}
