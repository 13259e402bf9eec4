package fogvm

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/formthefog/formation/fogvm/guest"
)

// TestInsideTheGuest asks a real guest what it sees.
func TestInsideTheGuest(t *testing.T) {
	r := qemuRig(t)
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(private)
	if err != nil {
		t.Fatal(err)
	}
	r.vm.Guest.SSHKeys = []string{string(ssh.MarshalAuthorizedKey(signer.PublicKey()))}
	r.vm.Guest.Env = append(r.vm.Guest.Env, guest.EnvVar{Key: "COLOR", Value: `#fff "x" \y`})
	r.vm.AwaitSecrets, r.vm.Secrets = true, []guest.Secret{{Name: "DB", Value: []byte(hunterValue), Env: true}, {Name: "tls.key", Value: []byte("a\nb\n")}}
	r.vm.MemoryBytes = 640 << 20
	m := r.manage(t)
	m.sync(t, r.vm)
	status := m.await(t, r, "web-0", "ready", ready)

	for _, c := range []struct{ name, script, want string }{
		{"vcpus", "nproc", "2"},
		{"memory blocks", `size=$(cat /sys/devices/system/memory/block_size_bytes); echo $(( $(grep -l online /sys/devices/system/memory/memory*/state | wc -l) * 0x$size ))`, strconv.Itoa(640 << 20)},
		{"disk", `for d in /sys/block/vd*; do [ "$(cat $d/serial)" = disk ] && echo $(( $(cat $d/size) * 512 )); done; true`, strconv.Itoa(1 << 30)},
		{"hostname", "hostname; getent hosts web | awk '{print $1}'", "web\n127.0.1.1"},
		{"root", "grep ' / ' /proc/mounts | cut -d' ' -f3", "overlay"},
		{"user", "id bigdog", "uid=1000(bigdog) gid=1000(bigdog) groups=1000(bigdog),27(sudo)"},
		{"home", "stat -c '%U %a' /home/bigdog; ls -A /home/bigdog | grep -c bashrc", "bigdog 755\n1"},
		{"environment", "echo $GREETING", "hello 'fog'"},
		{"entrypoint environment", `for p in /proc/[0-9]*; do [ "$(cat $p/comm 2>/dev/null)" = python3 ] && tr '\0' '\n' <$p/environ | grep -E '^(GREETING|FORMATION_NAME|FORMATION_SLOT)=' | sort; done; true`, "FORMATION_NAME=web\nFORMATION_SLOT=0\nGREETING=hello 'fog'"},
		{"secrets", `cd /run/secrets && stat -c '%n %U %a' * && cat DB && printf x && cat tls.key; grep -c ' /run ' /proc/mounts; ls /run/secrets -A | wc -l`, "DB root 400\ntls.key root 400\n" + hunterValue + "xa\nb\n1\n2"},
		{"others read no secret", `setpriv --reuid 1000 --clear-groups cat /run/secrets/DB 2>&1 | grep -c denied`, "1"},
		{"secret in the entrypoint's environment", `for p in /proc/[0-9]*; do [ "$(cat $p/comm 2>/dev/null)" = python3 ] && tr '\0' '\n' <$p/environ | grep -E '^(DB|tls)'; done; true`, "DB=" + hunterValue},
		{"secret in no other environment", `echo "$DB"; cat /etc/environment /etc/profile.d/00-formation.sh | grep -c DB; true`, "0"},
		{"secret on no disk", "sync; grep -rl " + hunterValue[:8] + " /run/formation/disk/upper /etc /var | wc -l", "0"},
		{"dns server", "cat /etc/resolv.conf", "nameserver 192.168.127.1"},
		{"reaches nothing near the host", `python3 -c 'import socket
for a in "192.168.127.1", "169.254.169.254", "192.168.1.1", "10.128.0.53":
    s = socket.socket(); s.settimeout(30); print(s.connect_ex((a, 3002)), end=" ")'`, "111 111 111 111"}, // ECONNREFUSED
		{"no zombies", "sh -c '(sleep 0.1 &) ; true'; sleep 0.5; grep -l '^State:.Z' /proc/[0-9]*/status 2>/dev/null | wc -l", "0"},
		{"key is not in the root", "grep -rl 'PRIVATE KEY' /run/formation/disk/upper | wc -l", "0"},
	} {
		out, code := m.exec(t, "web-0", guest.ExecRequest{Argv: []string{"/bin/sh", "-c", c.script}})
		if code != 0 || strings.TrimSpace(out) != c.want {
			t.Errorf("%s: code %d, got %q, want %q", c.name, code, strings.TrimSpace(out), c.want)
		}
	}
	t.Run("exec as a user", func(t *testing.T) {
		out, code := m.exec(t, "web-0", guest.ExecRequest{Argv: []string{"sh", "-c", "id -un; pwd; echo $BONE; exit 7"}, User: "bigdog"})
		if code != 7 || out != "bigdog\n/home/bigdog\ntwo words\n" {
			t.Errorf("code %d, got %q", code, out)
		}
	})
	t.Run("exec with a terminal", func(t *testing.T) {
		out, code := m.exec(t, "web-0", guest.ExecRequest{Argv: []string{"sh", "-c", "tty; stty size 2>/dev/null || true"}, TTY: true, Size: guest.WindowSize{Rows: 33, Cols: 99}})
		if code != 0 || !strings.Contains(out, "/dev/pts/") || !strings.Contains(out, "33 99") {
			t.Errorf("code %d, got %q", code, out)
		}
	})
	t.Run("much output", func(t *testing.T) {
		out, code := m.exec(t, "web-0", guest.ExecRequest{Argv: []string{"sh", "-c", "head -c 3000000 /dev/zero | tr '\\0' x"}})
		if code != 0 || len(out) != 3000000 {
			t.Errorf("code %d, %d bytes", code, len(out))
		}
	})
	t.Run("unknown command", func(t *testing.T) {
		client, server := net.Pipe()
		go m.Exec(context.Background(), "web-0", guest.ExecRequest{Argv: []string{"no-such-thing"}}, server)
		_, err := guest.RunExec(context.Background(), client, guest.ExecIO{Stdout: io.Discard, Stderr: io.Discard})
		if err == nil || !strings.Contains(err.Error(), "no-such-thing") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("ssh", func(t *testing.T) {
		for user, want := range map[string]string{"bigdog": "uid=1000(bigdog) gid=1000(bigdog) groups=1000(bigdog),27(sudo)\nhello 'fog'\ntwo words\n#fff \"x\" \\y\n", "root": ""} {
			out, err := sshRun(m, "web-0", user, signer, status.SSHHostKey, `id; echo "$GREETING"; echo "$BONE"; printf '%s\n' "$COLOR"`)
			if want == "" {
				if err == nil {
					t.Errorf("%s logged in", user)
				}
				continue
			}
			if err != nil || out != want {
				t.Errorf("%s: %v, got %q", user, err, out)
			}
		}
	})
	t.Run("a refused port says so", func(t *testing.T) {
		_, err := m.Dial(context.Background(), "web-0", 81)
		if err == nil || !strings.Contains(err.Error(), "refused") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("another key, without a reboot", func(t *testing.T) {
		_, other, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		second, err := ssh.NewSignerFromKey(other)
		if err != nil {
			t.Fatal(err)
		}
		r.vm.Guest.SSHKeys = []string{string(ssh.MarshalAuthorizedKey(second.PublicKey()))}
		m.sync(t, r.vm)
		eventually(t, time.Minute, "login with the new key", func() bool {
			_, err := sshRun(m, "web-0", "bigdog", second, status.SSHHostKey, "true")
			return err == nil
		})
		if _, err := sshRun(m, "web-0", "bigdog", signer, status.SSHHostKey, "true"); err == nil {
			t.Error("the old key still logs in")
		}
	})
	t.Run("another secret, without a reboot", func(t *testing.T) {
		r.vm.Secrets = []guest.Secret{{Name: "DB", Value: []byte("new"), Env: true}}
		m.sync(t, r.vm)
		eventually(t, time.Minute, "the new secret", func() bool {
			out, _ := m.exec(t, "web-0", guest.ExecRequest{Argv: []string{"sh", "-c", "cat /run/secrets/DB; ls -A /run/secrets"}})
			return out == "newDB\n"
		})
	})
	t.Run("secrets are in no file on the host", func(t *testing.T) {
		for _, name := range []string{specFile, stateFile, shimLog, consoleLog, appLog} {
			b, err := os.ReadFile(filepath.Join(r.cfg.Dir, "web-0", name))
			if err != nil {
				t.Fatal(err)
			}
			if bytes.Contains(b, []byte(hunterValue)) {
				t.Errorf("one is in %s", name)
			}
		}
		s, _ := m.status("web-0")
		for _, pid := range []int{s.PID, s.ShimPID} {
			b, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", pid))
			if err != nil || !regexp.MustCompile(`Max core file size +0 +0`).Match(b) {
				t.Errorf("process %d may leave a core file: %v", pid, err)
			}
			b, err = os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
			if err != nil || bytes.Contains(b, []byte(hunterValue)) {
				t.Errorf("one is in the arguments of process %d: %v", pid, err)
			}
		}
	})
	t.Run("reboot from inside", func(t *testing.T) {
		m.exec(t, "web-0", guest.ExecRequest{Argv: []string{"sh", "-c", "touch /kept && sync"}})
		for _, how := range []string{
			"kill -INT 1",                       // what ctrl-alt-del does: in order
			"sync; echo b >/proc/sysrq-trigger", // at once
		} {
			before, _ := m.status("web-0")
			go m.Exec(context.Background(), "web-0", guest.ExecRequest{Argv: []string{"sh", "-c", how}}, discardConn(t))
			after := m.await(t, r, "web-0", "ready after "+how, func(s Status) bool { return ready(s) && s.PID != before.PID })
			if after.ShimPID != before.ShimPID {
				t.Error("the shim changed")
			}
			if out, _ := m.exec(t, "web-0", guest.ExecRequest{Argv: []string{"ls", "/kept"}}); strings.TrimSpace(out) != "/kept" {
				t.Errorf("disk not kept: %q", out)
			}
			if out, _ := m.exec(t, "web-0", guest.ExecRequest{Argv: []string{"cat", "/run/secrets/DB"}}); out != "new" {
				t.Errorf("the secret after a reboot: %q", out)
			}
		}
	})
	m.sync(t)
	eventually(t, r.patience, "VM gone", func() bool { return len(m.List()) == 0 })
}

// hunterValue is a secret that is looked for where it must not be.
const hunterValue = "hunter2-9f1c-4e77"

func discardConn(t testing.TB) net.Conn {
	a, b := net.Pipe()
	go io.Copy(io.Discard, a)
	t.Cleanup(func() { a.Close() })
	return b
}

func sshRun(m *managed, id, user string, key ssh.Signer, hostKey, command string) (string, error) {
	want, _, _, _, err := ssh.ParseAuthorizedKey([]byte(hostKey))
	if err != nil {
		return "", fmt.Errorf("host key %q: %w", hostKey, err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	conn, err := m.Dial(ctx, id, 22)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	c, chans, reqs, err := ssh.NewClientConn(conn, "guest", &ssh.ClientConfig{User: user,
		Auth: []ssh.AuthMethod{ssh.PublicKeys(key)}, HostKeyCallback: ssh.FixedHostKey(want)})
	if err != nil {
		return "", err
	}
	client := ssh.NewClient(c, chans, reqs)
	defer client.Close()
	session, err := client.NewSession()
	if err != nil {
		return "", err
	}
	out, err := session.Output(command)
	return string(out), err
}

// TestKill9 kills each process of a real VM and looks at what follows.
func TestKill9(t *testing.T) {
	r := qemuRig(t)
	m := r.manage(t)
	m.sync(t, r.vm)
	first := m.await(t, r, "web-0", "ready", ready)
	gone := func(pid int) bool { return syscall.Kill(pid, 0) == syscall.ESRCH }

	t.Run("QEMU is confined", func(t *testing.T) {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", first.PID))
		if err != nil {
			t.Fatal(err)
		}
		fields := map[string][]string{}
		for line := range strings.SplitSeq(string(data), "\n") {
			name, value, _ := strings.Cut(line, ":")
			fields[name] = strings.Fields(value)
		}
		if os.Geteuid() == 0 {
			for _, uid := range fields["Uid"] {
				if n, err := strconv.Atoi(uid); err != nil || n < firstVMUser {
					t.Errorf("runs as %v", fields["Uid"])
				}
			}
		}
		if fields["Seccomp"][0] != "2" || fields["CapEff"][0] != "0000000000000000" {
			t.Errorf("seccomp %v, capabilities %v", fields["Seccomp"], fields["CapEff"])
		}
		if groups, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", first.PID)); err != nil || !strings.Contains(string(groups), "formation-") {
			t.Logf("no cgroup of its own (best effort): %s %v", groups, err)
		}
	})
	t.Run("the shim: QEMU dies with it, the VM comes back", func(t *testing.T) {
		kill(t, first.ShimPID)
		eventually(t, 10*time.Second, "QEMU gone", func() bool { return gone(first.PID) })
		m.await(t, r, "web-0", "seen as failed or relaunched", func(s Status) bool { return s.PID != first.PID })
		m.await(t, r, "web-0", "ready again", func(s Status) bool { return ready(s) && s.PID != first.PID })
	})
	t.Run("QEMU: the reason says so, the VM comes back", func(t *testing.T) {
		before, _ := m.status("web-0")
		kill(t, before.PID)
		s := m.await(t, r, "web-0", "failed", func(s Status) bool { return s.Phase == Failed })
		if !strings.Contains(s.Reason, "killed") {
			t.Errorf("reason %q", s.Reason)
		}
		m.await(t, r, "web-0", "ready again", func(s Status) bool { return ready(s) && s.PID != before.PID })
	})
	t.Run("everything: a new Manager starts from the disk", func(t *testing.T) {
		before, _ := m.status("web-0")
		m.end(t)
		kill(t, before.ShimPID)
		kill(t, before.PID)
		eventually(t, 10*time.Second, "both gone", func() bool { return gone(before.PID) && gone(before.ShimPID) })
		again := r.manage(t)
		if s, _ := again.status("web-0"); s.Phase != Stopped || s.PID != 0 {
			t.Errorf("stale status: %+v", s)
		}
		if _, err := os.Stat(filepath.Join(r.cfg.Dir, "web-0", shimSocket)); !os.IsNotExist(err) {
			t.Errorf("stale socket: %v", err)
		}
		again.sync(t, r.vm)
		s := again.await(t, r, "web-0", "ready", ready)
		if s.SSHHostKey != first.SSHHostKey {
			t.Error("the disk was not kept")
		}
		again.end(t)
	})
	t.Run("the run directory: the VM ends by itself", func(t *testing.T) {
		if err := os.RemoveAll(filepath.Join(r.cfg.Dir, "web-0")); err != nil {
			t.Fatal(err)
		}
		eventually(t, time.Minute, "no process left", func() bool { return len(processesNaming(t, r.cfg.Dir)) == 0 })
	})
	if left, _ := filepath.Glob("/sys/fs/cgroup/*/formation-" + cgroupName(filepath.Join(r.cfg.Dir, "web-0"))); len(left) > 0 {
		t.Errorf("cgroups left: %v", left)
	}
}

func kill(t testing.TB, pid int) {
	t.Helper()
	if pid <= 1 {
		t.Fatalf("bad pid %d", pid)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && err != syscall.ESRCH {
		t.Fatal(err)
	}
}

// TestReasons: what a user reads when a real guest does not work.
func TestReasons(t *testing.T) {
	r := qemuRig(t)
	m := r.manage(t)
	broken := func(id string, change func(*VM)) VM {
		vm := r.vm
		vm.ID, vm.VCPU, vm.Guest.Expose = id, 1, nil
		change(&vm)
		return vm
	}
	cases := []struct {
		vm    VM
		phase Phase
		want  string
	}{
		{broken("never-0", func(v *VM) {
			v.Guest.Restart = guest.RestartNever
			v.Guest.Entrypoint = []string{"sh", "-c", "echo no such table >&2; exit 2"}
		}), Failed, "entrypoint exited with code 2: no such table"},
		{broken("loop-0", func(v *VM) { v.Guest.Entrypoint = []string{"/no/such/program"} }), Unhealthy, "entrypoint could not start: start /no/such/program: no such file or directory"},
		{broken("kernel-0", func(v *VM) { v.Lowers = []string{r.vm.Kernel} }), Failed, "(squashfs) on /layers/00: invalid argument"},
	}
	for _, c := range cases {
		m.sync(t, c.vm)
		s := m.await(t, r, c.vm.ID, string(c.phase), func(s Status) bool { return s.Phase == c.phase && strings.Contains(s.Reason, c.want) })
		if s.Ready {
			t.Errorf("%s is ready: %+v", c.vm.ID, s)
		}
	}
	m.sync(t)
	eventually(t, r.patience, "VMs gone", func() bool { return len(m.List()) == 0 })
}
