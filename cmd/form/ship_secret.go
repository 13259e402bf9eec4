package main

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	"github.com/formthefog/formation/cmd/form/internal/cli"
	"github.com/formthefog/formation/cmd/form/internal/swarm"
	"github.com/formthefog/formation/cmd/internal/api"
	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/seal"
	"github.com/formthefog/formation/crdt/stmt"
)

// secretFlags are the secrets that a ship sets: NAME, whose value comes on
// standard input, or NAME=FILE.
type secretFlags struct{ files, vars []string }

func (o *secretFlags) addFlags(f *pflag.FlagSet) {
	f.StringArrayVar(&o.files, "secret", nil, "NAME=FILE: a secret it has before it starts, or NAME: its value on standard input (repeatable; as secret set)")
	f.StringArrayVar(&o.vars, "secret-env", nil, "the same, given to the entrypoint as a variable too (repeatable)")
}

// shipSecret is a secret to be set.
type shipSecret struct {
	name  string
	env   bool
	frame seal.Frame
}

// readSecrets reads the values, after it has found that the names can be.
func (a *app) readSecrets(o secretFlags) ([]shipSecret, error) {
	var out []shipSecret
	var files []string
	stdin := ""
	for n, arg := range slices.Concat(o.files, o.vars) {
		name, file, named := strings.Cut(arg, "=")
		c := shipSecret{name: name, env: n >= len(o.files)}
		switch err := checkSecret(name, nil, c.env); {
		case err != nil:
			return nil, err
		case slices.ContainsFunc(out, func(o shipSecret) bool { return o.name == name }):
			return nil, cli.Errorf(api.ExitUsage, "secret %s is given twice", name)
		case named && file == "":
			return nil, cli.Errorf(api.ExitUsage, "--secret %s= names no file", name).
				Hint("its value comes on standard input: --secret %s", name)
		case !named && stdin != "" && !cli.IsTerminal(a.stdin):
			return nil, cli.Errorf(api.ExitUsage, "standard input has one value, and %s and %s are to come from it", stdin, name).
				Hint("name a file: --secret %s=FILE", name)
		case !named:
			stdin = name
		}
		out, files = append(out, c), append(files, file)
	}
	if len(out) > crdt.MaxSecrets {
		return nil, cli.Errorf(api.ExitUsage, "%d secrets; an instance has at most %d", len(out), crdt.MaxSecrets)
	}
	for i := range out {
		c := &out[i]
		value, err := a.secretValue(c.name, secretOptions{file: files[i], ship: true})
		if err == nil {
			err = checkSecret(c.name, value, c.env)
		}
		if err == nil {
			c.frame, err = seal.New(value)
		}
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

// sealAll signs the secrets that differ from those the instance has. One that is
// new has no holders yet: see secretKeeper.
func (p *secretPen) sealAll(list []shipSecret) (raws [][]byte, err error) {
	have := p.author.Secrets(p.inst.ID)
	for _, c := range list {
		at := slices.IndexFunc(have, func(o crdt.Secret) bool { return o.Name == c.name })
		if at >= 0 && have[at].Env == c.env {
			old, err := seal.Open(p.key, have[at].Box, have[at].Sum)
			if err == nil && bytes.Equal(old.Value(), c.frame.Value()) {
				continue
			}
		}
		more, err := p.seal(c.name, c.env, c.frame)
		if err != nil {
			return nil, err
		}
		raws = append(raws, more...)
	}
	return raws, nil
}

// signSecrets signs a ship's secrets for an instance that au knows; fresh says that
// nobody else does yet.
func (a *app) signSecrets(ctx context.Context, c *swarm.Conn, au *crdt.Author, inst string, fresh bool, list []shipSecret) ([][]byte, error) {
	if len(list) == 0 {
		return nil, nil
	}
	key, err := a.key()
	if err != nil {
		return nil, err
	}
	p := &secretPen{a: a, conn: c, inst: api.Instance{ID: inst, Owner: au.Owner()}, key: key, author: au}
	if !fresh {
		if p.inst, err = c.API().Instance(ctx, inst); err != nil {
			return nil, err
		}
		if p.nodes, err = p.holders(ctx); err != nil {
			return nil, err
		}
	}
	return p.sealAll(list)
}

// secretKeeper encrypts the secrets that were shipped to the nodes that take the
// replicas, which start with them alone. nil: none were.
type secretKeeper struct {
	a    *app
	conn *swarm.Conn
	seen []stmt.Key // the replicas' nodes when it encrypted last
	done bool       // some node has them, and every one of seen that may
}

// look encrypts when other nodes have replicas than before, and says whether there
// are nodes that have the secrets, and all have that should.
func (k *secretKeeper) look(ctx context.Context, i api.Instance) (bool, error) {
	if k == nil {
		return true, nil
	}
	var now []stmt.Key
	for _, r := range i.Replicas {
		now = append(now, r.Node)
	}
	slices.SortFunc(now, stmt.Key.Compare)
	now = slices.Compact(now)
	if len(now) == 0 || k.done && slices.Equal(now, k.seen) {
		return k.done && len(now) > 0, nil
	}
	p, err := k.a.pen(ctx, k.conn, i)
	if err == nil {
		_, err = p.sync(ctx, "")
	}
	if err != nil {
		return false, errors.Join(errors.New("encrypt its secrets to the nodes that run it"), err)
	}
	k.seen, k.done = now, len(p.nodes) > 0
	return k.done, nil
}

// missing says whether no node has been given the secrets yet.
func (k *secretKeeper) missing() bool { return k != nil && !k.done }
