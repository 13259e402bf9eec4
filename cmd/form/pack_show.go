package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/ipfs/go-cid"
	"github.com/spf13/cobra"

	"github.com/formthefog/formation/cmd/form/internal/cli"
	"github.com/formthefog/formation/cmd/internal/api"
	"github.com/formthefog/formation/crdt/stmt"
	"github.com/formthefog/formation/store"
)

// answerRoot prints a base or a pack, whichever is not nil.
func (a *app) answerRoot(id cid.Cid, base *store.Base, pack *store.Root) error {
	if base != nil {
		v := wireBase{CID: id.String(), Base: base, Packages: orEmpty(base.Packages), Author: authorOf(base.Author)}
		return a.p.Answer(v, func(w io.Writer) { writeBase(w, id, base) })
	}
	return a.p.Answer(wireOf(id, pack), func(w io.Writer) { writePack(w, id, pack) })
}

// hidden is a pack without its password hashes and salt: whoever may read the
// pack can get them, but they need not be on a screen or in a log.
func hidden(p *store.Root) *store.Root {
	q := *p
	q.Salt = nil
	q.Run.Users = slices.Clone(p.Run.Users)
	for i := range q.Run.Users {
		if q.Run.Users[i].PasswordHash != "" {
			q.Run.Users[i].PasswordHash = "[redacted]"
		}
	}
	return &q
}

func writeBase(w io.Writer, id cid.Cid, b *store.Base) {
	cli.Pairs(w,
		[2]string{"cid", id.String()}, [2]string{"kind", "base"}, [2]string{"name", b.Name},
		[2]string{"author", authorOf(b.Author)}, [2]string{"arch", b.Arch}, [2]string{"kernel", b.KernelVersion},
		[2]string{"packages", fmt.Sprint(len(b.Packages))}, [2]string{"made", b.Provenance})
	fmt.Fprintln(w)
	writeEntries(w, b.Kernel, b.Initrd, b.Modules, b.Rootfs)
}

func writePack(w io.Writer, id cid.Cid, p *store.Root) {
	r := p.Run
	var users, expose, env []string
	for _, u := range r.Users {
		users = append(users, u.Name)
	}
	for _, x := range r.Expose {
		expose = append(expose, fmt.Sprintf("%d/%s", x.Port, x.Proto))
	}
	for _, e := range r.Env {
		env = append(env, e.Key)
	}
	parent := ""
	if p.Parent != nil {
		parent = p.Parent.String()
	}
	replicas := ""
	if r.Replicas > 0 {
		replicas = fmt.Sprint(r.Replicas)
	}
	cli.Pairs(w,
		[2]string{"cid", id.String()}, [2]string{"kind", "pack"}, [2]string{"name", p.Name},
		[2]string{"description", p.Description}, [2]string{"author", authorOf(p.Author)},
		[2]string{"base", p.Base.String()}, [2]string{"parent", parent}, [2]string{"message", p.Message},
		[2]string{"vcpu", fmt.Sprint(r.VCPU)}, [2]string{"memory", cli.Bytes(r.MemoryBytes)},
		[2]string{"disk", cli.Bytes(r.DiskBytes)}, [2]string{"replicas", replicas},
		[2]string{"users", strings.Join(users, " ")}, [2]string{"env", strings.Join(env, " ")},
		[2]string{"workdir", r.Workdir}, [2]string{"entrypoint", quoted(r.Entrypoint)},
		[2]string{"expose", strings.Join(expose, " ")}, [2]string{"restart", r.Restart},
		[2]string{"init", r.Init}, [2]string{"partition", r.Partition})
	if len(p.Layers) > 0 {
		fmt.Fprintln(w)
		writeEntries(w, p.Layers...)
	}
}

func writeEntries(w io.Writer, entries ...store.Entry) {
	var rows [][]string
	for _, e := range entries {
		rows = append(rows, []string{e.Kind, e.Root.String(), cli.Bytes(uint64(e.Size)), e.Format})
	}
	cli.Table(w, []string{"ENTRY", "ROOT", "SIZE", "FORMAT"}, rows)
}

func authorOf(pub []byte) string {
	if len(pub) != len(stmt.Key{}) {
		return ""
	}
	return stmt.Key(pub).String()
}

func quoted(argv []string) string {
	out := make([]string, len(argv))
	for i, s := range argv {
		out[i] = fmt.Sprintf("%q", s)
	}
	return strings.Join(out, " ")
}

// difference is what changed between two packs.
type difference struct {
	From    string        `json:"from"`
	To      string        `json:"to"`
	Same    bool          `json:"same"`
	Fields  []fieldChange `json:"fields"`
	Added   []layer       `json:"layers_added"`
	Removed []layer       `json:"layers_removed"`
	Shared  int           `json:"layers_shared"`
}

type fieldChange struct {
	Field string `json:"field"`
	From  string `json:"from"`
	To    string `json:"to"`
}

type layer struct {
	Root string `json:"root"`
	Size int64  `json:"size_bytes"`
}

func newPackDiff(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "diff FROM TO", Short: "what changed between two packs",
		Long: `Compares two packs here: their configuration, base and layers. It exits 0 whether
they differ or not.`,
		Args: argsBetween(2, 2, "two CIDs or NAMEs"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withStore(cmd.Context(), func(s *store.Store) error { return a.runPackDiff(cmd.Context(), s, args[0], args[1]) })
		},
	}
}

func (a *app) runPackDiff(ctx context.Context, s *store.Store, from, to string) error {
	var ids [2]cid.Cid
	var roots [2]*store.Root
	for i, arg := range []string{from, to} {
		id, err := packID(ctx, s, arg)
		if err != nil {
			return err
		}
		root, err := s.Pack(ctx, id)
		if err != nil {
			return fmt.Errorf("%s: %w", id, err)
		}
		ids[i], roots[i] = id, root
	}
	d := diffPacks(roots[0], roots[1])
	d.From, d.To = ids[0].String(), ids[1].String()
	d.Same = ids[0] == ids[1]
	return a.p.Answer(d, func(w io.Writer) {
		if d.Same {
			fmt.Fprintln(w, "the same pack")
		}
		for _, f := range d.Fields {
			fmt.Fprintf(w, "~ %s: %s -> %s\n", f.Field, f.From, f.To)
		}
		for _, l := range d.Removed {
			fmt.Fprintf(w, "- layer %s (%s)\n", l.Root, cli.Bytes(uint64(l.Size)))
		}
		for _, l := range d.Added {
			fmt.Fprintf(w, "+ layer %s (%s)\n", l.Root, cli.Bytes(uint64(l.Size)))
		}
		fmt.Fprintf(w, "  %s shared\n", count(d.Shared, "layer"))
	})
}

func diffPacks(x, y *store.Root) difference {
	d := difference{Fields: []fieldChange{}, Added: []layer{}, Removed: []layer{}}
	fx, fy := packFields(x), packFields(y)
	for i := range fx {
		if fx[i][1] != fy[i][1] {
			d.Fields = append(d.Fields, fieldChange{fx[i][0], fx[i][1], fy[i][1]})
		}
	}
	has := func(list []store.Entry, e store.Entry) bool {
		return slices.ContainsFunc(list, func(o store.Entry) bool { return o.Root == e.Root })
	}
	for _, e := range y.Layers {
		if has(x.Layers, e) {
			d.Shared++
		} else {
			d.Added = append(d.Added, layer{e.Root.String(), e.Size})
		}
	}
	for _, e := range x.Layers {
		if !has(y.Layers, e) {
			d.Removed = append(d.Removed, layer{e.Root.String(), e.Size})
		}
	}
	return d
}

// packFields is what diff compares, in the order it is shown.
func packFields(p *store.Root) [][2]string {
	r := hidden(p).Run
	var users []string
	for _, u := range r.Users {
		users = append(users, fmt.Sprintf("%+v", u))
	}
	health := ""
	if r.Health != nil {
		health = fmt.Sprintf("%+v", *r.Health)
	}
	return [][2]string{
		{"name", p.Name}, {"description", p.Description}, {"base", p.Base.String()}, {"author", authorOf(p.Author)},
		{"vcpu", fmt.Sprint(r.VCPU)}, {"memory", cli.Bytes(r.MemoryBytes)}, {"disk", cli.Bytes(r.DiskBytes)},
		{"users", strings.Join(users, " ")}, {"env", fmt.Sprintf("%v", r.Env)}, {"workdir", r.Workdir},
		{"entrypoint", quoted(r.Entrypoint)}, {"expose", fmt.Sprintf("%v", r.Expose)}, {"health", health},
		{"restart", r.Restart}, {"init", r.Init}, {"partition", r.Partition}, {"replicas", fmt.Sprint(r.Replicas)},
		{"gpu", fmt.Sprintf("%v", r.GPU)},
	}
}

// newPull fetches a pack from the swarm into this user's store.
func newPull(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "pull CID", Short: "fetch a pack from the swarm", Args: argsBetween(1, 1, "one CID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := cid.Decode(args[0])
			if err != nil {
				return cli.Errorf(api.ExitUsage, "%q is not a CID", args[0]).Hint("form ls shows the packs of instances")
			}
			return a.withStore(cmd.Context(), func(s *store.Store) error {
				if err := a.pull(cmd.Context(), s, id); err != nil {
					return err
				}
				return a.answerCID(id)
			})
		},
	}
}

// pull brings a pack or base here.
func (a *app) pull(ctx context.Context, s *store.Store, id cid.Cid) (err error) {
	if ok, err := s.Complete(ctx, id); err != nil || ok {
		return err
	}
	c, err := a.connect(ctx, s)
	if err != nil {
		return err
	}
	defer closing(c, &err)
	return a.fetch(ctx, c, s, id)
}
