//go:build unix

package main

import (
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/term"

	"github.com/formthefog/formation/fogvm/guest"
)

// windowSizes gives a terminal's size at every change, until stop.
func windowSizes(f *os.File) (<-chan guest.WindowSize, func()) {
	changed := make(chan os.Signal, 1)
	signal.Notify(changed, syscall.SIGWINCH)
	sizes, done := make(chan guest.WindowSize), make(chan struct{})
	go func() {
		for {
			select {
			case <-changed:
			case <-done:
				return
			}
			w, h, err := term.GetSize(int(f.Fd()))
			if err != nil {
				continue
			}
			select {
			case sizes <- guest.WindowSize{Rows: uint16(h), Cols: uint16(w)}:
			case <-done:
				return
			}
		}
	}()
	return sizes, func() { signal.Stop(changed); close(done) }
}
