package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func init() {
	register(measurement{
		Figures: []figure{
			{Name: "idle-formd-rss", Unit: "MiB", Target: 80, AtMost: true},
			{Name: "idle-formd-cpu", Unit: "%core", Target: 1, AtMost: true},
		},
		Run: measureIdle,
	})
}

const (
	idleSettle = 10 * time.Second // after the ready line: first DHT walks are not idleness
	idleWindow = 30 * time.Second
)

// measureIdle watches a formd that has nothing to do.
func measureIdle(ctx context.Context, e *env) (map[string]float64, error) {
	e.logf("watching an idle formd for %s", idleSettle+idleWindow)
	d, err := startFormd(ctx, e, filepath.Join(e.Dir, "node"))
	if err != nil {
		return nil, err
	}
	values, err := idleValues(ctx, d.cmd.Process.Pid)
	return values, errors.Join(err, d.stop())
}

func idleValues(ctx context.Context, pid int) (map[string]float64, error) {
	if err := pause(ctx, idleSettle); err != nil {
		return nil, err
	}
	before, err := cpuTime(pid)
	if err != nil {
		return nil, err
	}
	start := time.Now()
	if err := pause(ctx, idleWindow); err != nil {
		return nil, err
	}
	after, err := cpuTime(pid)
	if err != nil {
		return nil, err
	}
	rss, err := residentMiB(pid)
	if err != nil {
		return nil, err
	}
	return map[string]float64{
		"idle-formd-rss": rss,
		"idle-formd-cpu": 100 * (after - before).Seconds() / time.Since(start).Seconds(),
	}, nil
}

// pause is a measuring window, not a wait for something to have happened.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// formd is a daemon of a measurement.
type formd struct {
	cmd    *exec.Cmd
	socket string
	log    *os.File
}

// startFormd runs formd on loopback with dir as its data and waits for its ready
// line.
func startFormd(ctx context.Context, e *env, dir string, args ...string) (*formd, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	log, err := os.Create(dir + ".log")
	if err != nil {
		return nil, err
	}
	d := &formd{socket: dir + ".sock", log: log}
	d.cmd = exec.CommandContext(ctx, filepath.Join(e.Bin, "formd"), append([]string{
		"run", "--data", dir, "--api", "unix://" + d.socket,
		"--listen", "/ip4/127.0.0.1/tcp/0", "--listen", "/ip4/127.0.0.1/udp/0/quic-v1",
		"--web", "off", "--metrics", "off", "--no-mdns", "--no-portmap", "--mesh", "off",
	}, args...)...)
	d.cmd.Cancel = func() error { return d.cmd.Process.Signal(syscall.SIGTERM) }
	d.cmd.WaitDelay = 10 * time.Second
	d.cmd.Stderr = log
	out, err := d.cmd.StdoutPipe()
	if err != nil {
		return nil, errors.Join(err, log.Close())
	}
	if err := d.cmd.Start(); err != nil {
		return nil, errors.Join(err, log.Close())
	}
	ready := make(chan error, 1)
	go func() {
		line, err := bufio.NewReader(out).ReadString('\n')
		if err == nil && !strings.HasPrefix(line, "ready ") {
			err = fmt.Errorf("formd's first line is %q", line)
		}
		ready <- err
		_, _ = io.Copy(io.Discard, out)
	}()
	select {
	case err = <-ready:
	case <-time.After(time.Minute):
		err = errors.New("formd was not ready within a minute")
	}
	if err != nil {
		tail, _ := os.ReadFile(dir + ".log")
		return nil, errors.Join(fmt.Errorf("%w; its log:\n%s", err, tail), d.stop())
	}
	return d, nil
}

// stop ends it and waits. A formd that was told to end has not failed.
func (d *formd) stop() error {
	err := d.cmd.Process.Signal(syscall.SIGTERM)
	if waitErr := d.cmd.Wait(); waitErr != nil && d.cmd.ProcessState == nil {
		err = errors.Join(err, waitErr)
	}
	return errors.Join(err, d.log.Close())
}

// clockTicks is USER_HZ, the unit of /proc/PID/stat: 100 on every Linux that Go
// runs on.
const clockTicks = 100

// cpuTime is what a process has used so far, user and system.
func cpuTime(pid int) (time.Duration, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The name in parentheses may hold anything; fields are counted behind it.
	_, rest, _ := strings.Cut(string(data), ") ")
	fields := strings.Fields(rest)
	if len(fields) < 13 {
		return 0, fmt.Errorf("/proc/%d/stat has %d fields", pid, len(fields))
	}
	var ticks int64
	for _, f := range fields[11:13] { // utime, stime: proc(5)
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0, err
		}
		ticks += n
	}
	return time.Duration(ticks) * (time.Second / clockTicks), nil
}

func residentMiB(pid int) (float64, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(data)) {
		if value, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kib, err := strconv.ParseFloat(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(value), "kB")), 64)
			return kib / 1024, err
		}
	}
	return 0, fmt.Errorf("process %d has no VmRSS", pid)
}
