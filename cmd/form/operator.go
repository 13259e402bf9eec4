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

	"github.com/charmbracelet/huh"
	"github.com/spf13/cobra"

	"github.com/formthefog/formation/cmd/form/internal/cli"
	"github.com/formthefog/formation/cmd/form/internal/kit"
	"github.com/formthefog/formation/cmd/internal/api"
	"github.com/formthefog/formation/cmd/internal/config"
)

type operatorOptions struct {
	conf  config.Config
	out   string
	yes   bool
	force bool
}

func newOperatorConfig(a *app) *cobra.Command {
	o := operatorOptions{conf: config.Default(config.HostEnv())}
	c := &cobra.Command{
		Use: "config", Short: "write formd's configuration",
		Long: `Asks what a node's operator decides and writes formd's configuration, checked.
Every question has a flag, and every key of the configuration too; --yes asks
nothing. The kit's key becomes the node's operator key; without a kit one is
made.`,
		Args: noArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error { return a.runOperatorConfig(cmd.Context(), o) },
	}
	config.Bind(c.Flags(), &o.conf)
	f := c.Flags()
	f.StringVar(&o.out, "out", "", "the file to write (default: where formd looks for it)")
	f.BoolVarP(&o.yes, "yes", "y", false, "ask nothing")
	f.BoolVar(&o.force, "force", false, "replace a file that is there")
	return c
}

// operatorPath is where formd finds its configuration.
func (a *app) operatorPath() string {
	if os.Geteuid() == 0 {
		return "/etc/formd/formd.toml"
	}
	d := a.getenv("XDG_CONFIG_HOME")
	if d == "" {
		d = filepath.Join(a.getenv("HOME"), ".config")
	}
	return filepath.Join(d, "formd", "formd.toml")
}

func (a *app) runOperatorConfig(ctx context.Context, o operatorOptions) error {
	a.assumeYes = o.yes
	if !o.yes && !a.interactive() {
		return cli.Errorf(api.ExitUsage, "kit operator config asks questions, and standard input or error is no terminal").
			Hint("answer by flags, and take the defaults for the rest: form kit operator config --yes")
	}
	if o.out == "" {
		o.out = a.operatorPath()
	}
	if _, err := os.Lstat(o.out); err == nil && !o.force {
		return cli.Errorf(api.ExitFailed, "%s exists", o.out).Hint("replace it: --force").Hint("check it: formd config check %s", o.out)
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if !o.yes {
		if err := a.askOperator(ctx, &o); err != nil {
			return err
		}
	}
	if err := a.operatorKey(&o); err != nil {
		return err
	}
	if err := o.conf.Validate(); err != nil {
		return cli.Errorf(api.ExitUsage, "%w", err).Hint("form kit operator config --help says what each key takes")
	}
	b, err := config.Encode(o.conf)
	if err != nil {
		return err
	}
	head := "# formd's configuration, written by \"form kit operator config\".\n# Every key is a flag of \"formd run\"; docs/formd.toml explains them.\n\n"
	if err := kit.WriteFile(o.out, append([]byte(head), b...)); err != nil {
		return err
	}
	a.p.Note("next: formd run --config %s", o.out)
	v := struct {
		Config   string   `json:"config"`
		Operator []string `json:"operator"`
	}{o.out, o.conf.Operator}
	return a.p.Answer(v, func(w io.Writer) {
		cli.Pairs(w, [2]string{"config", o.out}, [2]string{"operator", strings.Join(v.Operator, " ")})
	})
}

// operatorKey makes the kit's key the node's operator, and the kit first if
// there is none.
func (a *app) operatorKey(o *operatorOptions) error {
	if len(o.conf.Operator) > 0 {
		return nil
	}
	_, c, err := a.keyPath()
	if err != nil {
		return err
	}
	owner, err := a.owner()
	var said *cli.Error
	if errors.As(err, &said) && said.Code == api.ExitNotFound && a.getenv("FORM_KEY_FILE") == "" {
		words, key, kerr := makeKey(24)
		if kerr != nil {
			return kerr
		}
		if err := a.storeKey(c.KeyPath(a.dir()), key, protection{}, &c); err != nil {
			return err
		}
		a.showWords(words)
		owner, err = a.owner()
	}
	if err != nil {
		return fmt.Errorf("operator's key: %w", err)
	}
	o.conf.Operator = []string{owner.String()}
	return nil
}

func (a *app) askOperator(ctx context.Context, o *operatorOptions) error {
	accept := "default"
	listen := strings.Join(o.conf.Listen, " ")
	labels := strings.Join(o.conf.Label, " ")
	memory, disk := o.conf.Memory.String(), o.conf.Disk.String()
	size := func(what string) func(string) error {
		return func(s string) error {
			var v config.Size
			if err := v.Set(s); err != nil {
				return fmt.Errorf("%s: %w", what, err)
			}
			return nil
		}
	}
	err := a.ask(ctx, huh.NewForm(
		huh.NewGroup(
			huh.NewInput().Title("Folder for everything this node keeps").Value(&o.conf.Data),
			huh.NewInput().Title("Ticket of the swarm to join").Description("Empty: begin a private network of your own.").
				Value(&o.conf.Join).Validate(checkTicket),
			huh.NewInput().Title("Addresses to listen on").
				Description("Multiaddrs, separated by spaces. Empty: TCP and QUIC on port 51820, or the next free one.").Value(&listen),
		),
		huh.NewGroup(
			huh.NewSelect[string]().Title("Whose instances may run here?").Options(
				huh.NewOption("yours; every member's after joining a swarm", "default"), huh.NewOption("only yours", "operator"),
				huh.NewOption("those of the swarm's members", "members"), huh.NewOption("anyone's", "any")).Value(&accept),
			huh.NewInput().Title("Memory to offer").Description("0: what the machine can spare").Value(&memory).Validate(size("memory")),
			huh.NewInput().Title("Disk to offer").Description("0: what the disk can spare").Value(&disk).Validate(size("disk")),
			huh.NewInput().Title("Region").Description("For instances that ask for one; may be empty.").Value(&o.conf.Region),
			huh.NewInput().Title("Labels").Description("K=V, separated by spaces; may be empty.").Value(&labels),
		),
	))
	if err != nil {
		return err
	}
	if accept != "default" {
		o.conf.Accept = []string{accept}
	}
	o.conf.Listen, o.conf.Label = strings.Fields(listen), slices.Clip(strings.Fields(labels))
	return errors.Join(o.conf.Memory.Set(memory), o.conf.Disk.Set(disk))
}
