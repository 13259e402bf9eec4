package guest

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
)

// processes starts children and reaps everything: as process 1 the agent
// inherits every orphan, and a reaper beside os/exec would steal each other's
// exit statuses. So nothing in the agent uses os/exec.
type processes struct {
	mu      sync.Mutex
	waiting map[int]chan syscall.WaitStatus
}

func newProcesses() *processes { return &processes{waiting: map[int]chan syscall.WaitStatus{}} }

// run reaps until ctx ends.
func (p *processes) run(ctx context.Context) {
	sigs := make(chan os.Signal, 1)
	signal.Notify(sigs, syscall.SIGCHLD)
	defer signal.Stop(sigs)
	for {
		p.reap()
		select {
		case <-ctx.Done():
			return
		case <-sigs:
		}
	}
}

func (p *processes) reap() {
	for {
		// The lock is held from fork to registration (see start), so a status
		// collected here always finds its owner.
		p.mu.Lock()
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG, nil)
		if err == syscall.EINTR {
			p.mu.Unlock()
			continue
		}
		if err != nil || pid <= 0 {
			p.mu.Unlock()
			return
		}
		if ch, ok := p.waiting[pid]; ok && (status.Exited() || status.Signaled()) {
			delete(p.waiting, pid)
			ch <- status
		}
		p.mu.Unlock()
	}
}

// command describes a child.
type command struct {
	argv []string
	env  []string
	dir  string
	as   account
	// files are the child's descriptors 0, 1, 2 and up.
	files []*os.File
	// tty makes descriptor 0 the controlling terminal.
	tty bool
}

// start runs c in a session of its own. The channel delivers the exit status
// once.
func (p *processes) start(c command) (pid int, exited <-chan syscall.WaitStatus, err error) {
	path, err := lookPath(c.argv[0], c.env, c.dir)
	if err != nil {
		return 0, nil, err
	}
	fds := make([]uintptr, len(c.files))
	for i, f := range c.files {
		fds[i] = f.Fd()
	}
	groups := make([]uint32, len(c.as.Groups))
	for i, g := range c.as.Groups {
		groups[i] = uint32(g)
	}
	attr := &syscall.ProcAttr{
		Dir: c.dir, Env: c.env, Files: fds,
		Sys: &syscall.SysProcAttr{
			Setsid: true, Setctty: c.tty, Ctty: 0,
			Credential: &syscall.Credential{Uid: uint32(c.as.UID), Gid: uint32(c.as.GID), Groups: groups},
		},
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	pid, err = syscall.ForkExec(path, c.argv, attr)
	if err != nil {
		return 0, nil, fmt.Errorf("start %s: %w", c.argv[0], err)
	}
	ch := make(chan syscall.WaitStatus, 1)
	p.waiting[pid] = ch
	return pid, ch, nil
}

// lookPath finds an executable as a shell would, by the PATH in env.
func lookPath(name string, env []string, dir string) (string, error) {
	if strings.ContainsRune(name, '/') {
		return name, nil
	}
	path := defaultPath
	for _, kv := range env {
		if v, ok := strings.CutPrefix(kv, "PATH="); ok {
			path = v
		}
	}
	for _, d := range filepath.SplitList(path) {
		if !filepath.IsAbs(d) {
			d = filepath.Join(dir, d)
		}
		file := filepath.Join(d, name)
		if info, err := os.Stat(file); err == nil && !info.IsDir() && info.Mode()&0o111 != 0 {
			return file, nil
		}
	}
	return "", fmt.Errorf("%s: not found in PATH (%s)", name, path)
}

// exitCode is the shell's convention: 128 + signal for a signal.
func exitCode(s syscall.WaitStatus) int {
	if s.Signaled() {
		return 128 + int(s.Signal())
	}
	return s.ExitStatus()
}
