//go:build linux

// Command form-guest is process 1 of every Formation guest: the initramfs
// starts it as /init. It does nothing useful anywhere else.
package main

import (
	"fmt"
	"log/slog"
	"os"

	"github.com/formthefog/formation/fogvm/guest"
	"github.com/formthefog/formation/fogvm/guest/mesh"
)

func main() {
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "form-guest: runs as process 1 of a guest (see ARCHITECTURE.md); nothing to do here")
		os.Exit(2)
	}
	guest.Init(func(dir string, log *slog.Logger) guest.Mesh {
		return mesh.New(mesh.Config{Dir: dir, Open: mesh.OpenKernel, Names: mesh.ServeNames, Log: log})
	})
}
