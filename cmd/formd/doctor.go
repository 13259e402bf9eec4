package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"golang.org/x/sys/unix"

	"github.com/formthefog/formation/cmd/internal/api"
	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/stmt"
	"github.com/formthefog/formation/fogvm"
)

// Doctor looks for what commonly goes wrong.
func (h *hostInfo) Doctor(ctx context.Context) []api.Check {
	var out []api.Check
	add := func(name, state, detail, fix string) {
		out = append(out, api.Check{Name: name, State: state, Detail: detail, Fix: fix})
	}
	for _, w := range h.warnings {
		detail, fix, _ := strings.Cut(w, "; ")
		add("start", "warn", detail, fix)
	}
	if len(out) == 0 {
		add("start", "ok", "no warning", "")
	}
	if h.cfg.VMDriver == fogvm.DriverQEMU {
		if path, err := exec.LookPath(qemuName); err != nil {
			add("qemu", "fail", qemuName+" is not installed", "apt-get install qemu-system-x86")
		} else {
			add("qemu", "ok", path, "")
		}
	}
	out = append(out, stateCheck(h.state, h.rec.Deciding()))
	out = append(out, h.peersCheck())
	dead := h.prober.Dead()
	seen := h.askPeers(ctx, dead)
	out = append(out, lagCheck(h.state.Lag(), len(h.node.Peers())), clockCheck(seen), reachCheck(dead, seen))
	if n := len(h.state.OmittedInstances()); n > 0 {
		add("left out", "warn", fmt.Sprintf("%d instances began a new epoch without some change that was made at the same time", n),
			"form manage inspect INSTANCE shows what; make it again if it is still wanted")
	}
	if list := h.state.Equivocations(); len(list) > 0 {
		out = append(out, equivocationCheck(list, h.id.self()))
	}
	if n := len(h.state.Forgotten()); n > 0 {
		add("forgotten", "warn", fmt.Sprintf("%d member nodes have been dead for a week and count no more", n),
			"if they are gone for good: form node forget KEY, on a node with the root key or with their operator's key")
	}
	if h.rec.Deciding() {
		out = append(out, swarmChecks(h.rec.WorldOf(h.state.View()), h.state.ClosedOwners())...)
	}
	out = append(out, h.mesh.check())
	out = append(out, diskChecks(h.cfg.Data)...)
	if h.mesh.names != nil {
		out = append(out, h.mesh.names.doctor())
	}
	if h.id.RootKey != nil {
		add("root key", "ok", "this node holds the network's root key in "+h.cfg.Data+"/root.key", "keep a copy of it in a safe place")
	}
	return out
}

// equivocationCheck names who has signed two contents for one thing: this node
// first, then other nodes, then owners.
func equivocationCheck(list []crdt.Equivocation, self stmt.Key) api.Check {
	rank := func(e crdt.Equivocation) int {
		switch {
		case e.Author == self:
			return 0
		case e.Kind != stmt.KindSpec:
			return 1
		}
		return 2
	}
	e := slices.MinFunc(list, func(a, b crdt.Equivocation) int { return cmp.Compare(rank(a), rank(b)) })
	c := api.Check{Name: "equivocation", State: "warn"}
	c.Detail = fmt.Sprintf("%s has signed two different %s statements under one number (epoch %d, seq %d)", e.Author, e.Kind, e.Epoch, e.Seq)
	if len(list) > 1 {
		c.Detail += fmt.Sprintf("; %d others are known", len(list)-1)
	}
	switch rank(e) {
	case 0:
		c.State, c.Fix = "fail", "another machine runs with this node's key, or with a copy of --data: stop one of them, and give it an empty --data"
	case 1:
		c.Fix = "its key is used twice, or it lies: ask its operator, or form node forget KEY on a node with the root key"
	default:
		c.Fix = "the owner's next form manage update ends it; a device that was restored from a backup needs nothing else"
	}
	return c
}

func (h *hostInfo) peersCheck() api.Check {
	peers, others := len(h.node.Peers()), len(h.state.View().Nodes())-1
	switch {
	case peers > 0:
		return api.Check{Name: "peers", State: "ok", Detail: fmt.Sprintf("connected to %d nodes", peers)}
	case others <= 0:
		return api.Check{Name: "peers", State: "ok", Detail: "this node is alone in its network", Fix: "invite another: form net invite"}
	}
	return api.Check{
		Name: "peers", State: "fail", Detail: fmt.Sprintf("no connection to any of %d other nodes", others),
		Fix: "check the network and that their ports are reachable",
	}
}

// lagLate is after how long without a session doctor warns; they are held every
// twenty seconds or so.
const lagLate = 3 * time.Minute

// lagCheck says whether this node has what others have.
func lagCheck(l crdt.Lag, peers int) api.Check {
	c := api.Check{Name: "sync", State: "ok"}
	switch {
	case l.Behind:
		c.State, c.Detail = "fail", "the state log cannot be written: nothing is acknowledged"
		c.Fix = "free some space or repair the disk under --data; formd goes on by itself"
	case peers == 0:
		c.Detail = "nobody to compare with"
	case l.Last < 0 || l.Last > lagLate:
		c.State, c.Detail = "warn", "no peer has answered a comparison yet"
		if l.Last >= 0 {
			c.Detail = fmt.Sprintf("the last comparison with a peer was %s ago", l.Last.Round(time.Second))
		}
		c.Fix = "form peers shows who is connected; the log of formd (--log-level debug) says why sessions fail"
	case l.Differ > 0:
		c.State = "warn"
		c.Detail = fmt.Sprintf("the view differs from %d of %d peers for %s", l.Differ, l.Peers, l.For.Round(time.Second))
		c.Fix = "nodes of one version agree: compare versions by form node ls; the log names refused statements with their reason"
	default:
		c.Detail = fmt.Sprintf("compared with %d peers, the last time %s ago", l.Peers, l.Last.Round(time.Second))
	}
	return c
}

// witness is what one peer says when it is asked.
type witness struct {
	peer stmt.Key
	skew time.Duration     // its wall clock minus ours
	live map[stmt.Key]bool // the nodes it finds alive; nil when it was not asked
}

// Bounds of asking peers.
const (
	askMost    = 16
	askTimeout = 5 * time.Second
	askBytes   = 4 << 20
	// skewMost is more than an invite, a session or a log can bear well. The
	// peers' clocks are told to the second.
	skewMost = 30 * time.Second
)

// askPeers asks some connected nodes for their time, and, when nodes are dead for
// this one, whom they find alive. Who does not answer is left out.
func (h *hostInfo) askPeers(ctx context.Context, dead map[stmt.Key]time.Duration) []witness {
	peers := h.node.Peers()
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	var mu sync.Mutex
	var out []witness
	var all sync.WaitGroup
	for _, p := range peers[:min(len(peers), askMost)] {
		all.Go(func() {
			w, err := h.ask(ctx, p, len(dead) > 0)
			if err != nil {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			out = append(out, w)
		})
	}
	all.Wait()
	slices.SortFunc(out, func(a, b witness) int { return a.peer.Compare(b.peer) })
	return out
}

func (h *hostInfo) ask(ctx context.Context, p peer.ID, nodes bool) (w witness, err error) {
	if w.peer, err = stmt.KeyOfPeerID(string(p)); err != nil {
		return w, err
	}
	c := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return h.node.Open(ctx, p, api.Proto)
	}}}
	defer c.CloseIdleConnections()
	path := "/v1/health"
	if nodes {
		path = "/v1/nodes"
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://peer"+path, nil)
	if err != nil {
		return w, err
	}
	began := time.Now()
	res, err := c.Do(req)
	if err != nil {
		return w, err
	}
	defer res.Body.Close()
	took := time.Since(began)
	at, err := http.ParseTime(res.Header.Get("Date"))
	if err != nil {
		return w, fmt.Errorf("time of %s: %w", p, err)
	}
	// Date is cut to the second: the middle of it is the best guess.
	w.skew = at.Add(time.Second / 2).Sub(began.Add(took / 2))
	if !nodes {
		return w, nil
	}
	if res.StatusCode != http.StatusOK {
		return w, errors.New(res.Status)
	}
	var list []api.Node
	if err := json.NewDecoder(io.LimitReader(res.Body, askBytes)).Decode(&list); err != nil {
		return w, err
	}
	w.live = map[stmt.Key]bool{}
	for _, n := range list {
		w.live[n.Key] = n.Live == "alive"
	}
	return w, nil
}

// clockCheck compares wall clocks. When most peers are off, this node is.
func clockCheck(seen []witness) api.Check {
	c := api.Check{Name: "clock", State: "ok", Detail: "no peer to compare with"}
	var off []witness
	for _, w := range seen {
		if w.skew.Abs() > skewMost {
			off = append(off, w)
		}
	}
	if len(seen) > 0 {
		c.Detail = fmt.Sprintf("within %s of %d peers", skewMost, len(seen))
	}
	if len(off) == 0 {
		return c
	}
	worst := slices.MaxFunc(off, func(a, b witness) int { return cmp.Compare(a.skew.Abs(), b.skew.Abs()) })
	way := "ahead of"
	if worst.skew < 0 {
		way = "behind"
	}
	c.State = "warn"
	c.Detail = fmt.Sprintf("the clock of %s is %s %s this node's", worst.peer, worst.skew.Abs().Round(time.Second), way)
	c.Fix = "set the clock of that machine: timedatectl set-ntp true"
	if len(seen) > 1 && 2*len(off) > len(seen) {
		c.Detail = fmt.Sprintf("the clocks of %d of %d peers differ, most by %s: this one's is wrong", len(off), len(seen), worst.skew.Abs().Round(time.Second))
		c.Fix = "set the clock of this machine: timedatectl set-ntp true"
	}
	return c
}

// reachCheck tells nodes that are down from those that only this one cannot
// reach.
func reachCheck(dead map[stmt.Key]time.Duration, seen []witness) api.Check {
	if len(dead) == 0 {
		return api.Check{Name: "nodes", State: "ok", Detail: "every watched node answers"}
	}
	var cut []string
	for _, k := range slices.SortedFunc(maps.Keys(dead), stmt.Key.Compare) {
		if i := slices.IndexFunc(seen, func(w witness) bool { return w.live[k] }); i >= 0 {
			cut = append(cut, fmt.Sprintf("%s (%s does)", k, seen[i].peer))
		}
	}
	if len(cut) == 0 {
		return api.Check{Name: "nodes", State: "warn", Detail: fmt.Sprintf("%d nodes do not answer", len(dead)), Fix: "form node ls shows which"}
	}
	return api.Check{
		Name: "nodes", State: "warn", Detail: fmt.Sprintf("this node does not reach %d nodes that others reach: %s", len(cut), strings.Join(cut[:min(len(cut), 3)], ", ")),
		Fix: "check routes and firewalls between this machine and the addresses that form node status KEY shows",
	}
}

// diskChecks looks at the file systems that the node writes to.
func diskChecks(data string) (out []api.Check) {
	var seen []unix.Fsid
	for _, d := range []struct{ name, path, fix string }{
		{"disk", data, "free some space, or move --data"},
		{"disk state", filepath.Join(data, "state"), "free some space: without it nothing is acknowledged"},
		{"disk packs", filepath.Join(data, "store"), "form pack rm what is not needed, or give the store more space"},
		{"disk vms", filepath.Join(data, "vms"), "remove instances, or give the VMs' disks more space"},
	} {
		var fs unix.Statfs_t
		err := unix.Statfs(d.path, &fs)
		if errors.Is(err, unix.ENOENT) || err == nil && slices.Contains(seen, fs.Fsid) {
			continue // made when it is needed, or told already
		}
		seen = append(seen, fs.Fsid)
		out = append(out, diskCheck(d.name, d.path, d.fix, fs.Bavail*uint64(fs.Bsize), err))
	}
	return out
}

func diskCheck(name, path, fix string, free uint64, err error) api.Check {
	switch {
	case err != nil:
		return api.Check{Name: name, State: "fail", Detail: err.Error(), Fix: "repair the disk or its mount"}
	case free < fullDisk:
		return api.Check{Name: name, State: "fail", Detail: fmt.Sprintf("%d MiB free under %s", free>>20, path), Fix: fix}
	case free < lowDisk:
		return api.Check{Name: name, State: "warn", Detail: fmt.Sprintf("%d MiB free under %s", free>>20, path), Fix: fix}
	}
	return api.Check{Name: name, State: "ok", Detail: fmt.Sprintf("%d GiB free under %s", free>>30, path)}
}

// fullDisk is when doctor says that a disk is full, in bytes.
const fullDisk = 64 << 20
