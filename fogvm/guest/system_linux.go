package guest

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// mountSystem adds the mounts a Debian system expects beside those of boot.
func mountSystem() error {
	for _, m := range []struct {
		kind, at string
		flags    uintptr
		options  string
	}{
		{"devpts", "/dev/pts", unix.MS_NOSUID | unix.MS_NOEXEC, "mode=620,gid=5,ptmxmode=666"},
		{"tmpfs", "/dev/shm", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777"},
		{"cgroup2", "/sys/fs/cgroup", unix.MS_NOSUID | unix.MS_NOEXEC | unix.MS_NODEV, ""},
	} {
		if err := mountAt(m.kind, m.at, m.kind, m.flags, m.options); err != nil {
			return err
		}
	}
	for link, target := range map[string]string{
		"/dev/fd": "/proc/self/fd", "/dev/stdin": "/proc/self/fd/0",
		"/dev/stdout": "/proc/self/fd/1", "/dev/stderr": "/proc/self/fd/2",
	} {
		if err := os.Symlink(target, link); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	if err := os.MkdirAll("/run/lock", 0o1777); err != nil {
		return err
	}
	return os.Chmod("/run/lock", 0o1777|os.ModeSticky)
}

// configureNetwork gives the one NIC its fixed address: the shim's network has
// exactly one guest, so there is nothing to negotiate.
func configureNetwork() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find lo: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("lo up: %w", err)
	}
	nic, err := netlink.LinkByName("eth0")
	if err != nil {
		return fmt.Errorf("find eth0: %w", err)
	}
	addr, err := netlink.ParseAddr(Address + "/24")
	if err != nil {
		return err
	}
	if err := netlink.AddrReplace(nic, addr); err != nil {
		return fmt.Errorf("set address: %w", err)
	}
	if err := netlink.LinkSetUp(nic); err != nil {
		return fmt.Errorf("eth0 up: %w", err)
	}
	gateway, err := netlink.ParseAddr(Gateway + "/32")
	if err != nil {
		return err
	}
	if err := netlink.RouteReplace(&netlink.Route{LinkIndex: nic.Attrs().Index, Gw: gateway.IP}); err != nil {
		return fmt.Errorf("default route: %w", err)
	}
	return writeFile("/etc/resolv.conf", "nameserver "+Gateway+"\n", 0o644)
}

// writeFile replaces path, also where it is a symlink.
func writeFile(path, content string, mode fs.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	tmp := path + ".form-new"
	if err := os.WriteFile(tmp, []byte(content), mode); err != nil {
		return err
	}
	if err := os.Chmod(tmp, mode); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

// syncFolder makes durable what was written to the file system of dir.
func syncFolder(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		return fmt.Errorf("sync %s: %w", dir, err)
	}
	return nil
}

func applyHostname(cfg Config) error {
	if cfg.Hostname == "" {
		return nil
	}
	if err := unix.Sethostname([]byte(cfg.Hostname)); err != nil {
		return fmt.Errorf("set hostname: %w", err)
	}
	if err := writeFile("/etc/hostname", cfg.Hostname+"\n", 0o644); err != nil {
		return err
	}
	hosts, err := os.ReadFile("/etc/hosts")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	lines := string(hosts)
	if !strings.Contains(lines, "localhost") {
		lines += "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"
	}
	if !strings.Contains(lines, "\t"+cfg.Hostname+"\n") {
		lines += "127.0.1.1\t" + cfg.Hostname + "\n"
	}
	return writeFile("/etc/hosts", lines, 0o644)
}

// applyMachineID gives a fresh disk an identity of its own.
func applyMachineID() error {
	const path = "/etc/machine-id"
	if old, err := os.ReadFile(path); err == nil && len(strings.TrimSpace(string(old))) == 32 {
		return nil
	}
	var id [16]byte
	if _, err := rand.Read(id[:]); err != nil {
		return err
	}
	return writeFile(path, hex.EncodeToString(id[:])+"\n", 0o444)
}

var accountPaths = [4]string{"/etc/passwd", "/etc/shadow", "/etc/group", "/etc/gshadow"}

func readAccounts() (accounts, error) {
	var a accounts
	for i, into := range []*string{&a.passwd, &a.shadow, &a.group, &a.gshadow} {
		data, err := os.ReadFile(accountPaths[i])
		if err != nil && !(errors.Is(err, fs.ErrNotExist) && i != 0) {
			return a, err
		}
		*into = string(data)
	}
	return a, nil
}

// appliedUsers records which users were made, so that a reboot does not undo a
// password the user has changed since.
const appliedUsers = diskHome + "/users.sha256"

func applyUsers(cfg Config) error {
	wanted, err := json.Marshal(cfg.Users)
	if err != nil {
		return err
	}
	digest := sha256.Sum256(wanted)
	mark := hex.EncodeToString(digest[:])
	if done, err := os.ReadFile(appliedUsers); err == nil && string(done) == mark {
		return nil
	}
	before, err := readAccounts()
	if err != nil {
		return err
	}
	shell := "/bin/sh"
	if _, err := os.Stat("/bin/bash"); err == nil {
		shell = "/bin/bash"
	}
	after, err := before.apply(cfg.Users, shell)
	if err != nil {
		return err
	}
	for i, f := range []struct {
		content string
		mode    fs.FileMode
	}{{after.passwd, 0o644}, {after.shadow, 0o640}, {after.group, 0o644}, {after.gshadow, 0o640}} {
		if err := writeFile(accountPaths[i], f.content, f.mode); err != nil {
			return err
		}
	}
	if acc, err := after.lookupGroup("shadow"); err == nil {
		for _, p := range []string{accountPaths[1], accountPaths[3]} {
			if err := os.Chown(p, 0, acc); err != nil {
				return err
			}
		}
	}
	for _, u := range cfg.Users {
		if err := makeHome(after, u); err != nil {
			return err
		}
		if err := applySudo(u); err != nil {
			return err
		}
	}
	return writeFile(appliedUsers, mark, 0o600)
}

// makeHome creates a user's home from /etc/skel unless it exists.
func makeHome(a accounts, u User) error {
	acc, err := a.lookup(u.Name)
	if err != nil {
		return err
	}
	if acc.Home == "" || !filepath.IsAbs(acc.Home) {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(acc.Home), 0o755); err != nil {
		return err
	}
	if err := os.Mkdir(acc.Home, 0o755); errors.Is(err, fs.ErrExist) {
		return nil
	} else if err != nil {
		return err
	}
	if _, err := os.Stat("/etc/skel"); err == nil {
		if err := os.CopyFS(acc.Home, os.DirFS("/etc/skel")); err != nil {
			return fmt.Errorf("fill home of %s: %w", u.Name, err)
		}
	}
	return filepath.WalkDir(acc.Home, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, acc.UID, acc.GID)
	})
}

func applySudo(u User) error {
	if _, err := os.Stat("/usr/bin/sudo"); err != nil || !u.Sudo {
		return nil
	}
	return writeFile("/etc/sudoers.d/formation-"+u.Name, u.Name+" ALL=(ALL:ALL) NOPASSWD: ALL\n", 0o440)
}

func applyEnvironment(cfg Config, env environment) error {
	if err := writeFile("/etc/environment", env.environmentFile(), 0o644); err != nil {
		return err
	}
	if err := writeFile("/etc/profile.d/00-formation.sh", env.profile(), 0o644); err != nil {
		return err
	}
	for name := range env.services {
		if name == "entrypoint" || name == cfg.Name {
			continue
		}
		if err := writeFile("/etc/default/"+name, env.defaultsFile(name), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// applyKeys writes the authorised keys of every user who may log in.
func applyKeys(users []User, owner []string) error {
	if err := os.MkdirAll(keysDir, 0o755); err != nil {
		return err
	}
	for name, content := range keyFiles(users, owner) {
		if err := writeFile(filepath.Join(keysDir, name), content, 0o644); err != nil {
			return err
		}
	}
	return nil
}
