package build

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"
)

// leftovers are what package managers and library tools leave behind and what
// differs from run to run. What they replaced in a layer below shows again.
// (Host keys and machine IDs are born in the guest.)
var leftovers = []string{
	"etc/.pwd.lock",
	"etc/*-", // passwd-, shadow-, group-, gshadow-, subuid-, subgid-
	"etc/machine-id",
	"etc/ssh/ssh_host_*",
	"root/.wget-hsts",
	"var/cache/apt/pkgcache.bin",
	"var/cache/apt/srcpkgcache.bin",
	"var/cache/debconf/*-old",
	"var/cache/fontconfig/*",
	"var/cache/ldconfig/aux-cache",
	"var/lib/apt/daily_lock",
	"var/lib/apt/extended_states.bak",
	"var/lib/apt/lists/lock",
	"var/lib/dbus/machine-id",
	"var/lib/dpkg/*-old",
	"var/lib/dpkg/lock",
	"var/lib/dpkg/lock-frontend",
	"var/lib/dpkg/triggers/Lock",
	"var/lib/systemd/random-seed",
	"var/log/alternatives.log",
	"var/log/apt/*",
	"var/log/bootstrap.log",
	"var/log/btmp",
	"var/log/dpkg.log",
	"var/log/faillog",
	"var/log/fontconfig.log",
	"var/log/lastlog",
	"var/log/wtmp",
}

// cleanUpper removes leftovers from a step's difference, and after INSTALL
// every log and package cache. Upper is what untrusted commands wrote, so it is
// only walked through an os.Root.
func cleanUpper(upper string, install bool) error {
	root, err := os.OpenRoot(upper)
	if err != nil {
		return fmt.Errorf("clean: %w", err)
	}
	defer root.Close()
	for _, pattern := range leftovers {
		if err := removeGlob(root, pattern); err != nil {
			return fmt.Errorf("clean %s: %w", pattern, err)
		}
	}
	if !install {
		return nil
	}
	for _, dir := range []string{"var/log", "var/cache/apt", "var/lib/apt/lists"} {
		if err := removeFiles(root, dir); err != nil {
			return fmt.Errorf("clean %s: %w", dir, err)
		}
	}
	return nil
}

// removeGlob removes regular files that match; a glob is only in the last part.
func removeGlob(root *os.Root, pattern string) error {
	dir, last := path.Split(pattern)
	names, err := list(root, strings.TrimSuffix(dir, "/"))
	if err != nil {
		return err
	}
	for _, e := range names {
		if ok, err := path.Match(last, e.Name()); err != nil {
			return err
		} else if ok && e.Type().IsRegular() {
			if err := root.Remove(dir + e.Name()); err != nil {
				return err
			}
		}
	}
	return nil
}

// removeFiles removes every regular file below dir.
func removeFiles(root *os.Root, dir string) error {
	names, err := list(root, dir)
	if err != nil {
		return err
	}
	for _, e := range names {
		name := dir + "/" + e.Name()
		switch {
		case e.IsDir():
			err = removeFiles(root, name)
		case e.Type().IsRegular():
			err = root.Remove(name)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// list reads a directory that must be reached without symlinks; if it is not
// there, or not so, there is nothing of ours to remove.
func list(root *os.Root, dir string) ([]fs.DirEntry, error) {
	for i := 0; i <= len(dir); i++ {
		if i < len(dir) && dir[i] != '/' {
			continue
		}
		st, err := root.Lstat(dir[:i])
		if errors.Is(err, fs.ErrNotExist) || err == nil && !st.IsDir() {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
	}
	d, err := root.Open(dir)
	if err != nil {
		return nil, err
	}
	names, err := d.ReadDir(-1)
	return names, errors.Join(err, d.Close())
}
