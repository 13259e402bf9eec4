//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/ipfs/go-cid"

	"github.com/formthefog/formation/cmd/form/internal/cli"
	"github.com/formthefog/formation/cmd/internal/api"
	"github.com/formthefog/formation/fogvm/base"
	"github.com/formthefog/formation/fogvm/build"
	"github.com/formthefog/formation/store"
	"github.com/formthefog/formation/store/formfile"
)

// sandboxMain does not return if this process is the inside of a build step.
func sandboxMain() { build.SandboxMain() }

// build executes a Formfile. The base is complete in s.
func (a *app) build(ctx context.Context, s *store.Store, in buildInput, baseID cid.Cid) (cid.Cid, error) {
	key, err := a.key()
	if err != nil {
		return cid.Undef, err
	}
	rel, err := filepath.Rel(in.dir, in.formfile)
	if err != nil {
		rel = in.formfile // outside the context: nothing there to leave out
	}
	task := a.p.Start("building " + in.file.Name)
	defer task.Done()
	res, err := build.Build(ctx, build.Options{
		Context: in.dir, File: in.file, Formfile: rel, Store: s, Base: baseID,
		CacheDir: filepath.Join(a.dir().Cache, "build"), NoCache: in.noCache, Key: key,
		Reporter: build.TextReporter(a.p.Talk()), Logger: a.logger(),
	})
	task.Done()
	if err != nil {
		return cid.Undef, buildError(ctx, err)
	}
	for _, w := range res.Warnings {
		if !slices.ContainsFunc(in.file.Warnings, func(f *formfile.Warning) bool { return f.String() == w }) {
			a.p.Raw(w) // those of the Formfile have been said
		}
	}
	a.p.Note("built %s: %s (%d cached), %s", in.file.Name, count(res.Steps, "step"), res.CachedSteps, res.Duration.Round(1e7))
	return res.CID, nil
}

// buildError adds the exit code and what to do next.
func buildError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	var step *build.StepError
	var context *build.ContextError
	switch {
	case errors.As(err, &context):
		return cli.Errorf(api.ExitUsage, "%w", err).Hint("paths are relative to the folder that is built, and cannot leave it")
	case errors.As(err, &step):
		text := step.Error()
		if t := strings.TrimSpace(step.Tail); t != "" {
			text += "\n  | " + strings.ReplaceAll(t, "\n", "\n  | ")
		}
		return cli.Errorf(api.ExitFailed, "%s", text).Hint("the steps before it are cached: correct it and build again")
	case errors.Is(err, build.ErrUnsupported):
		return cli.Errorf(api.ExitFailed, "%w", err).
			Hint("build on another machine and ship from there, or: form pack export, form pack import")
	}
	return err
}

// buildBase makes a base from the Debian archive.
func (a *app) buildBase(ctx context.Context, s *store.Store, o baseOptions) (id cid.Cid, err error) {
	key, err := a.key()
	if err != nil {
		return cid.Undef, err
	}
	cache := a.dir().Cache
	if err := os.MkdirAll(cache, 0o700); err != nil {
		return cid.Undef, fmt.Errorf("base: %w", err)
	}
	task := a.p.Start("building base " + o.name)
	defer task.Done()
	id, _, err = base.Build(ctx, base.Options{
		Name: o.name, Suite: o.suite, Arch: runtime.GOARCH, Mirror: o.mirror, WorkDir: cache, Store: s, Key: key, Out: a.p.Talk(),
	})
	if err != nil && ctx.Err() != nil {
		return cid.Undef, ctx.Err()
	}
	return id, err
}
