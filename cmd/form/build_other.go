//go:build !linux

package main

import (
	"context"

	"github.com/ipfs/go-cid"

	"github.com/formthefog/formation/cmd/form/internal/cli"
	"github.com/formthefog/formation/cmd/internal/api"
	"github.com/formthefog/formation/store"
)

func sandboxMain() {}

func (a *app) build(context.Context, *store.Store, buildInput, cid.Cid) (cid.Cid, error) {
	return cid.Undef, errNotLinux()
}

func (a *app) buildBase(context.Context, *store.Store, baseOptions) (cid.Cid, error) {
	return cid.Undef, errNotLinux()
}

func errNotLinux() error {
	return cli.Errorf(api.ExitFailed, "packs are built on Linux: the build runs in a Linux sandbox").
		Hint("build on a Linux machine, then here: form pack import FILE.car, or form ship CID")
}
