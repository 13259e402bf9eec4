//go:build e2e

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/formthefog/formation/cmd/internal/api"
	"github.com/formthefog/formation/wg/wgtest"
)

// fleet is a swarm of real formd processes on loopback and one user of it, who
// has a home of their own and no daemon.
type fleet struct {
	t      *testing.T
	bin    string
	dir    string
	ticket string
	env    []string // of form
	nodes  []*member
}

// member is one formd.
type member struct {
	f    *fleet
	dir  string
	args []string
	peer string            // peer ID
	addr string            // multiaddr
	at   []string          // where it listens, once it has: a restart keeps its ports
	ns   *wgtest.Namespace // in which it runs; nil: this one
	cmd  *exec.Cmd
	gone chan struct{} // closed when the process has ended
}

// required is an environment variable that `make e2e` sets.
func required(t *testing.T, name string) string {
	v := os.Getenv(name)
	if v == "" {
		t.Fatalf("%s is not set: run make e2e", name)
	}
	return v
}

// newFleet starts n nodes with these flags. FORMATION_DRIVER=fake tries the test itself without
// virtual machines.
func newFleet(t *testing.T, n int, flags ...string) *fleet {
	f := emptyFleet(t)
	f.start(append([]string{"--accept", "any"}, flags...)...)
	f.ticket = strings.TrimSpace(f.as(f.nodes[0]).must("net", "invite"))
	for range n - 1 {
		f.start(append([]string{"--join", f.ticket, "--accept", "any"}, flags...)...)
	}
	return f
}

// emptyFleet has no nodes yet.
func emptyFleet(t *testing.T) *fleet {
	dir, err := os.MkdirTemp("", "form-e2e-") // a socket's path must be short
	if err == nil {
		err = os.Chmod(dir, 0o711) // a user without rights has a home in it
	}
	if err != nil {
		t.Fatal(err)
	}
	f := &fleet{t: t, bin: required(t, "FORMATION_BIN"), dir: dir}
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "FORM_") && !strings.HasPrefix(kv, "XDG_") && !strings.HasPrefix(kv, "HOME=") {
			f.env = append(f.env, kv)
		}
	}
	f.env = append(f.env, "HOME="+f.home(), "FORM_PASSWORD=correct-horse", "XDG_RUNTIME_DIR="+filepath.Join(dir, "run"))
	t.Cleanup(f.stop)
	return f
}

// start adds a node and waits until it is ready.
func (f *fleet) start(args ...string) *member {
	f.t.Helper()
	return f.startIn(nil, args...)
}

// startIn does so in a network namespace.
func (f *fleet) startIn(ns *wgtest.Namespace, args ...string) *member {
	f.t.Helper()
	m := &member{f: f, dir: filepath.Join(f.dir, "n"+strconv.Itoa(len(f.nodes)+1)), args: args, ns: ns}
	f.nodes = append(f.nodes, m)
	if err := os.MkdirAll(m.dir, 0o700); err != nil {
		f.t.Fatal(err)
	}
	m.run()
	return m
}

// run starts a node's formd, for the first time or again.
func (m *member) run() {
	t := m.f.t
	t.Helper()
	args := []string{"run", "--data", filepath.Join(m.dir, "data"), "--api", "unix://" + m.socket(), "--web", "off",
		"--no-mdns", "--no-portmap", "--mesh", "off", "--stop-vms"}
	if len(m.at) == 0 {
		ip := "127.0.0.1"
		if m.ns != nil {
			ip = "0.0.0.0"
		}
		m.at = []string{"/ip4/" + ip + "/tcp/0", "/ip4/" + ip + "/udp/0/quic-v1"}
	}
	for _, a := range m.at {
		args = append(args, "--listen", a)
	}
	if d := os.Getenv("FORMATION_DRIVER"); d != "" {
		args = append(args, "--vm-driver", d)
	}
	argv := slices.Concat([]string{filepath.Join(m.f.bin, "formd")}, args, m.args)
	m.cmd = exec.Command(argv[0], argv[1:]...)
	if m.ns != nil { // ip becomes what it runs: the process is formd's
		m.cmd = m.ns.Command(context.Background(), argv...)
	}
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	log, err := os.OpenFile(filepath.Join(m.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	m.cmd.Stderr = log
	out, err := m.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := m.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	m.gone = make(chan struct{})
	ready := make(chan string, 1)
	go func() {
		defer close(m.gone)
		sc := bufio.NewScanner(out)
		for sc.Scan() {
			if strings.HasPrefix(sc.Text(), "ready ") {
				ready <- sc.Text()
			}
		}
		_ = m.cmd.Wait() // how it ended is the test's doing
	}()
	select {
	case line := <-ready:
		for _, w := range strings.Fields(line) {
			if v, ok := strings.CutPrefix(w, "peer="); ok {
				m.peer = v
			}
			if v, ok := strings.CutPrefix(w, "listen="); ok {
				m.at = nil
				for _, a := range strings.Split(v, ",") {
					m.at = append(m.at, strings.TrimSuffix(a, "/p2p/"+m.peer))
				}
				m.addr, _, _ = strings.Cut(v, ",")
			}
		}
	case <-m.gone:
		t.Fatalf("formd of %s ended before it was ready:\n%s", m.dir, m.tail())
	case <-time.After(2 * time.Minute):
		t.Fatalf("formd of %s is not ready:\n%s", m.dir, m.tail())
	}
}

func (m *member) socket() string { return filepath.Join(m.dir, "s") }

func (m *member) tail() string {
	b, err := os.ReadFile(filepath.Join(m.dir, "log"))
	if err != nil {
		return err.Error()
	}
	return string(b[max(0, len(b)-4000):])
}

// kill ends formd alone, at once.
func (m *member) kill() {
	m.f.t.Helper()
	if err := m.cmd.Process.Kill(); err != nil {
		m.f.t.Fatal(err)
	}
	<-m.gone
}

// crash ends everything of a node at once: formd, its shims and their QEMUs.
func (m *member) crash() {
	m.f.t.Helper()
	for _, pid := range m.processes("") {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			m.f.t.Fatalf("kill %d: %v", pid, err)
		}
	}
	<-m.gone
	m.f.eventually(time.Minute, "everything of a crashed node to end", func() error {
		if left := m.processes(""); len(left) > 0 {
			return fmt.Errorf("still there: %v", left)
		}
		return nil
	})
}

// processes are the running processes with word in their command line that have
// a file of this node's folder open, or name one: QEMU gets all its files as
// descriptors. Zombies have no command line.
func (m *member) processes(word string) (pids []int) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		m.f.t.Fatal(err)
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		// A process may end between any two of these.
		line, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if err != nil || len(line) == 0 || !bytes.Contains(line, []byte(word)) {
			continue
		}
		if bytes.Contains(line, []byte(m.dir+"/")) || opens(e.Name(), m.dir+"/") {
			pids = append(pids, pid)
		}
	}
	return pids
}

// opens says whether a process has a file below a folder open.
func opens(pid, dir string) bool {
	fds, err := filepath.Glob(filepath.Join("/proc", pid, "fd", "*"))
	if err != nil {
		return false
	}
	for _, fd := range fds {
		if to, err := os.Readlink(fd); err == nil && strings.HasPrefix(to, dir) {
			return true
		}
	}
	return false
}

// stop ends the swarm and shows that nothing is left of it.
func (f *fleet) stop() {
	f.endAgents()
	for _, m := range f.nodes {
		if m.cmd != nil && m.cmd.Process != nil {
			_ = m.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
		}
	}
	for _, m := range f.nodes {
		select {
		case <-m.gone:
		case <-time.After(time.Minute):
			f.t.Errorf("%s does not end:\n%s", m.dir, m.tail())
		}
		for _, pid := range m.processes("") {
			f.t.Errorf("%s leaves process %d behind", m.dir, pid)
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	if f.t.Failed() {
		for _, m := range f.nodes {
			f.t.Logf("%s (%s):\n%s", m.dir, m.peer, m.tail())
		}
		f.t.Logf("kept for a look: %s", f.dir)
		return
	}
	if err := os.RemoveAll(f.dir); err != nil {
		f.t.Error(err)
	}
}

// endAgents ends what form has started in the background.
func (f *fleet) endAgents() {
	agents := func() []int {
		var all []int
		for _, dir := range []string{f.home(), f.home() + "-nobody"} {
			all = append(all, (&member{f: f, dir: dir}).processes("agent")...)
		}
		return all
	}
	for _, pid := range agents() {
		_ = syscall.Kill(pid, syscall.SIGTERM) // it may have ended
	}
	f.eventually(time.Minute, "agents to end", func() error {
		if left := agents(); len(left) > 0 {
			return fmt.Errorf("%v run", left)
		}
		return nil
	})
}

func (f *fleet) home() string { return filepath.Join(f.dir, "home") }

// user is form as somebody calls it.
type user struct {
	f     *fleet
	home  string
	form  string   // the program
	drop  []string // what it is called by, to have fewer rights
	extra []string // environment
	stdin string
}

// as calls form with a node as the local daemon.
func (f *fleet) as(m *member) user {
	return f.user("FORM_API=unix://" + m.socket())
}

// via calls form without a daemon, straight to a peer.
func (f *fleet) via(m *member) user {
	return f.user("FORM_PEER="+m.addr, "FORM_TICKET="+f.ticket)
}

func (f *fleet) user(env ...string) user {
	return user{f: f, home: f.home(), form: filepath.Join(f.bin, "form"), extra: env}
}

func (u user) with(stdin string) user { u.stdin = stdin; return u }

// command is a program as the user runs it.
func (u user) command(ctx context.Context, args ...string) *exec.Cmd {
	argv := slices.Concat(u.drop, args)
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = slices.Concat(u.f.env, u.extra)
	return cmd
}

// run calls form and gives its streams and exit code.
func (u user) run(args ...string) (stdout, stderr string, code int) {
	u.f.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Minute)
	defer cancel()
	cmd := u.command(ctx, append([]string{u.form}, args...)...)
	var out, talk bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(u.stdin), &out, &talk
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		u.f.t.Fatalf("form %v: %v", args, err)
	}
	return out.String(), talk.String(), cmd.ProcessState.ExitCode()
}

// must calls form, and fails the test if it fails.
func (u user) must(args ...string) string {
	u.f.t.Helper()
	out, talk, code := u.run(args...)
	if code != 0 {
		u.f.t.Fatalf("form %s: exit %d\n%s%s", strings.Join(args, " "), code, out, talk)
	}
	return out
}

// last is the last line of an answer.
func last(s string) string {
	lines := strings.Split(strings.TrimRight(s, "\n"), "\n")
	return lines[len(lines)-1]
}

func (u user) instance(name string) (i api.Instance) {
	u.f.t.Helper()
	if err := json.Unmarshal([]byte(u.must("manage", "inspect", "--json", name)), &i); err != nil {
		u.f.t.Fatal(err)
	}
	return i
}

// eventually polls f until it is nil.
func (f *fleet) eventually(limit time.Duration, what string, check func() error) {
	f.t.Helper()
	begun := time.Now()
	for {
		err := check()
		if err == nil {
			f.t.Logf("%s: after %.1f s", what, time.Since(begun).Seconds())
			return
		}
		if time.Since(begun) > limit {
			f.t.Fatalf("%s: not after %s: %v", what, limit, err)
		}
		time.Sleep(250 * time.Millisecond) // the pause of the poll
	}
}

// memberOf is the node with a peer ID.
func (f *fleet) memberOf(peer string) *member {
	f.t.Helper()
	for _, m := range f.nodes {
		if m.peer == peer {
			return m
		}
	}
	f.t.Fatalf("no node %s", peer)
	return nil
}
