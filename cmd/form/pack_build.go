package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/ipfs/go-cid"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/formthefog/formation/cmd/form/internal/cli"
	"github.com/formthefog/formation/cmd/internal/api"
	"github.com/formthefog/formation/store"
	"github.com/formthefog/formation/store/formfile"
)

type buildOptions struct {
	file    string
	noCache bool
}

func (o *buildOptions) addFlags(f *pflag.FlagSet) {
	f.StringVarP(&o.file, "file", "f", "", "the Formfile (default DIR/Formfile)")
	f.BoolVar(&o.noCache, "no-cache", false, "run every step again")
}

func newBuild(a *app) *cobra.Command {
	var o buildOptions
	c := &cobra.Command{
		Use: "build [DIR]", Short: "build a Formpack from a folder with a Formfile",
		Long: `Executes the Formfile of DIR (default .) on its base, in a sandbox, and prints the
Formpack's CID as the last line. Steps that have not changed are not run again.`,
		Args: argsBetween(0, 1, "at most one DIR"),
		RunE: func(cmd *cobra.Command, args []string) error {
			dir := "."
			if len(args) == 1 {
				dir = args[0]
			}
			in, err := readContext(dir, o)
			if err != nil {
				return err
			}
			return a.withStore(cmd.Context(), func(s *store.Store) error {
				id, err := a.runBuild(cmd.Context(), s, in)
				if err != nil {
					return err
				}
				return a.answerCID(id)
			})
		},
	}
	o.addFlags(c.Flags())
	return c
}

// buildInput is a checked context and its Formfile.
type buildInput struct {
	dir      string // absolute
	formfile string // absolute
	file     *formfile.File
	noCache  bool
}

// readContext checks everything that can be checked before anything is built.
func readContext(dir string, o buildOptions) (in buildInput, err error) {
	in.noCache = o.noCache
	info, err := os.Stat(dir)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return in, cli.Errorf(api.ExitNotFound, "%s does not exist", dir)
		}
		return in, err
	}
	if !info.IsDir() {
		return in, cli.Errorf(api.ExitUsage, "%s is not a folder", dir).Hint("a Formfile with another name: form pack build -f %s", dir)
	}
	name := o.file
	if name == "" {
		name = filepath.Join(dir, "Formfile")
	}
	if in.file, err = readFormfile(name); err != nil {
		return in, err
	}
	if in.dir, err = filepath.Abs(dir); err != nil {
		return in, fmt.Errorf("build: %w", err)
	}
	in.formfile, err = filepath.Abs(name)
	return in, err
}

// runBuild makes sure that the base is here, and builds.
func (a *app) runBuild(ctx context.Context, s *store.Store, in buildInput) (cid.Cid, error) {
	for _, w := range in.file.Warnings {
		a.p.Raw(w.String())
	}
	if _, err := a.key(); err != nil {
		return cid.Undef, err // the pack is signed with it
	}
	base, err := a.needBase(ctx, s, in.file.From)
	if err != nil {
		return cid.Undef, err
	}
	return a.build(ctx, s, in, base)
}
