//go:build e2e

package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// nobodyID is the user and group of nobody.
const nobodyID = 65534

// nobody is the same owner on another machine, without rights: with a home, a device
// and a copy of form of their own, and of what the test may do nothing. A test that is
// not run by root has no rights to drop.
func (f *fleet) nobody(t *testing.T, u user) user {
	n := u
	n.home = f.home() + "-nobody"
	n.form = filepath.Join(n.home, "form")
	n.extra = append(slices.Clone(u.extra), "HOME="+n.home, "XDG_RUNTIME_DIR="+filepath.Join(n.home, "run"))
	kit := filepath.Join(".config", "form")
	if err := os.MkdirAll(filepath.Join(n.home, kit), 0o700); err != nil {
		t.Fatal(err)
	}
	for from, to := range map[string]string{
		u.form: n.form,
		filepath.Join(u.home, kit, "config.toml"): filepath.Join(n.home, kit, "config.toml"),
		filepath.Join(u.home, kit, "key.age"):     filepath.Join(n.home, kit, "key.age"),
	} {
		if out, err := exec.Command("cp", "-p", from, to).CombinedOutput(); err != nil {
			t.Fatalf("cp: %v: %s", err, out)
		}
	}
	if os.Geteuid() != 0 {
		return n
	}
	id := strconv.Itoa(nobodyID)
	n.drop = []string{"setpriv", "--reuid=" + id, "--regid=" + id, "--clear-groups", "--no-new-privs", "--inh-caps=-all", "--ambient-caps=-all", "--bounding-set=-all"}
	if out, err := exec.Command("chown", "-R", id+":"+id, n.home).CombinedOutput(); err != nil {
		t.Fatalf("chown: %v: %s", err, out)
	}
	return n
}

// withoutRights shows that what a session over the mesh consists of on the user's
// machine has no rights, and is served by nothing there but by itself.
func (f *fleet) withoutRights(t *testing.T, u user, to string) {
	cmd := u.command(t.Context(), u.form, "ssh", "--via", "mesh", to, "--", "cat")
	var talk strings.Builder
	cmd.Stderr = &talk
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(in, "there\n"); err != nil {
		t.Error(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "there\n" {
		t.Errorf("the session says %q, %v", line, err)
	}
	// The session stands: form ssh, ssh, form proxy and the agent are there.
	own := (&member{f: f, dir: u.home}).processes("")
	programs := map[string]int{}
	for _, pid := range own {
		program, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
		if err != nil {
			t.Error(err)
		}
		programs[filepath.Base(program)]++
		hasNoRights(t, pid, u)
	}
	if programs["form"] != 3 || programs["ssh"] != 1 {
		t.Errorf("a session consists of %v", programs)
	}
	if err := servedBy(own); err != nil {
		t.Error(err)
	}
	t.Logf("a session of %v without rights", programs)
	if err := errors.Join(in.Close(), cmd.Wait()); err != nil {
		t.Errorf("the session ends with %v\n%s", err, &talk)
	}
}

// hasNoRights looks at a process's user, its capabilities and whether it has made an
// interface.
func hasNoRights(t *testing.T, pid int, u user) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Error(err)
	}
	id := strconv.Itoa(os.Geteuid())
	want := map[string]string{"CapInh": "0000000000000000", "CapPrm": "0000000000000000", "CapEff": "0000000000000000", "CapAmb": "0000000000000000"}
	if len(u.drop) > 0 { // else these are as with everybody who has no rights
		id = strconv.Itoa(nobodyID)
		want["CapBnd"], want["NoNewPrivs"], want["Groups"] = "0000000000000000", "1", ""
	}
	want["Uid"] = strings.Join([]string{id, id, id, id}, "\t")
	for line := range strings.Lines(string(b)) {
		key, value, _ := strings.Cut(line, ":")
		if w, ok := want[key]; ok && strings.TrimSpace(value) == w {
			delete(want, key)
		}
	}
	if len(want) > 0 {
		t.Errorf("process %d is not as %v:\n%s", pid, want, b)
	}
	if opens(strconv.Itoa(pid), "/dev/net/tun") {
		t.Errorf("process %d has an interface", pid)
	}
}

var pidOf = regexp.MustCompile(`pid=(\d+)`)

// servedBy is an error when a process is connected by a unix socket to one that is not
// among them: to a daemon.
func servedBy(own []int) error {
	out, err := exec.Command("ss", "-xpH").Output()
	if err != nil {
		return fmt.Errorf("ss: %w", err)
	}
	type socket struct {
		peer string
		pids []int
	}
	sockets := map[string]socket{} // by inode
	for line := range strings.Lines(string(out)) {
		// TYPE STATE RECV-Q SEND-Q PATH INODE PATH INODE USERS
		w := strings.Fields(line)
		if len(w) < 8 {
			return fmt.Errorf("ss says %q", line)
		}
		s := socket{peer: w[7]}
		for _, m := range pidOf.FindAllStringSubmatch(strings.Join(w[8:], " "), -1) {
			pid, err := strconv.Atoi(m[1])
			if err != nil {
				return err
			}
			s.pids = append(s.pids, pid)
		}
		sockets[w[5]] = s
	}
	mine := func(pid int) bool { return slices.Contains(own, pid) }
	within := 0
	for _, s := range sockets {
		if !slices.ContainsFunc(s.pids, mine) || s.peer == "0" {
			continue
		}
		if !slices.ContainsFunc(sockets[s.peer].pids, mine) {
			return fmt.Errorf("processes %v are served by %v\n%s", s.pids, sockets[s.peer].pids, out)
		}
		within++
	}
	if within == 0 {
		return fmt.Errorf("not even the agent is seen:\n%s", out)
	}
	return nil
}
