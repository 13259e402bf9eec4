//go:build !linux

package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Fprintln(os.Stderr, "form-guest: only runs inside a Linux guest")
	os.Exit(2)
}
