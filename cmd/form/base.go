package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/ipfs/go-cid"
	"github.com/spf13/cobra"

	"github.com/formthefog/formation/cmd/form/internal/cli"
	"github.com/formthefog/formation/cmd/form/internal/swarm"
	"github.com/formthefog/formation/cmd/internal/api"
	"github.com/formthefog/formation/cmd/internal/spell"
	"github.com/formthefog/formation/crdt/stmt"
	"github.com/formthefog/formation/store"
	"github.com/formthefog/formation/store/formfile"
)

type baseOptions struct {
	name    string
	suite   string
	mirror  string
	publish bool
	trust   []string
}

func newBase(a *app) *cobra.Command {
	return group("base", "the images that packs build on", newBaseBuild(a), newBaseLs(a), newBaseImport(a))
}

func newBaseBuild(a *app) *cobra.Command {
	var o baseOptions
	c := &cobra.Command{
		Use: "build", Short: "make a base from the Debian archive",
		Long: `Makes the base reproducibly (root filesystem with OpenSSH, kernel, modules) and
prints its CID as the last line. It takes a few minutes and about 300 MiB of
downloads. The base gets its name here; --publish also hands it to the local
formd and lets that node publish the name to the network.`,
		Args: noArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withStore(cmd.Context(), func(s *store.Store) error { return a.runBaseBuild(cmd.Context(), s, o) })
		},
	}
	f := c.Flags()
	f.StringVar(&o.name, "name", formfile.DefaultFrom, "the name to give it")
	f.StringVar(&o.suite, "suite", "", "the archive's suite (default: that of the name)")
	f.StringVar(&o.mirror, "mirror", "", "the archive (default: the public one)")
	f.BoolVar(&o.publish, "publish", false, "hand it to the local formd and publish the name")
	return c
}

func (a *app) runBaseBuild(ctx context.Context, s *store.Store, o baseOptions) error {
	id, err := a.buildBase(ctx, s, o)
	if err != nil {
		return err
	}
	if err := s.SetName(o.name, id, nil); err != nil {
		return fmt.Errorf("name the base: %w", err)
	}
	if o.publish {
		if err := a.publishBase(ctx, s, o.name, id); err != nil {
			return err
		}
	}
	return a.answerCID(id)
}

func newBaseLs(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "list the bases here", Args: noArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withStore(cmd.Context(), func(s *store.Store) error { return a.listStore(cmd.Context(), s, "base") })
		},
	}
}

func newBaseImport(a *app) *cobra.Command {
	var o baseOptions
	c := &cobra.Command{
		Use: "import FILE.car|default|NAME", Short: "take a base in from a file, or from peers",
		Long: `Takes a base in: from a CAR file, or by name from the peers of the swarm
("default" is ` + formfile.DefaultFrom + `). A name is believed only from a publisher whose key the
ticket or the kit names, from the local formd, or given with --trust.`,
		Args: argsBetween(1, 1, "a FILE.car, \"default\" or a NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withStore(cmd.Context(), func(s *store.Store) error { return a.runBaseImport(cmd.Context(), s, args[0], o) })
		},
	}
	f := c.Flags()
	f.StringVar(&o.name, "name", "", "the name to give a base from a file (default: its own)")
	f.BoolVar(&o.publish, "publish", false, "hand it to the local formd and publish the name")
	f.StringArrayVar(&o.trust, "trust", nil, "believe base names of this publisher's key (repeatable)")
	return c
}

func (a *app) runBaseImport(ctx context.Context, s *store.Store, arg string, o baseOptions) error {
	id, name, err := a.takeBase(ctx, s, arg, o)
	if err != nil {
		return err
	}
	if o.publish {
		if err := a.publishBase(ctx, s, name, id); err != nil {
			return err
		}
	}
	return a.answerCID(id)
}

func (a *app) takeBase(ctx context.Context, s *store.Store, arg string, o baseOptions) (id cid.Cid, name string, err error) {
	if arg == "default" {
		arg = formfile.DefaultFrom
	} else if _, err := os.Stat(arg); err == nil || filepath.Ext(arg) == ".car" || arg == "-" {
		id, err := a.importCAR(ctx, s, arg)
		if err != nil {
			return id, "", err
		}
		b, err := s.Base(ctx, id)
		if err != nil {
			return id, "", cli.Errorf(api.ExitUsage, "%s holds no base: %w", arg, err).Hint("a pack: form pack import %s", arg)
		}
		name = b.Name
		if o.name != "" {
			name = o.name
		}
		return id, name, s.SetName(name, id, nil)
	}
	if o.name != "" {
		return id, "", cli.Errorf(api.ExitUsage, "--name is for a base from a file; %s has its name", arg)
	}
	id, err = a.fetchBase(ctx, s, arg, o.trust)
	return id, arg, err
}

// needBase is the base that FROM means, complete in s.
func (a *app) needBase(ctx context.Context, s *store.Store, from string) (cid.Cid, error) {
	if id, err := cid.Decode(from); err == nil {
		return id, a.pull(ctx, s, id)
	}
	id, err := s.Resolve(from)
	if err == nil {
		ok, err := s.Complete(ctx, id)
		if err != nil || ok {
			return id, err
		}
		return id, a.pull(ctx, s, id)
	}
	if !errors.Is(err, store.ErrNotFound) {
		return cid.Undef, err
	}
	a.p.Note("base %s is not here; asking the swarm for it", from)
	id, ferr := a.fetchBase(ctx, s, from, nil)
	if ferr == nil || ctx.Err() != nil {
		return id, ferr
	}
	why, hints, _ := a.explain(ferr)
	e := cli.Errorf(api.ExitNotFound, "no base %q here, and the swarm gives none: %s", from, why).
		Hint("make it: form base build --name %s", from).
		Hint("or fetch it from a peer: form base import %s --peer MULTIADDR", from)
	var u *swarm.UnreachableError
	if !errors.As(ferr, &u) {
		e.Hints = append(hints, e.Hints...)
	}
	return cid.Undef, e
}

// fetchBase resolves a name by the swarm's publishers and fetches the base.
func (a *app) fetchBase(ctx context.Context, s *store.Store, name string, trust []string) (id cid.Cid, err error) {
	c, err := a.connect(ctx, s)
	if err != nil {
		return cid.Undef, err
	}
	defer closing(c, &err)
	b, err := a.resolveBase(ctx, c, name, trust)
	if err != nil {
		return cid.Undef, err
	}
	if id, err = cid.Decode(b.CID); err != nil {
		return cid.Undef, fmt.Errorf("base %s: %w", name, err)
	}
	if err := a.fetch(ctx, c, s, id); err != nil {
		return cid.Undef, err
	}
	if _, err := s.Base(ctx, id); err != nil {
		return cid.Undef, fmt.Errorf("base %s: %w", name, err)
	}
	return id, s.SetName(name, id, b.Publisher[:])
}

// resolveBase asks the swarm who publishes name, and believes whom this user
// trusts; a local formd is this machine's own, and so is whom it trusts.
func (a *app) resolveBase(ctx context.Context, c *swarm.Conn, name string, trust []string) (api.Base, error) {
	trusted, err := a.publishers(trust)
	if err != nil {
		return api.Base{}, err
	}
	all, err := c.API().Bases(ctx)
	if err != nil {
		return api.Base{}, err
	}
	var others []api.Base
	var published []string
	for _, b := range all {
		published = append(published, b.Name)
		if b.Name != name {
			continue
		}
		if c.Local() && b.Trusted || slices.Contains(trusted, b.Publisher) {
			return b, nil
		}
		others = append(others, b)
	}
	if len(others) > 0 {
		return api.Base{}, cli.Errorf(api.ExitNotAllowed, "base %s is published by %s, whom you have not said to trust", name, others[0].Publisher).
			Hint("if you do: form base import %s --trust %s", name, others[0].Publisher).
			Hint("a ticket names the swarm's publishers: --ticket form1…")
	}
	e := cli.Errorf(api.ExitNotFound, "the swarm publishes no base %q", name)
	if near := spell.Nearest(name, published); near != "" {
		e.Hint("did you mean %s?", near)
	}
	return api.Base{}, e.Hint("make it here: form base build --name %s", name)
}

// publishers is whose base names are believed, on the connection that stands.
func (a *app) publishers(more []string) ([]stmt.Key, error) {
	k, err := a.kit()
	if err != nil {
		return nil, err
	}
	var out []stmt.Key
	if t := a.used; t != nil {
		out = append(out, t.BasePublishers...)
		if !t.Root.IsZero() {
			out = append(out, t.Root)
		}
	}
	for _, s := range append(slices.Clone(k.BasePublishers), more...) {
		key, err := stmt.ParseKey(s)
		if err != nil {
			return nil, cli.Errorf(api.ExitUsage, "publisher: %w", err)
		}
		out = append(out, key)
	}
	return out, nil
}

// publishBase has the local formd fetch a base from here, name it and publish
// the name.
func (a *app) publishBase(ctx context.Context, s *store.Store, name string, id cid.Cid) (err error) {
	c, err := a.connect(ctx, s)
	if err != nil {
		return err
	}
	defer closing(c, &err)
	if !c.Local() {
		return cli.Errorf(api.ExitNotAllowed, "only a formd on this machine publishes a base name for you").
			Hint("name its socket: --api unix:///PATH")
	}
	if err := a.hand(ctx, c, id); err != nil {
		return err
	}
	if _, err := c.API().ImportBase(ctx, api.BaseRequest{Name: name, CID: id.String()}); err != nil {
		return err
	}
	a.p.Note("published %s as %s", shortCID(id.String()), name)
	return nil
}
