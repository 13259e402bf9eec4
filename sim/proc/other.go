//go:build !linux

package proc

import "context"

// Run is refused here.
func Run(context.Context, Config) (*Result, error) { return nil, ErrUnable }
