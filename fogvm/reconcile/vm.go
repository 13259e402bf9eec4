package reconcile

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/place"
	"github.com/formthefog/formation/crdt/policy"
	"github.com/formthefog/formation/crdt/stmt"
	"github.com/formthefog/formation/fogvm"
	"github.com/formthefog/formation/fogvm/guest"
	"github.com/formthefog/formation/fogvm/reconcile/plan"
	"github.com/formthefog/formation/store"
	"github.com/formthefog/formation/store/whole"
)

// vmStatus is what plan needs to know of this host's VMs. A VM that could not be
// defined counts as failed.
func (r *Reconciler) vmStatus() map[string]plan.VMStatus {
	out := map[string]plan.VMStatus{}
	for _, s := range r.cfg.VMs.List() {
		out[s.ID] = plan.VMStatus{
			Incarnation: s.Incarnation, Restart: s.Restart, Phase: plan.VMPhase(s.Phase), Ready: s.Ready,
			Booted: !s.AgentAt.IsZero(),
			Reason: s.Reason, Accel: s.Accel, StartedAt: unixOf(s.StartedAt), ReadyAt: unixOf(s.ReadyAt),
			SSHHostKey: s.SSHHostKey, MeshKey: s.MeshKey, Fenced: s.Fenced,
			Size: crdt.Resources{CPUs: s.Size.VCPU, Memory: s.Size.MemoryBytes, Disk: s.Size.DiskBytes},
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for id, vm := range out {
		if d, defined := r.applied[id]; defined {
			vm.Owner = d.Owner
			vm.Size = crdt.Resources{
				CPUs: max(vm.Size.CPUs, d.VCPU), Memory: max(vm.Size.Memory, d.MemoryBytes), Disk: max(vm.Size.Disk, d.DiskBytes),
			}
			out[id] = vm
		}
	}
	for id, b := range r.broken {
		vm, there := out[id]
		if there && vm.Incarnation == b.incarnation && vm.Restart == b.restart {
			vm.Reason = orElse(vm.Reason, b.reason) // it runs as it was
			out[id] = vm
			continue
		}
		out[id] = plan.VMStatus{Incarnation: b.incarnation, Restart: b.restart, Phase: plan.VMFailed, Reason: b.reason, Size: vm.Size, Owner: vm.Owner}
	}
	return out
}

func orElse(s, t string) string {
	if s != "" {
		return s
	}
	return t
}

func unixOf(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.Unix()
}

// sync has the hypervisor run exactly these VMs.
func (r *Reconciler) sync(ctx context.Context, w plan.World, want []plan.VM) error {
	specs := map[string]*crdt.Spec{}
	for i := range w.Instances {
		specs[w.Instances[i].ID] = &w.Instances[i]
	}
	r.mu.Lock()
	before := maps.Clone(r.applied)
	r.mu.Unlock()
	desired, applied := make([]fogvm.VM, 0, len(want)), map[string]definition{}
	broken := map[string]definitionError{}
	for _, v := range want {
		vm, known := before[v.ID]
		if !v.Keep || !known {
			var err error
			if vm.VM, err = define(ctx, r.cfg.Content, specs[v.Instance], v); err != nil {
				r.log.Error("cannot define the VM", "instance", v.Instance, "slot", v.Slot.Slot, "pack", v.Pack, "err", err)
				broken[v.ID] = definitionError{v.Incarnation, v.Restart, err.Error()}
				if vm, known = before[v.ID]; !known {
					continue
				}
				// What runs has a disk: it is left as it is.
			} else {
				vm.Guest.Mesh = r.cfg.GuestMesh.guest(specs[v.Instance], r.cfg.Self)
				vm.Owner = specs[v.Instance].Owner
			}
		}
		vm.Run = v.Run
		if r.cfg.Vault != nil && v.Instance != "" {
			vm.Secrets, vm.AwaitSecrets = r.cfg.Vault.Secrets(v.Instance)
		}
		desired = append(desired, vm.VM)
		applied[vm.ID] = vm
	}
	if !reflect.DeepEqual(applied, before) {
		if err := saveDefinitions(r.path("vms.json"), applied); err != nil {
			return err
		}
	}
	r.mu.Lock()
	changed := !maps.Equal(broken, r.broken)
	r.applied, r.broken = applied, broken
	r.mu.Unlock()
	if changed {
		r.Kick()
	}
	if err := r.cfg.VMs.Sync(ctx, desired); err != nil {
		return fmt.Errorf("sync VMs: %w", err)
	}
	return nil
}

// definition is a VM as it was last defined, and whose instance that was for: what the
// state no longer tells once the instance is deleted. Zero: not known.
type definition struct {
	fogvm.VM
	Owner stmt.Key `json:"owner,omitzero"`
}

// definitionError is why a wanted VM could not be defined.
type definitionError struct {
	incarnation string
	restart     uint64
	reason      string
}

// define makes a VM of a spec and its pack. Its size is what the swarm has
// counted for it, so the pack's own is not looked at.
func define(ctx context.Context, content Content, s *crdt.Spec, v plan.VM) (fogvm.VM, error) {
	if s == nil {
		return fogvm.VM{}, fmt.Errorf("instance %s is unknown", v.Instance)
	}
	c, err := cid.Decode(v.Pack)
	if err != nil {
		return fogvm.VM{}, fmt.Errorf("pack %q: %w", v.Pack, err)
	}
	root, err := content.Pack(ctx, c)
	if err != nil {
		return fogvm.VM{}, fmt.Errorf("pack %s: %w", c, err)
	}
	base, err := content.Base(ctx, root.Base)
	if err != nil {
		return fogvm.VM{}, fmt.Errorf("base %s: %w", root.Base, err)
	}
	size := place.Need(*s)
	vm := fogvm.VM{
		ID: v.ID, Incarnation: v.Incarnation, Run: v.Run, Restart: v.Restart, Fenced: v.Fenced,
		VCPU: size.CPUs, MemoryBytes: size.Memory, DiskBytes: size.Disk,
		Guest: guestConfig(s, root, v.Slot.Slot),
	}
	if vm.Kernel, err = content.Path(base.Kernel); err != nil {
		return fogvm.VM{}, fmt.Errorf("kernel: %w", err)
	}
	if vm.Initrd, err = content.Path(base.Initrd); err != nil {
		return fogvm.VM{}, fmt.Errorf("initrd: %w", err)
	}
	lowers := slices.Clone(root.Layers) // topmost first
	if base.Modules.Root.Defined() {
		lowers = append(lowers, base.Modules)
	}
	for _, e := range append(lowers, base.Rootfs) {
		p, err := content.Path(e)
		if err != nil {
			return fogvm.VM{}, fmt.Errorf("%s image: %w", e.Kind, err)
		}
		vm.Lowers = append(vm.Lowers, p)
	}
	return vm, nil
}

// guestConfig is what the guest is told: the pack's run configuration with the
// spec's environment, ports and keys on top.
func guestConfig(s *crdt.Spec, root *store.Root, slot int) guest.Config {
	run := &root.Run
	g := guest.Config{
		Hostname: s.Name, Instance: s.ID, Name: root.Name, Slot: slot, SSHKeys: s.SSHKeys,
		Workdir: run.Workdir, Entrypoint: run.Entrypoint, Restart: run.Restart, Init: run.Init,
		Expose: ports(run.Expose, s.Expose), Health: guestHealth(run.Health),
	}
	for _, u := range run.Users {
		g.Users = append(g.Users, guest.User{
			Name: u.Name, UID: u.UID, PasswordHash: u.PasswordHash, SSHKeys: u.SSHAuthorizedKeys, Groups: u.Groups,
			Shell: u.Shell, Sudo: u.Sudo, LockPasswd: u.LockPassword, SSHPasswordAuth: u.SSHPasswordAuth,
			DisableRoot: u.DisableRoot, PasswordExpire: u.ExpirePassword,
		})
	}
	for _, e := range run.Env {
		g.Env = append(g.Env, guest.EnvVar{Scope: e.Scope, Key: e.Key, Value: e.Value})
	}
	for _, k := range slices.Sorted(maps.Keys(s.Env)) {
		g.Env = append(g.Env, guest.EnvVar{Key: k, Value: s.Env[k]})
	}
	return g
}

// ports joins the pack's ports with those the owner added. What is not of a port's
// form is of another version's: the owner's CLI checks its own.
func ports(pack []store.Port, owner []string) []guest.Port {
	var out []guest.Port
	for _, p := range pack {
		out = append(out, guest.Port{Port: p.Port, Proto: p.Proto, Public: p.Public})
	}
	for _, word := range owner {
		if !strings.Contains(word, "/") {
			word += "/tcp"
		}
		x, ok := policy.ParsePort(word)
		if !ok || slices.ContainsFunc(out, func(p guest.Port) bool { return p.Port == x.Number && p.Proto == x.Proto }) {
			continue
		}
		out = append(out, guest.Port{Port: x.Number, Proto: x.Proto, Public: x.Public})
	}
	return out
}

func guestHealth(h *store.Health) *guest.Health {
	if h == nil {
		return nil
	}
	out := &guest.Health{
		Kind: h.Kind, Command: h.Command, Retries: h.Retries,
		IntervalSeconds: seconds(h.Interval), TimeoutSeconds: seconds(h.Timeout),
	}
	switch h.Kind {
	case guest.HealthTCP:
		out.Target = strconv.Itoa(h.Port)
	case guest.HealthHTTP:
		out.Target = strconv.Itoa(h.Port) + "/" + strings.TrimPrefix(h.Path, "/")
	}
	return out
}

// seconds rounds milliseconds up.
func seconds(ms int64) int { return int((ms + 999) / 1000) }

func loadDefinitions(path string) (map[string]definition, error) {
	out := map[string]definition{}
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return out, nil
	}
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(b, &out); err != nil {
		// Only a rollout in progress needs it; the next step writes it anew.
		return map[string]definition{}, nil
	}
	return out, nil
}

// saveDefinitions replaces the file atomically. It holds password hashes.
func saveDefinitions(path string, vms map[string]definition) error {
	b, err := json.Marshal(vms)
	if err != nil {
		return fmt.Errorf("save VM definitions: %w", err)
	}
	if err := whole.Write(path, b, 0o600); err != nil {
		return fmt.Errorf("save VM definitions: %w", err)
	}
	return nil
}
