// Command formd is the daemon of a Formation node: it joins a network, keeps
// its share of the packs, runs the virtual machines that fall to it and answers
// the API. It assembles the packages below it and decides nothing itself.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"runtime"
	"runtime/debug"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/formthefog/formation/cmd/internal/api"
	"github.com/formthefog/formation/cmd/internal/config"
	"github.com/formthefog/formation/cmd/internal/tree"
	"github.com/formthefog/formation/fogvm"
	"github.com/formthefog/formation/p2p"
)

// version is set by the linker; see versionText.
var version = ""

func main() {
	os.Exit(Main(os.Args[1:], os.Stdout, os.Stderr))
}

// Main runs one command line and returns its exit code. stdout gets the answer,
// stderr the talk.
func Main(args []string, stdout, stderr io.Writer) int {
	cmd := newRoot(stdout, stderr)
	cmd.SetArgs(args)
	err := cmd.ExecuteContext(context.Background())
	if err == nil {
		return api.ExitOK
	}
	fmt.Fprintf(stderr, "formd: %v\nhint: %s\n", err, hint(err))
	return api.ExitOf(err)
}

// hint is what to do about an error: its own, else what helps with its kind.
func hint(err error) string {
	var p *api.Problem
	var listen *p2p.ListenError
	switch {
	case errors.As(err, &p) && p.Hint != "":
		return p.Hint
	case errors.As(err, &listen):
		return "name an address of this machine with a free port: --listen /ip4/0.0.0.0/tcp/PORT (0: any)"
	case errors.Is(err, syscall.EADDRINUSE):
		return "something else listens there: name a free port, or 0 for any (ss -ltnp shows who)"
	case errors.Is(err, fs.ErrPermission):
		return "check the owner and mode of what it names, or run formd as another user"
	case errors.Is(err, syscall.ENOSPC):
		return "free some space, or move --data to another disk"
	}
	switch api.ExitOf(err) {
	case api.ExitUsage:
		return "formd COMMAND --help shows what it takes; docs/formd.toml explains every key"
	case api.ExitNotFound:
		return "check the path"
	case api.ExitNotAllowed:
		return "a node that holds the network's root key can help: form net invite, over there"
	}
	return "--log-level debug says more"
}

// usage marks an error as one of the command line or the configuration; a file
// that is not there is not found.
func usage(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, fs.ErrNotExist):
		return api.Problemf(api.ExitNotFound, "%v", err).WithHint("check the path, or write one with: form kit operator config")
	}
	return api.Problemf(api.ExitUsage, "%v", err)
}

func newRoot(stdout, stderr io.Writer) *cobra.Command {
	root := &cobra.Command{
		Use:   "formd",
		Short: "The daemon of a Formation node",
		Long: `formd joins a network, keeps packs, runs virtual machines and answers the API.

Exit codes: 0 done, 1 failed, 2 usage or invalid configuration, 3 not found,
4 unreachable, 5 not allowed, 6 timed out.`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return tree.Unknown(cmd, args[0])
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetOut(stdout)
	root.SetErr(stderr)
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usage(err) })
	root.AddCommand(newRunCommand(stdout, stderr), newVMCommand(), newConfigCommand(stdout), newStateCommand(stdout), newVersionCommand(stdout))
	tree.Finish(root)
	return root
}

func noArgs(args []string) error {
	if len(args) > 0 {
		return fmt.Errorf("unexpected argument %q", args[0])
	}
	return nil
}

func newRunCommand(stdout, stderr io.Writer) *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Run a node until it is told to stop",
		Long: `Run a node until SIGTERM or SIGINT; a second signal exits at once.

When it is ready it prints one line on stdout:
  ready peer=PEER api=SOCKET listen=MULTIADDR,...

Flags win over the configuration file, which is the first of --config,
$SECRET_PATH, /etc/formd/formd.toml and $XDG_CONFIG_HOME/formd/formd.toml.`,
		Args: func(_ *cobra.Command, args []string) error { return usage(noArgs(args)) },
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, _, err := config.Resolve(cmd.Flags(), file, config.HostEnv())
			if err != nil {
				return usage(err)
			}
			return run(cmd.Context(), c, stdout, stderr)
		},
	}
	c := config.Default(config.HostEnv())
	config.Bind(cmd.Flags(), &c)
	cmd.Flags().StringVar(&file, "config", "", "configuration file")
	return cmd
}

func newVMCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "vm DIR",
		Short:  "Keep one virtual machine (started by formd run)",
		Hidden: true,
		Args:   func(c *cobra.Command, args []string) error { return usage(cobra.ExactArgs(1)(c, args)) },
		RunE: func(cmd *cobra.Command, args []string) error {
			return fogvm.RunShim(cmd.Context(), args[0])
		},
	}
}

func newConfigCommand(stdout io.Writer) *cobra.Command {
	cmd := &cobra.Command{Use: "config", Short: "Look at configuration files"}
	cmd.AddCommand(&cobra.Command{
		Use:   "check [FILE]",
		Short: "Check a configuration file without running anything",
		Args:  func(c *cobra.Command, args []string) error { return usage(cobra.MaximumNArgs(1)(c, args)) },
		RunE: func(_ *cobra.Command, args []string) error {
			env := config.HostEnv()
			explicit := ""
			if len(args) == 1 {
				explicit = args[0]
			}
			path := config.Find(explicit, env)
			if path == "" {
				return api.Problemf(api.ExitNotFound, "there is no configuration file").
					WithHint("name one, or write one with: form kit operator config")
			}
			c, err := config.Load(path, config.Default(env))
			if err != nil {
				return usage(err)
			}
			if err := c.Validate(); err != nil {
				return usage(fmt.Errorf("%s: %w", path, err))
			}
			fmt.Fprintf(stdout, "%s: ok\n", path)
			return nil
		},
	})
	return tree.Group(cmd)
}

func newVersionCommand(stdout io.Writer) *cobra.Command {
	asJSON := false
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  func(_ *cobra.Command, args []string) error { return usage(noArgs(args)) },
		RunE: func(*cobra.Command, []string) error {
			if asJSON {
				return json.NewEncoder(stdout).Encode(map[string]string{
					"version": versionText(), "go": runtime.Version(), "os": runtime.GOOS, "arch": runtime.GOARCH,
				})
			}
			_, err := fmt.Fprintf(stdout, "formd %s\n", versionText())
			return err
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the answer as JSON")
	return cmd
}

// versionText is the linker's version, else the module's or the commit's.
func versionText() string {
	if version != "" {
		return version
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	text := "devel"
	if v := info.Main.Version; v != "" && v != "(devel)" {
		return v
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" && len(s.Value) >= 12 {
			text += "+" + s.Value[:12]
		}
	}
	return text
}
