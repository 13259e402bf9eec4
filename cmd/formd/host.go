package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"golang.org/x/sys/unix"

	"github.com/formthefog/formation/cmd/internal/api"
	"github.com/formthefog/formation/cmd/internal/config"
	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/stmt"
	"github.com/formthefog/formation/fogvm/boottime"
	"github.com/formthefog/formation/fogvm/reconcile"
	"github.com/formthefog/formation/fogvm/reconcile/plan"
	"github.com/formthefog/formation/p2p"
)

// hostInfo is api.Host: what this node is and how it does.
type hostInfo struct {
	cfg      config.Config
	id       *identity
	accept   *acceptance
	node     *p2p.Node
	mesh     *mesh
	rec      *reconcile.Reconciler
	prober   *reconcile.Prober
	state    *crdt.Replica
	owner    func(peer.ID) stmt.Key
	register crdt.Node // as published, without what changes
	warnings []string
	web      string
	metrics  string
	started  time.Time
}

// Self is this node. What depends on the state is filled in by the handler.
func (h *hostInfo) Self(api.Caller) api.Self {
	return api.Self{
		Node: api.Node{
			Key: h.id.self(), Addrs: h.node.Addrs(), CPUs: h.register.Total.CPUs, Memory: h.register.Total.Memory,
			Disk: h.register.Total.Disk, Labels: map[string]string{}, Region: h.register.Region,
			Version: h.register.Version, Accel: h.register.Accel, Live: "alive", Self: true, Holds: []string{}, Operators: []stmt.Key{},
		},
		Network: api.Network{
			Name: h.id.Name, ID: h.id.network().String(), Short: h.id.network().Short(), Root: h.id.Root, Open: h.id.open(),
			Prefix4: h.id.Full().Prefix4.String(), Zone: h.id.Full().Zone,
		},
		HasRoot: h.id.RootKey != nil, Accept: h.accept.policy.String(), API: h.cfg.API, Web: h.web,
		Metrics: h.metrics, DataDir: h.cfg.Data, Uptime: time.Since(h.started).Seconds(), Warnings: h.warnings,
	}
}

// Peers are the open connections.
func (h *hostInfo) Peers() []api.Peer {
	out := []api.Peer{}
	for _, p := range h.node.PeerInfo() {
		w := api.Peer{
			ID: p.ID.String(), Addrs: p.Addrs, Latency: p.Latency.Seconds(), Direct: p.Direct,
			Transport: p.Transport, Role: "node",
		}
		if p.Client {
			w.Role = "client"
			if k := h.owner(p.ID); !k.IsZero() {
				w.Owner = k.String()
			}
		}
		out = append(out, w)
	}
	return out
}

// Capacity is what this node offers and what of it is free.
func (h *hostInfo) Capacity() api.Capacity {
	free := plan.World(h.rec.World()).Free(crdt.Node{Key: h.id.self(), Total: h.register.Total})
	t := h.register.Total
	return api.Capacity{
		CPUs: t.CPUs, Memory: t.Memory, Disk: t.Disk, FreeCPUs: min(t.CPUs, free.CPUs), FreeMemory: free.Memory, FreeDisk: free.Disk,
	}
}

// ageInterval is how often the state is told which nodes are dead.
const ageInterval = 10 * time.Minute

// age tells the state how long nodes have been dead, until ctx ends. Time asleep
// counts no more than one interval: nobody was probed in it.
func (d *formd) age(ctx context.Context) {
	tick := time.NewTicker(ageInterval)
	defer tick.Stop()
	last := boottime.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now := boottime.Now()
		dead := slices.SortedFunc(maps.Keys(d.prober.Dead()), stmt.Key.Compare)
		if err := d.state.Age(dead, min(now-last, 2*ageInterval)); err != nil {
			d.log.Warn("how long nodes have been dead is not kept over a restart", "err", err)
		}
		last = now
	}
}

// stateCheck says whether the node may decide yet, and what its start lost.
func stateCheck(r *crdt.Replica, deciding bool) api.Check {
	const wait = "a peer brings it back; on the last node of its network remove state/resync below --data, and restart"
	c := api.Check{Name: "state", State: "ok", Detail: "synchronised"}
	if !deciding {
		c.State, c.Detail, c.Fix = "warn", "not synchronised yet: nothing is decided, VMs run on", wait
	}
	if r.Recovered() == crdt.LogCut {
		c.State, c.Detail = "warn", c.Detail+"; the log was damaged when this node started, and cut"
	}
	return c
}

// lowDisk is when doctor warns, in bytes.
const lowDisk = 2 << 30

const qemuName = "qemu-system-x86_64"

// offer is what this node has for instances: what the configuration says, else
// what the machine can spare.
func offer(c config.Config) (crdt.Resources, error) {
	r := crdt.Resources{CPUs: c.CPUs, Memory: uint64(c.Memory), Disk: uint64(c.Disk)}
	if r.CPUs == 0 {
		r.CPUs = runtime.NumCPU()
	}
	if r.Memory == 0 {
		var info unix.Sysinfo_t
		if err := unix.Sysinfo(&info); err != nil {
			return r, fmt.Errorf("memory of this machine: %w", err)
		}
		total := info.Totalram * uint64(info.Unit)
		// The host keeps an eighth, and at least 512 MiB.
		r.Memory = total - min(total, max(total/8, 512<<20))
	}
	if r.Disk == 0 {
		var st unix.Statfs_t
		if err := unix.Statfs(c.Data, &st); err != nil {
			return r, fmt.Errorf("disk of %s: %w", c.Data, err)
		}
		own, err := occupied(filepath.Join(c.Data, "vms"))
		if err != nil {
			return r, fmt.Errorf("disks of VMs: %w", err)
		}
		// The host keeps a tenth. What VMs here have written is part of the
		// offer, or each restart would offer less than runs already.
		free := st.Bavail*uint64(st.Bsize) + own
		r.Disk = free - free/10
	}
	r.Memory = min(r.Memory, math.MaxInt64)
	return r, nil
}

// occupied is how much disk the files below a folder take, in bytes. What goes
// away meanwhile, or is not there, takes none.
func occupied(dir string) (sum uint64, err error) {
	err = filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		var st unix.Stat_t
		if err == nil {
			err = unix.Lstat(path, &st)
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		sum += uint64(st.Blocks) * 512 // POSIX: st_blocks counts these
		return nil
	})
	return sum, err
}

// guestBinary finds form-guest: beside formd, else in the PATH.
func guestBinary() (string, error) {
	const name = "form-guest"
	if self, err := os.Executable(); err == nil {
		beside := self[:strings.LastIndexByte(self, '/')+1] + name
		if _, err := os.Stat(beside); err == nil {
			return beside, nil
		}
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return "", api.Problemf(api.ExitFailed, "%s is neither beside formd nor in the PATH", name).
			WithHint("install it beside formd (make build puts both in bin/)")
	}
	return path, nil
}
