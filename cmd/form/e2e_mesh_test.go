//go:build e2e

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/formthefog/formation/cmd/form/internal/agent"
)

// overTheMesh reaches the guests end to end encrypted, with stock clients, by a user
// without rights from a machine without a daemon.
func (f *fleet) overTheMesh(t *testing.T, u user) {
	u = f.nobody(t, u)
	begun := time.Now()
	out, talk, code := u.with(request).run("proxy", "hello-server/0", "8080")
	if code != 0 || !strings.Contains(out, "hello from ") {
		t.Errorf("a first connection, by whichever way: exit %d: %q %s", code, out, talk)
	}
	t.Logf("a first connection by whichever way: %.1f s", time.Since(begun).Seconds())
	for slot := range 2 {
		f.eventually(2*time.Minute, fmt.Sprintf("replica %d to answer over the mesh", slot), func() error {
			out, talk, code := u.with(request).run("proxy", "--via", "mesh", fmt.Sprintf("hello-server/%d", slot), "8080")
			if code != 0 || !strings.Contains(out, "hello from ") {
				return fmt.Errorf("exit %d: %q %s", code, out, talk)
			}
			return nil
		})
	}
	i := u.instance("hello-server")
	r := i.Replicas[0]
	if r.Address == nil || r.Address6 == nil {
		t.Fatalf("replica %d has no address: %+v", r.Slot, r)
	}
	hosts := []string{"hello-server.dev.formation.cloud", *r.Address, *r.Address6}
	for _, host := range hosts {
		begun := time.Now()
		out, talk, code := u.run("ssh", "--via", "mesh", "bigdog@"+host, "--", "id -un")
		if code != 0 || strings.TrimSpace(out) != "bigdog" {
			t.Errorf("ssh %s: exit %d: %q %s", host, code, out, talk)
		}
		t.Logf("ssh %s: %.1f s", host, time.Since(begun).Seconds())
	}
	if _, err := os.Stat(filepath.Join(u.home, ".ssh", "known_hosts")); err == nil {
		t.Error("ssh has learned a host key")
	}
	f.withoutRights(t, u, "bigdog@"+hosts[0])
	f.copies(t, u)
	f.curls(t, u)
	var s agent.Status
	if err := json.Unmarshal([]byte(u.must("net", "agent", "status", "--json")), &s); err != nil || len(s.Peers) != 2 {
		t.Errorf("the agent: %+v, %v", s, err)
	}
	for _, p := range s.Peers {
		if p.Handshake == nil || p.Received == 0 {
			t.Errorf("replica %d is not reached by the agent: %+v", p.Slot, p)
		}
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.PID))
	if err != nil {
		t.Error(err)
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			t.Logf("the agent has %s resident", strings.TrimSpace(rest))
		}
	}
	u.must("net", "agent", "stop")
}

// copies has scp and rsync copy a file to a guest and back.
func (f *fleet) copies(t *testing.T, u user) {
	file := filepath.Join(u.home, "a-file")
	text := strings.Repeat("over the mesh\n", 10_000)
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	key := filepath.Join(u.home, ".config", "form", "ssh", "id_ed25519")
	proxy := "ProxyCommand=" + u.form + " proxy --quiet --via mesh %h %p"
	options := []string{"-o", proxy, "-i", key, "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR", "-o", "BatchMode=yes"}
	back := file + ".back"
	for _, args := range [][]string{
		append(append([]string{"scp", "-q"}, options...), file, "bigdog@hello-server:/tmp/copy"),
		append(append([]string{"scp", "-q"}, options...), "bigdog@hello-server:/tmp/copy", back),
	} {
		if out, err := u.command(t.Context(), args...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", args[0], err, out)
		}
	}
	if b, err := os.ReadFile(back); err != nil || string(b) != text {
		t.Errorf("scp brings %d bytes back, %v", len(b), err)
	}
	var shell []string // as rsync takes its -e apart
	for _, o := range options {
		shell = append(shell, "'"+o+"'")
	}
	if out, err := u.command(t.Context(), "rsync", "-e", "ssh "+strings.Join(shell, " "), "bigdog@hello-server:/tmp/copy", back+"2").CombinedOutput(); err != nil {
		t.Errorf("rsync: %v: %s", err, out)
	}
	if b, err := os.ReadFile(back + "2"); err != nil || string(b) != text {
		t.Errorf("rsync brings %d bytes back, %v", len(b), err)
	}
}

// curls has curl fetch the page through form forward.
func (f *fleet) curls(t *testing.T, u user) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	cmd := u.command(ctx, u.form, "forward", "--via", "mesh", "0:8080", "hello-server")
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var at string
	if _, err := fmt.Fscanln(out, &at); err != nil {
		t.Errorf("form forward says nothing: %v", err)
	}
	page, err := exec.CommandContext(ctx, "curl", "-sS", "--max-time", "60", "http://"+at+"/").CombinedOutput()
	if err != nil || !strings.Contains(string(page), "hello from ") {
		t.Errorf("curl %s: %v: %s", at, err, page)
	}
	cancel()
	_ = cmd.Wait() // it was interrupted
}
