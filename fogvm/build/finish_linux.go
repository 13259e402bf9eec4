package build

import (
	"context"
	"fmt"

	"github.com/formthefog/formation/store"
	"github.com/formthefog/formation/store/formfile"
)

// finish writes the pack's root.
func (b *builder) finish(ctx context.Context) (*Result, error) {
	if err := b.settleUsers(); err != nil {
		return nil, err
	}
	run, err := b.runConfig()
	if err != nil {
		return nil, err
	}
	res := &Result{Steps: len(b.plan), CachedSteps: b.cached, Layers: b.layers}
	res.Root = store.Root{Name: b.File.Name, Description: b.File.Description, Base: b.Base, Layers: b.layers, Run: run}
	if res.CID, err = b.Store.PutPack(ctx, res.Root, b.Key); err != nil {
		return nil, fmt.Errorf("write the pack: %w", err)
	}
	for _, w := range b.File.Warnings {
		res.Warnings = append(res.Warnings, w.String())
	}
	res.Warnings = append(append(res.Warnings, b.ctxDir.warnings...), b.warnings...)
	return res, nil
}

// runConfig is the Formfile's part of the root. It holds nothing of this
// machine and no time, so the same Formfile gives the same bytes.
func (b *builder) runConfig() (store.RunConfig, error) {
	f := b.File
	run := store.RunConfig{
		VCPU: f.VCPU, MemoryBytes: f.MemoryBytes, DiskBytes: f.DiskBytes,
		Workdir: f.Workdir, Entrypoint: f.Entrypoint,
		Restart: f.Restart, Init: f.Init, Partition: f.Partition, Replicas: f.Replicas,
	}
	for _, v := range f.Env {
		run.Env = append(run.Env, store.EnvVar{Scope: v.Scope, Key: v.Key, Value: v.Value})
	}
	for _, p := range f.Expose {
		run.Expose = append(run.Expose, store.Port{Port: p.Port, Proto: p.Proto, Public: p.Public})
	}
	for _, g := range f.GPUs {
		run.GPU = append(run.GPU, store.GPU{Model: g.Model, Count: g.Count})
	}
	if h := f.Health; h != nil {
		run.Health = &store.Health{
			Kind: h.Kind, Command: h.Command, Port: h.Port, Path: h.Path,
			Interval: h.Interval.Milliseconds(), Timeout: h.Timeout.Milliseconds(), Retries: h.Retries,
		}
	}
	for _, u := range f.Users {
		su, err := b.user(u)
		if err != nil {
			return store.RunConfig{}, err
		}
		run.Users = append(run.Users, su)
	}
	return run, nil
}

func (b *builder) user(u formfile.User) (store.User, error) {
	hash := string(u.PasswordHash)
	if u.Password != "" {
		var err error
		if hash, err = hashPassword(b.Key, b.File.Name, u); err != nil {
			return store.User{}, err
		}
	}
	return store.User{
		Name: u.Username, UID: b.users.Users[u.Username].UID, PasswordHash: hash, SSHAuthorizedKeys: u.SSHKeys, Groups: u.Groups, Shell: u.Shell,
		Sudo: u.Sudo, LockPassword: u.LockPassword, SSHPasswordAuth: u.SSHPwauth, DisableRoot: u.DisableRoot, ExpirePassword: u.ExpirePasswd,
	}, nil
}
