package main

import (
	"fmt"
	"io"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"github.com/formthefog/formation/cmd/form/internal/cli"
	"github.com/formthefog/formation/cmd/internal/api"
)

// version is set by the linker for releases; else the module's and commit's.
var version string

func newVersion(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "the version of form", Args: noArgs(),
		RunE: func(*cobra.Command, []string) error {
			v := struct {
				Version string `json:"version"`
				Commit  string `json:"commit"`
				Go      string `json:"go"`
				OS      string `json:"os"`
				Arch    string `json:"arch"`
			}{version, "", runtime.Version(), runtime.GOOS, runtime.GOARCH}
			if info, ok := debug.ReadBuildInfo(); ok {
				if v.Version == "" {
					v.Version = info.Main.Version
				}
				for _, s := range info.Settings {
					if s.Key == "vcs.revision" {
						v.Commit = s.Value
					}
				}
			}
			if v.Version == "" || v.Version == "(devel)" {
				v.Version = "devel"
			}
			return a.p.Answer(v, func(w io.Writer) {
				fmt.Fprintf(w, "form %s %s %s/%s %s\n", v.Version, v.Go, v.OS, v.Arch, v.Commit)
			})
		},
	}
}

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
