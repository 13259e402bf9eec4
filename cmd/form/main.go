// Command form is the developer's tool: it builds Formpacks, ships them to a
// swarm and looks after what runs there.
//
// Exit codes: 0 done, 1 failed, 2 usage or invalid input, 3 not found, 4 daemon
// or peer unreachable, 5 not allowed, 6 timed out. `form ssh` and `form manage
// exec` end with the status of what they ran.
package main

import (
	"context"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/formthefog/formation/cmd/form/internal/cli"
)

func main() {
	sandboxMain()
	os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// run is form as a function of its arguments, streams and environment.
func run(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// A second signal ends form at once: the first restores the default.
	context.AfterFunc(ctx, stop)

	a := &app{
		p: cli.NewPrinter(stdout, stderr), stdin: stdin, stdout: stdout, stderr: stderr,
		getenv: os.Getenv,
	}
	root := newRoot(a)
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	return a.end(root.ExecuteContext(ctx))
}
