package main

import (
	"github.com/spf13/cobra"

	"github.com/formthefog/formation/cmd/form/internal/cli"
	"github.com/formthefog/formation/cmd/internal/api"
)

func newCommit(*app) *cobra.Command {
	var message string
	var dry bool
	c := &cobra.Command{
		Use: "commit HOST", Short: "make a pack of a running instance's changes (not in this version)",
		Args: argsBetween(1, 1, "one HOST"),
		RunE: func(*cobra.Command, []string) error {
			return cli.Errorf(api.ExitFailed, "commit needs the guest's agent to hand over the changes of its disk, which this version does not have").
				Hint("put the change into the Formfile and ship again: the instance keeps its ID")
		},
	}
	c.Flags().StringVarP(&message, "message", "m", "", "what has changed")
	c.Flags().BoolVar(&dry, "dry-run", false, "only show what would be committed")
	return c
}
