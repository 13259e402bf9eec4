package guest

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"time"
)

// entrypoint keeps the pack's application running as its restart policy says.
type entrypoint struct {
	procs  *processes
	cmd    command
	env    func() []string // the environment of the next start; nil: cmd has it
	policy string
	out    io.Writer // entrypoint output, both streams; writes never fail
	tail   *ring     // for the end of the output in a reason
	report func(appEvent)
}

// run supervises until ctx ends; then it stops the application within grace
// and returns.
func (e *entrypoint) run(ctx context.Context, grace func() time.Duration) {
	failures, restarts := 0, 0
	for {
		started := time.Now()
		code, err := e.once(ctx, grace, func() { e.report(appEvent{running: true, since: started, restarts: restarts}) })
		if ctx.Err() != nil {
			return
		}
		if time.Since(started) >= steadyRun {
			failures = 0
		}
		failures++
		reason := fmt.Sprintf("entrypoint exited with code %d", code)
		if err != nil {
			reason, code = "entrypoint could not start: "+err.Error(), 127
		} else if code > 128 {
			reason = fmt.Sprintf("entrypoint was ended by signal %d", code-128)
		}
		if tail := strings.TrimSpace(lastLines(e.tail.last(), 3)); tail != "" && code != 0 {
			reason += ": " + tail
		}
		again, delay := afterExit(e.policy, code, failures)
		if !again {
			e.report(appEvent{restarts: restarts, done: code == 0, failed: code != 0, reason: reason})
			return
		}
		e.report(appEvent{restarts: restarts, reason: fmt.Sprintf("%s (next start in %s)", reason, delay)})
		select {
		case <-ctx.Done():
			return
		case <-time.After(delay):
		}
		restarts++
	}
}

// once runs the application to its end. When ctx ends it gets SIGTERM, and
// SIGKILL after the grace time; so do the processes it left behind.
func (e *entrypoint) once(ctx context.Context, grace func() time.Duration, started func()) (code int, err error) {
	r, w, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		r.Close()
		w.Close()
		return 0, err
	}
	cmd := e.cmd
	if e.env != nil {
		cmd.env = e.env()
	}
	cmd.files = []*os.File{null, w, w}
	pid, exited, err := e.procs.start(cmd)
	null.Close()
	w.Close()
	if err != nil {
		r.Close()
		return 0, err
	}
	copied := make(chan struct{})
	go func() {
		defer close(copied)
		// The pipe ends when the last holder of it does. Nothing it is copied
		// into may fail, or the application would block on it.
		_, _ = io.Copy(io.MultiWriter(e.out, e.tail), r)
	}()
	started()
	var status syscall.WaitStatus
	select {
	case status = <-exited:
	case <-ctx.Done():
		status = stopGroup(pid, exited, grace())
	}
	// Children that outlive the application may hold the pipe open: wait for
	// its last words only briefly.
	select {
	case <-copied:
	case <-time.After(200 * time.Millisecond):
	}
	killGroup(pid, syscall.SIGKILL)
	r.Close()
	<-copied
	return exitCode(status), nil
}

func stopGroup(pid int, exited <-chan syscall.WaitStatus, grace time.Duration) syscall.WaitStatus {
	killGroup(pid, syscall.SIGTERM)
	select {
	case s := <-exited:
		return s
	case <-time.After(grace):
		killGroup(pid, syscall.SIGKILL)
		return <-exited
	}
}

// killGroup signals a session's process group; a group that is gone is fine.
func killGroup(pid int, sig syscall.Signal) { _ = syscall.Kill(-pid, sig) }

func lastLines(s string, n int) string {
	all := strings.Split(strings.TrimRight(s, "\n"), "\n")
	return strings.Join(all[max(0, len(all)-n):], " | ")
}
