//go:build !linux

package main

import (
	"context"

	"github.com/formthefog/formation/cmd/form/internal/cli"
	"github.com/formthefog/formation/cmd/internal/api"
)

// join needs what only Linux has here.
func (a *app) join(context.Context, launch, joinOptions, func(joined) error) error {
	return cli.Errorf(api.ExitFailed, "form net join makes an interface on Linux only").
		Hint("here the WireGuard app does: form net config --device NAME")
}

// undoNames has nothing to take back.
func undoNames(context.Context, string) error { return nil }
