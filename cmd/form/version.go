package main

import (
	"fmt"
	"io"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
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
