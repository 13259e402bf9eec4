package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/spf13/cobra"

	"github.com/formthefog/formation/cmd/form/internal/cli"
	"github.com/formthefog/formation/cmd/internal/api"
	"github.com/formthefog/formation/cmd/internal/spell"
	"github.com/formthefog/formation/store"
	"github.com/formthefog/formation/store/formfile"
)

func newPack(a *app) *cobra.Command {
	ship := newShip(a)
	return group("pack", "make, look at and share Formpacks",
		newValidate(a), newBuild(a), ship, newPackLs(a), newPackInspect(a), newPackRm(a),
		newPackDiff(a), newPull(a), newExport(a), newImport(a))
}

// How long another form may have the packs: one try, and all tries.
const (
	lockTry  = 500 * time.Millisecond
	lockWait = 5 * time.Minute
)

// openStore opens this user's own packs. A store belongs to one process at a
// time: while another form has it this one waits, up to lockWait, and says so.
func (a *app) openStore(ctx context.Context) (*store.Store, error) {
	d := a.dir()
	if err := os.MkdirAll(d.Data, 0o700); err != nil {
		return nil, fmt.Errorf("packs: %w", err)
	}
	for waited := time.Duration(0); ; waited += lockTry {
		s, err := store.Open(store.Config{Dir: d.Store(), LockWait: lockTry, Logger: a.logger()})
		switch {
		case err == nil:
			return s, nil
		case !errors.Is(err, store.ErrLocked) || waited >= lockWait:
			return nil, fmt.Errorf("open %s: %w", d.Store(), err)
		case waited == 0:
			a.p.Note("another form is working on the packs here; waiting for it, at most %s", lockWait)
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
	}
}

// withStore opens the store for f.
func (a *app) withStore(ctx context.Context, f func(*store.Store) error) (err error) {
	s, err := a.openStore(ctx)
	if err != nil {
		return err
	}
	defer closing(s, &err)
	return f(s)
}

// packID is a CID as the user wrote it, or the one pack of that name.
func packID(ctx context.Context, s *store.Store, arg string) (cid.Cid, error) {
	if id, err := cid.Decode(arg); err == nil {
		return id, nil
	}
	list, err := s.List(ctx)
	if err != nil {
		return cid.Undef, err
	}
	var found []store.Info
	var all []string
	for _, i := range list {
		all = append(all, i.Name)
		if i.Name == arg || len(arg) >= 8 && strings.HasPrefix(i.CID.String(), arg) {
			found = append(found, i)
		}
	}
	switch len(found) {
	case 1:
		return found[0].CID, nil
	case 0:
		e := cli.Errorf(api.ExitNotFound, "no pack %q here", arg)
		if near := spell.Nearest(arg, all); near != "" {
			e.Hint("did you mean %s?", near)
		}
		return cid.Undef, e.Hint("what is here: form pack ls, form base ls")
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%q may be any of %d packs:", arg, len(found))
	for _, i := range found {
		fmt.Fprintf(&b, "\n  %s  %s", i.CID, i.Kind)
	}
	return cid.Undef, cli.Errorf(api.ExitUsage, "%s", b.String()).Hint("use the CID")
}

func newValidate(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "validate [FILE]", Short: "check a Formfile",
		Long: `Prints "FILE: ok", or every error as FILE:LINE:COL: message (exit 2). Without FILE
it is ./Formfile; a folder means the Formfile in it.`,
		Args: argsBetween(0, 1, "at most one FILE"),
		RunE: func(_ *cobra.Command, args []string) error {
			file := "Formfile"
			if len(args) == 1 {
				file = args[0]
			}
			if info, err := os.Stat(file); err == nil && info.IsDir() {
				file = filepath.Join(file, "Formfile")
			}
			return a.runValidate(file)
		},
	}
}

// validation is the answer of pack validate.
type validation struct {
	File     string              `json:"file"`
	OK       bool                `json:"ok"`
	Errors   formfile.ErrorList  `json:"errors"`
	Warnings []*formfile.Warning `json:"warnings"`
}

func (a *app) runValidate(file string) error {
	v := validation{File: file, Errors: formfile.ErrorList{}, Warnings: []*formfile.Warning{}}
	f, err := readFormfile(file)
	if err != nil && !errors.As(err, &v.Errors) {
		return err
	}
	if f != nil && f.Warnings != nil {
		v.Warnings = f.Warnings
	}
	v.OK = len(v.Errors) == 0
	for _, w := range v.Warnings {
		a.p.Raw(w.String())
	}
	err = a.p.Answer(v, func(w io.Writer) {
		if v.OK {
			fmt.Fprintf(w, "%s: ok\n", file)
		}
		for _, e := range v.Errors {
			fmt.Fprintln(w, e.Error())
		}
	})
	if err != nil || v.OK {
		return err
	}
	e := cli.Errorf(api.ExitUsage, "%s: %s", file, count(len(v.Errors), "error"))
	for _, fe := range v.Errors {
		if fe.Hint != "" {
			e.Hint("line %d: %s", fe.Line, fe.Hint)
		}
	}
	if len(e.Hints) == 0 {
		e.Hint("the language: docs/formfile.md, or form pack validate --help")
	}
	return e
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// readFormfile reads at most what the language allows, and parses it. Errors in
// it are a formfile.ErrorList.
func readFormfile(file string) (*formfile.File, error) {
	f, err := os.Open(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, cli.Errorf(api.ExitNotFound, "%s does not exist", file).
			Hint("name another with -f FILE, or write one: docs/examples/hello-server/Formfile shows how")
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, formfile.MaxFileBytes+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", file, err)
	}
	return formfile.Parse(file, b)
}

func newPackLs(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "list the packs here", Args: noArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withStore(cmd.Context(), func(s *store.Store) error { return a.listStore(cmd.Context(), s, "pack") })
		},
	}
}

// stored is one line of pack ls and base ls.
type stored struct {
	CID      string   `json:"cid"`
	Kind     string   `json:"kind"`
	Name     string   `json:"name"`
	Base     string   `json:"base,omitempty"`
	Size     int64    `json:"size_bytes"`
	Complete bool     `json:"complete"`
	Added    string   `json:"added_at"`
	Names    []string `json:"names,omitempty"`
}

func (a *app) listStore(ctx context.Context, s *store.Store, kind string) error {
	list, err := s.List(ctx)
	if err != nil {
		return err
	}
	names, err := s.Names()
	if err != nil {
		return err
	}
	out := []stored{}
	for _, i := range list {
		if i.Kind != kind {
			continue
		}
		st := stored{CID: i.CID.String(), Kind: i.Kind, Name: i.Name, Size: i.Size, Complete: i.Complete, Added: since(&i.Added)}
		if i.Base.Defined() {
			st.Base = i.Base.String()
		}
		for _, n := range names {
			if n.CID == i.CID {
				st.Names = append(st.Names, n.Name)
			}
		}
		out = append(out, st)
	}
	return a.p.Answer(out, func(w io.Writer) {
		var rows [][]string
		for _, st := range out {
			state := "complete"
			if !st.Complete {
				state = "incomplete"
			}
			name := st.Name
			if kind == "base" && len(st.Names) > 0 {
				name = strings.Join(st.Names, " ")
			}
			rows = append(rows, []string{name, st.CID, cli.Bytes(uint64(st.Size)), state, st.Added})
		}
		cli.Table(w, []string{"NAME", "CID", "SIZE", "STATE", "ADDED"}, rows)
	})
}

func newPackInspect(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "inspect CID|NAME", Short: "what a pack or base is made of", Args: argsBetween(1, 1, "one CID or NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withStore(cmd.Context(), func(s *store.Store) error { return a.runPackInspect(cmd.Context(), s, args[0]) })
		},
	}
}

func (a *app) runPackInspect(ctx context.Context, s *store.Store, arg string) error {
	id, err := packID(ctx, s, arg)
	if err != nil {
		return err
	}
	root, err := s.Pack(ctx, id)
	if err != nil {
		base, berr := s.Base(ctx, id)
		if berr != nil {
			return fmt.Errorf("%s: %w", id, err)
		}
		return a.answerRoot(id, base, nil)
	}
	return a.answerRoot(id, nil, root)
}

func newPackRm(a *app) *cobra.Command {
	force := false
	c := &cobra.Command{
		Use: "rm CID|NAME...", Aliases: []string{"remove"}, Short: "remove packs from this machine",
		Long: `Removes packs or bases from this user's own store and frees their space. What
the swarm holds is not touched. A base that a pack here needs stays, unless the
pack goes too or with --force.`,
		Args: argsBetween(1, -1, "one CID or NAME or more"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withStore(cmd.Context(), func(s *store.Store) error { return a.runPackRm(cmd.Context(), s, args, force) })
		},
	}
	c.Flags().BoolVar(&force, "force", false, "remove bases that packs here need: those packs are incomplete then")
	return c
}

func (a *app) runPackRm(ctx context.Context, s *store.Store, args []string, force bool) error {
	var gone []cid.Cid
	for _, arg := range args {
		id, err := packID(ctx, s, arg)
		if err != nil {
			return err
		}
		if !slices.Contains(gone, id) {
			gone = append(gone, id)
		}
	}
	if !force {
		list, err := s.List(ctx)
		if err != nil {
			return err
		}
		if err := needed(list, gone); err != nil {
			return err
		}
	}
	ids := []string{}
	for _, id := range gone {
		if err := s.Remove(ctx, id); err != nil {
			return fmt.Errorf("%s: %w", id, err)
		}
		ids = append(ids, id.String())
	}
	freed, err := s.GC(ctx, nil)
	if err != nil {
		return err
	}
	a.p.Note("freed %s", cli.Bytes(uint64(freed)))
	return a.p.Answer(ids, func(w io.Writer) { fmt.Fprintln(w, strings.Join(ids, "\n")) })
}

// needed refuses the removal of a base that a pack which stays is built on.
func needed(list []store.Info, gone []cid.Cid) error {
	for _, i := range list {
		if i.Base.Defined() && slices.Contains(gone, i.Base) && !slices.Contains(gone, i.CID) {
			return cli.Errorf(api.ExitFailed, "%s is the base of the pack %s (%s) here", i.Base, i.Name, i.CID).
				Hint("remove the pack too: form pack rm %s %s", i.Base, i.CID).Hint("or the base alone: --force")
		}
	}
	return nil
}
