//go:build e2e

package main

import (
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/formthefog/formation/cmd/internal/api"
)

// bootTime bounds fetch and boot of a guest, emulated on a busy machine.
const bootTime = 6 * time.Minute

const request = "GET / HTTP/1.0\r\n\r\n"

// TestE2ELine is the whole line on real parts: a Formfile becomes replicated VMs
// on a swarm of peers, which outlive their machines, their builder and their
// shipper. The steps build on each other; the first that fails ends it.
func TestE2ELine(t *testing.T) {
	f := newFleet(t, 1)
	entry, site := f.ingress(t) // has built nothing
	f.start("--join", f.ticket, "--accept", "any")
	app := example(t)
	me := f.via(entry)
	var cid string
	step := func(name string, do func(t *testing.T)) {
		if !t.Run(name, func(s *testing.T) { f.t = s; do(s) }) {
			f.t = t
			t.FailNow()
		}
		f.t = t
	}
	step("kit and base", func(*testing.T) {
		me.must("kit", "init", "--yes", "--ticket", f.ticket)
		me.must("base", "import", required(t, "FORMATION_BASE"))
	})
	step("build", func(t *testing.T) {
		cid = last(me.must("pack", "build", app))
		if again := last(me.must("pack", "build", "--no-cache", app)); again != cid {
			t.Errorf("two builds of the same differ: %s, %s", cid, again)
		}
	})
	step("ship to a peer that did not build it", func(t *testing.T) {
		id := last(me.must("ship", cid, "--replicas", "2", "--env", "MODE=e2e", "--wait=all", "--timeout", "12m"))
		if i := me.instance(id); i.Name != "hello-server" || i.Pack != cid {
			t.Errorf("shipped %s with pack %s", i.Name, i.Pack)
		}
		if got := strings.TrimSpace(me.must("manage", "get", "status", cid)); got != "SUCCESS" {
			t.Errorf("status %q", got)
		}
	})
	step("both replicas answer", func(t *testing.T) { f.bothAnswer(t, me, nil) })
	step("ssh and guest facts", func(t *testing.T) {
		if virtual(t) {
			guestFacts(t, me)
		}
	})
	step("a guest knows its owner's names", func(t *testing.T) {
		if virtual(t) {
			f.namesInGuests(t, me)
		}
	})
	step("over the mesh", func(t *testing.T) {
		if virtual(t) {
			f.overTheMesh(t, me)
		}
	})
	step("replicas and a plain client are peers, their hosts carry ciphertext", func(t *testing.T) {
		if virtual(t) {
			f.meshed(t, me)
		}
	})
	step("the public comes in", func(t *testing.T) {
		if virtual(t) {
			site.answers(t, 2)
		}
	})
	step("a secret reaches the replicas", func(t *testing.T) {
		me.with(secretValue+"\n").must("secret", "set", "hello-server", "DB_PASSWORD", "--env")
		if out := me.must("secret", "ls", "hello-server", "--json"); !strings.Contains(out, `"DB_PASSWORD"`) || strings.Contains(out, secretValue) {
			t.Errorf("secret ls: %s", out)
		}
		f.haveSecret(t, me)
	})
	step("a killed formd re-adopts its VM", func(t *testing.T) { f.readopt(t, me) })
	step("a dead node's replica runs on a third", func(t *testing.T) { f.takeover(t, site) })
	step("the moved replica has the secret", func(t *testing.T) {
		f.haveSecret(t, f.via(f.nodes[0]))
		f.leaks(t)
	})
	step("the swarm holds the pack", func(t *testing.T) { f.holds(t, entry) })
	step("delete leaves nothing", func(t *testing.T) {
		f.via(f.nodes[0]).must("rm", "--yes", "hello-server")
		f.eventually(2*time.Minute, "all VMs to end", func() error {
			for _, m := range f.nodes {
				if left := m.processes("qemu-system"); len(left) > 0 {
					return fmt.Errorf("%s still runs %v", m.dir, left)
				}
			}
			return nil
		})
	})
}

// virtual says whether there are real VMs to look into.
func virtual(t *testing.T) bool {
	if os.Getenv("FORMATION_DRIVER") != "fake" {
		return true
	}
	t.Log("not checked: FORMATION_DRIVER=fake has no guest to look into")
	return false
}

// example is the README's application, with a variable to look for.
func example(t *testing.T) string {
	dir := t.TempDir()
	for _, name := range []string{"Formfile", "hello.py"} {
		b, err := os.ReadFile(filepath.Join("..", "..", "docs", "examples", "hello-server", name))
		if err != nil {
			t.Fatal(err)
		}
		text := string(b)
		if name == "Formfile" {
			text = strings.Replace(text, "EXPOSE 8080\n", "EXPOSE 8080 public\n", 1) + "\nENV GREETING=hallo\nINSTALL rsync\n"
		} else { // replicas have one name; each boot has another number
			text = strings.Replace(text, "{socket.gethostname()}", "{open('/proc/sys/kernel/random/boot_id').read().strip()}", 1)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// answers is nil when a replica answers HTTP through form proxy.
func (f *fleet) answers(u user, slot int) error {
	out, talk, code := u.with(request).run("proxy", fmt.Sprintf("hello-server/%d", slot), "8080")
	if code != 0 || !strings.Contains(out, " 200 ") || !strings.Contains(out, "hello from ") {
		return fmt.Errorf("replica %d: exit %d: %q %s", slot, code, out, talk)
	}
	return nil
}

// ready is the ready replicas by slot, those on other nodes than not.
func ready(i api.Instance, not *member) map[int]api.Replica {
	out := map[int]api.Replica{}
	for _, r := range i.Replicas {
		if r.Ready && (not == nil || r.Node.String() != not.peer) {
			out[r.Slot] = r
		}
	}
	return out
}

func (f *fleet) bothAnswer(t *testing.T, u user, not *member) {
	t.Helper()
	f.eventually(bootTime, "two ready replicas on two nodes", func() error {
		i := u.instance("hello-server")
		got := ready(i, not)
		if len(got) != 2 || got[0].Node == got[1].Node {
			return fmt.Errorf("%s %s: %d ready: %+v", i.Status, i.Reason, len(got), i.Replicas)
		}
		return nil
	})
	for slot := range 2 {
		f.eventually(30*time.Second, fmt.Sprintf("replica %d to answer", slot), func() error { return f.answers(u, slot) })
	}
}

// namesInGuests resolves names by the C library of both guests.
func (f *fleet) namesInGuests(t *testing.T, u user) {
	const name = "hello-server.dev.formation.cloud"
	for slot := range 2 {
		f.eventually(2*time.Minute, "names in the guest", func() error {
			var want []string
			for _, r := range u.instance("hello-server").Replicas {
				if r.Address == nil || r.Address6 == nil {
					return fmt.Errorf("replica %d has no address", r.Slot)
				}
				want = append(want, *r.Address, *r.Address6)
			}
			out, talk, code := u.run("ssh", fmt.Sprintf("bigdog@hello-server/%d", slot), "--",
				"getent ahosts "+name+" | cut -d' ' -f1 | sort -u; getent hosts "+want[0])
			lines := strings.Split(strings.TrimSpace(out), "\n")
			got := lines[:len(lines)-1]
			slices.Sort(got)
			slices.Sort(want)
			if code != 0 || !slices.Equal(got, want) || !strings.HasSuffix(lines[len(lines)-1], "."+name) {
				return fmt.Errorf("exit %d, %q, want %q\n%s", code, out, want, talk)
			}
			return nil
		})
	}
}

// guestFacts looks at a guest from inside, by stock OpenSSH.
func guestFacts(t *testing.T, u user) {
	for _, c := range []struct{ name, script, want string }{
		{"user", "id -un", "bigdog"},
		{"groups", "id -nG | tr ' ' '\\n' | grep -x sudo", "sudo"},
		{"cores", "nproc", "1"},
		{"memory", "cd /sys/devices/system/memory && n=0 && for b in memory*/online; do n=$((n + $(cat $b))); done && echo $((n * 0x$(cat block_size_bytes)))", "536870912"},
		{"disk", "cat /sys/block/vd*/size | grep -x 10485760", "10485760"},
		{"ENV", "echo $GREETING", "hallo"},
		{"--env", "echo $MODE", "e2e"},
		{"ENV of a login shell", "bash -lc 'echo $GREETING'", "hallo"},
		{"files", "ls /app", "hello.py"},
	} {
		out, talk, code := u.run("ssh", "bigdog@hello-server", "--", c.script)
		if got := strings.TrimSpace(out); code != 0 || got != c.want {
			t.Errorf("%s: %q gives %q, exit %d, want %q\n%s", c.name, c.script, got, code, c.want, talk)
		}
	}
	if out, talk, code := u.run("ssh", "bigdog@hello-server", "--", "id"); code != 0 || !strings.Contains(out, "(bigdog)") {
		t.Errorf("id: %q, exit %d\n%s", out, code, talk)
	}
	if out := u.must("ssh", "hello-server", "--", "id -un"); strings.TrimSpace(out) != "bigdog" {
		t.Errorf("the default user is %q, want the pack's first", out)
	}
	if _, _, code := u.run("ssh", "bigdog@hello-server/1", "--", "exit 7"); code != 7 {
		t.Errorf("ssh passes exit code %d on, want 7", code)
	}
	if out, talk, code := u.run("manage", "exec", "hello-server/0", "--", "sh", "-c", "cat /etc/hostname; exit 3"); code != 3 || out == "" {
		t.Errorf("exec: %q, exit %d, want 3\n%s", out, code, talk)
	}
}

// host is a node that runs a ready replica, and the replica.
func (f *fleet) host(u user, not ...*member) (*member, api.Replica) {
	f.t.Helper()
	for _, r := range ready(u.instance("hello-server"), nil) {
		if m := f.memberOf(r.Node.String()); !slices.Contains(not, m) {
			return m, r
		}
	}
	f.t.Fatal("no such replica")
	return nil, api.Replica{}
}

// readopt kills one formd alone: its VM lives on, and the next formd takes it
// back without a reboot.
func (f *fleet) readopt(t *testing.T, u user) {
	m, r := f.host(u, f.nodes[1]) // not the entry, which this test asks
	replica := fmt.Sprintf("hello-server/%d", r.Slot)
	boot := func() string {
		out, talk, code := u.run("manage", "exec", replica, "--", "cat", "/proc/sys/kernel/random/boot_id")
		if code != 0 {
			return "?" + talk
		}
		return strings.TrimSpace(out)
	}
	before, vms := boot(), m.processes("qemu-system")
	if virtual(t) && len(vms) != 1 {
		t.Fatalf("the node runs %d VMs, want 1", len(vms))
	}
	m.kill()
	if left := m.processes("qemu-system"); !slices.Equal(left, vms) {
		t.Fatalf("with formd killed the VMs are %v, were %v", left, vms)
	}
	m.run()
	f.eventually(2*time.Minute, "the replica to answer again", func() error { return f.answers(u, r.Slot) })
	if left := m.processes("qemu-system"); !slices.Equal(left, vms) {
		t.Errorf("after the restart the VMs are %v, were %v", left, vms)
	}
	if after := boot(); virtual(t) && after != before {
		t.Errorf("the VM was rebooted: boot %s, was %s", after, before)
	}
	f.bothAnswer(t, u, nil)
}

// takeover crashes a whole node: another runs its replica, and the node trims
// when it comes back. The public notices nothing.
func (f *fleet) takeover(t *testing.T, site *site) {
	entry := f.nodes[1]
	u := f.via(entry)
	dead, _ := f.host(u, entry)
	asked := site.ask(t)
	dead.crash()
	begun := time.Now()
	f.bothAnswer(t, u, dead)
	asked()
	t.Logf("the replica of the dead node answers elsewhere after %.1f s", time.Since(begun).Seconds())
	dead.run()
	f.eventually(5*time.Minute, "the returned node to trim", func() error {
		i := u.instance("hello-server")
		if n := len(i.Replicas); n != 2 {
			return fmt.Errorf("%d replicas: %+v", n, i.Replicas)
		}
		vms := 0
		for _, m := range f.nodes {
			vms += len(m.processes("qemu-system"))
		}
		if vms != 2 && os.Getenv("FORMATION_DRIVER") != "fake" {
			return fmt.Errorf("%d VMs run, want 2", vms)
		}
		return nil
	})
	f.bothAnswer(t, u, nil)
}

// holds shows that nothing depends on who built and shipped: the user's packs
// are gone and the node they were handed to is dead, and a machine that was not
// there yet still gets the pack.
func (f *fleet) holds(t *testing.T, builder *member) {
	if err := os.RemoveAll(filepath.Join(f.home(), ".local", "share", "form")); err != nil {
		t.Fatal(err)
	}
	builder.crash()
	fresh := f.start("--join", f.ticket, "--accept", "any")
	u := f.via(f.nodes[0])
	u.must("scale", "hello-server", "3")
	f.eventually(bootTime, "three ready replicas without the builder", func() error {
		i := u.instance("hello-server")
		got := ready(i, builder)
		if len(got) != 3 {
			return fmt.Errorf("%s %s: %+v", i.Status, i.Reason, i.Replicas)
		}
		return nil
	})
	if got := u.instance("hello-server"); !slices.ContainsFunc(got.Replicas, func(r api.Replica) bool { return r.Ready && r.Node.String() == fresh.peer }) {
		t.Errorf("the new machine runs no replica: %+v", got.Replicas)
	}
	for slot := range 3 {
		f.eventually(time.Minute, fmt.Sprintf("replica %d to answer", slot), func() error { return f.answers(u, slot) })
	}
}

// secretValue is looked for where it must not be.
const secretValue = "hunter2-9f1c-4e77"

// haveSecret waits until both replicas have the secret.
func (f *fleet) haveSecret(t *testing.T, u user) {
	t.Helper()
	if !virtual(t) {
		return
	}
	for slot := range 2 {
		f.eventually(2*time.Minute, fmt.Sprintf("replica %d to have the secret", slot), func() error {
			out, talk, code := u.run("manage", "exec", fmt.Sprintf("hello-server/%d", slot), "--", "cat", "/run/secrets/DB_PASSWORD")
			if code != 0 || out != secretValue {
				return fmt.Errorf("exit %d: %q %s", code, out, talk)
			}
			return nil
		})
	}
}

// leaks looks for the secret's value in what nodes have written and say.
func (f *fleet) leaks(t *testing.T) {
	t.Helper()
	const most = 64 << 20 // images and disks are larger; a guest's disk is looked at inside
	err := filepath.WalkDir(f.dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return ignoreGone(err)
		}
		info, err := d.Info()
		if err != nil || info.Size() > most {
			return ignoreGone(err)
		}
		b, err := os.ReadFile(path)
		for _, v := range []string{secretValue, base64.StdEncoding.EncodeToString([]byte(secretValue))} {
			if strings.Contains(string(b), v) {
				t.Errorf("the secret is in %s", path)
			}
		}
		return ignoreGone(err)
	})
	if err != nil {
		t.Error(err)
	}
	for _, m := range f.nodes {
		for _, pid := range m.processes(secretValue) {
			t.Errorf("the secret is in the arguments of process %d", pid)
		}
	}
}

// ignoreGone is for files that a running node may remove at any time.
func ignoreGone(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}
