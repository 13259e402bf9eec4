package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/ipfs/go-cid"
	"github.com/spf13/cobra"

	"github.com/formthefog/formation/cmd/form/internal/cli"
	"github.com/formthefog/formation/cmd/internal/api"
	"github.com/formthefog/formation/store"
)

type exportOptions struct {
	out    string
	noBase bool
}

func newExport(a *app) *cobra.Command {
	var o exportOptions
	c := &cobra.Command{
		Use: "export CID|NAME -o FILE.car", Short: "write a pack as a CAR file",
		Long: `Writes a CAR v1 whose root is the pack's CID, with its base, for any IPFS tool or
another machine's "form pack import". "-o -" writes to standard output.`,
		Args: argsBetween(1, 1, "one CID or NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withStore(cmd.Context(), func(s *store.Store) error { return a.runExport(cmd.Context(), s, args[0], o) })
		},
	}
	c.Flags().StringVarP(&o.out, "output", "o", "", "the CAR file to write, or - for standard output")
	c.Flags().BoolVar(&o.noBase, "no-base", false, "leave the base out; importing needs it there")
	return c
}

func (a *app) runExport(ctx context.Context, s *store.Store, arg string, o exportOptions) error {
	id, err := packID(ctx, s, arg)
	if err != nil {
		return err
	}
	var opts []store.ExportOption
	if o.noBase {
		opts = append(opts, store.WithoutBase())
	}
	if o.out == "" {
		return cli.Errorf(api.ExitUsage, "export needs a file to write").Hint("form pack export %s -o %s.car", arg, arg)
	}
	if o.out == "-" {
		if cli.IsTerminal(a.stdout) {
			return cli.Errorf(api.ExitUsage, "a CAR file is no text for a terminal").Hint("redirect it, or -o FILE.car")
		}
		return s.Export(ctx, id, a.stdout, opts...)
	}
	task := a.p.Start("exporting")
	defer task.Done()
	size, err := writeWhole(o.out, func(w io.Writer) error { return s.Export(ctx, id, w, opts...) })
	if err != nil {
		return err
	}
	task.Done()
	a.p.Note("%s: %s", o.out, cli.Bytes(uint64(size)))
	return a.answerCID(id)
}

// writeWhole writes a file that has its name only when it is complete.
func writeWhole(path string, f func(io.Writer) error) (size int64, err error) {
	t, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		return 0, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(t.Name()))
		}
	}()
	err = f(t)
	if err == nil {
		err = t.Chmod(0o644)
	}
	if err == nil {
		err = t.Sync()
	}
	info, serr := t.Stat()
	if err = errors.Join(err, serr, t.Close()); err != nil {
		return 0, err
	}
	return info.Size(), os.Rename(t.Name(), path)
}

func newImport(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "import FILE.car", Short: "take a pack in from a CAR file", Args: argsBetween(1, 1, "one FILE.car, or -"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withStore(cmd.Context(), func(s *store.Store) error {
				id, err := a.importCAR(cmd.Context(), s, args[0])
				if err != nil {
					return err
				}
				return a.answerCID(id)
			})
		},
	}
}

func (a *app) importCAR(ctx context.Context, s *store.Store, file string) (cid.Cid, error) {
	in := a.stdin
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return cid.Undef, err
		}
		defer f.Close()
		in = f
	}
	task := a.p.Start("importing")
	defer task.Done()
	id, err := s.Import(ctx, in)
	if err == nil {
		return id, nil
	}
	err = fmt.Errorf("import %s: %w", file, err)
	switch {
	case errors.Is(err, store.ErrCorrupt), errors.Is(err, store.ErrTooLarge):
		return cid.Undef, cli.Errorf(api.ExitUsage, "%w", err).Hint("it is no whole CAR file of a pack: export or download it again")
	case errors.Is(err, store.ErrIncomplete):
		return cid.Undef, cli.Errorf(api.ExitUsage, "%w", err).
			Hint("it holds a pack without its base: import the base first, or export it without --no-base")
	}
	return cid.Undef, err
}

// answerCID prints a CID as the last line.
func (a *app) answerCID(id cid.Cid) error {
	v := struct {
		CID string `json:"cid"`
	}{id.String()}
	return a.p.Answer(v, func(w io.Writer) { fmt.Fprintln(w, id) })
}
