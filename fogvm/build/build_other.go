//go:build !linux

package build

import (
	"context"
	"fmt"
	"runtime"
)

// Build needs Linux.
func Build(context.Context, Options) (*Result, error) {
	return nil, fmt.Errorf("%w: it runs %s, not Linux", ErrUnsupported, runtime.GOOS)
}

// SandboxMain does nothing where nothing is built.
func SandboxMain() {}
