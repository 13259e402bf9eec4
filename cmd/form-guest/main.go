//go:build linux

// Command form-guest is process 1 of every Formation guest: the initramfs
// starts it as /init. It does nothing useful anywhere else.
package main

import (
	"fmt"
	"os"

	"github.com/formthefog/formation/fogvm/guest"
)

func main() {
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "form-guest: runs as process 1 of a guest (see ARCHITECTURE.md); nothing to do here")
		os.Exit(2)
	}
	guest.Init()
}
