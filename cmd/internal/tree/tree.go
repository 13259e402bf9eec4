// Package tree makes a cobra command tree refuse words that it does not know.
//
// Guarantees: a word that names no command, and a command that only holds others
// called without one, are Problems with api.ExitUsage and a hint; so are they for
// the help and completion commands that cobra adds.
package tree

import (
	"strings"

	"github.com/spf13/cobra"

	"github.com/formthefog/formation/cmd/internal/api"
	"github.com/formthefog/formation/cmd/internal/spell"
)

// Group makes c a command that only holds others.
func Group(c *cobra.Command) *cobra.Command {
	c.Args = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return api.Problemf(api.ExitUsage, "%s needs a subcommand: %s", cmd.CommandPath(), strings.Join(names(cmd), ", ")).
				WithHint(cmd.CommandPath() + " --help")
		}
		return Unknown(cmd, args[0])
	}
	c.RunE = func(*cobra.Command, []string) error { return nil }
	return c
}

// Finish adds the help and completion commands to a whole tree.
func Finish(root *cobra.Command) {
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	for _, c := range root.Commands() {
		switch c.Name() {
		case "completion":
			Group(c)
		case "help":
			c.Args = func(_ *cobra.Command, args []string) error { return known(root, args) }
		}
	}
}

// known wants args to be the path of a command.
func known(at *cobra.Command, args []string) error {
	for _, word := range args {
		next := child(at, word)
		if next == nil {
			return Unknown(at, word)
		}
		at = next
	}
	return nil
}

func child(cmd *cobra.Command, word string) *cobra.Command {
	for _, c := range cmd.Commands() {
		if c.Name() == word || c.HasAlias(word) {
			return c
		}
	}
	return nil
}

// Unknown is the error of a word that is no subcommand of cmd.
func Unknown(cmd *cobra.Command, word string) error {
	hint := cmd.CommandPath() + " --help"
	if deeper := lookup(cmd, word); deeper != nil {
		hint = "did you mean: " + deeper.CommandPath()
	} else if near := spell.Nearest(word, names(cmd)); near != "" {
		hint = "did you mean: " + cmd.CommandPath() + " " + near
	}
	return api.Problemf(api.ExitUsage, "unknown command %q for %q", word, cmd.CommandPath()).WithHint(hint)
}

// lookup finds a command called word anywhere below cmd.
func lookup(cmd *cobra.Command, word string) *cobra.Command {
	for _, c := range cmd.Commands() {
		if c.Name() == word && !c.Hidden {
			return c
		}
		if d := lookup(c, word); d != nil {
			return d
		}
	}
	return nil
}

// names are the subcommands that help shows.
func names(cmd *cobra.Command) []string {
	var out []string
	for _, c := range cmd.Commands() {
		if !c.Hidden {
			out = append(out, c.Name())
		}
	}
	return out
}
