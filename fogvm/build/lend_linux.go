package build

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Where things lent to a step are; /run is a tmpfs, so they reach no layer.
const (
	lendDir  = "/run/formation"
	caBundle = "/etc/ssl/certs/ca-certificates.crt"
	lentCA   = lendDir + "/ca-certificates.crt"
	aptConf  = lendDir + "/apt.conf"
	policyRC = "/usr/sbin/policy-rc.d"
	resolv   = "/etc/resolv.conf"
)

// aptConfig makes apt quiet, strict about stale indexes, and write nothing
// that differs from one run to the next.
const aptConfig = `APT::Install-Recommends "false";
APT::Install-Suggests "false";
APT::Get::Assume-Yes "true";
APT::Keep-Downloaded-Packages "true";
APT::Update::Error-Mode "any";
Acquire::Languages "none";
Acquire::Retries "3";
Dir::Cache::pkgcache "";
Dir::Cache::srcpkgcache "";
Dir::Log "/run/formation";
Dpkg::Use-Pty "false";
Dpkg::Options { "--force-confdef"; "--force-confold"; "--force-unsafe-io"; };
`

// Loans are things a step needs and a layer must not hold.
type loans struct{ undo []func() error }

func (l *loans) takeBack() error {
	var errs []error
	for i := len(l.undo) - 1; i >= 0; i-- {
		errs = append(errs, l.undo[i]())
	}
	l.undo = nil
	return errors.Join(errs...)
}

// lend gives the image the host's name servers, CA certificates if it has
// none, and for INSTALL the package cache and a ban on starting services.
func lend(r *runRequest) (*loans, error) {
	l := &loans{}
	if err := os.WriteFile(aptConf, []byte(aptConfig), 0o644); err != nil {
		return l, err
	}
	if len(r.CACerts) > 0 {
		if err := os.WriteFile(lentCA, r.CACerts, 0o644); err != nil {
			return l, err
		}
	}
	if len(r.Resolv) > 0 {
		if err := l.lendResolv(r.Resolv); err != nil {
			return l, fmt.Errorf("lend %s: %w", resolv, err)
		}
	}
	if !r.Install {
		return l, nil
	}
	if err := l.lendPolicy(); err != nil {
		return l, fmt.Errorf("lend %s: %w", policyRC, err)
	}
	for name, at := range map[string]string{lentLists: "/var/lib/apt/lists", lentDebs: "/var/cache/apt/archives"} {
		if _, err := os.Stat(at); errors.Is(err, fs.ErrNotExist) {
			continue // not Debian; apt-get will be missing, too
		}
		if err := l.bind(filepath.Join(lendDir, name), at); err != nil {
			return l, fmt.Errorf("lend %s: %w", at, err)
		}
	}
	return l, nil
}

// The package cache, by name below lendDir.
const (
	lentLists = "apt-lists"
	lentDebs  = "apt-debs"
)

// hostDirs are the host's directories that a step is lent, by name below
// lendDir; they are bound there while the host is still in sight.
func (r *runRequest) hostDirs() map[string]string {
	if r == nil || !r.Install {
		return nil
	}
	return map[string]string{lentLists: r.AptLists, lentDebs: r.AptDebs}
}

// lendResolv puts the text in front of /etc/resolv.conf. An image whose file
// is a symlink usually means something below /run, which is empty here.
func (l *loans) lendResolv(text []byte) error {
	lent := lendDir + "/resolv.conf"
	if err := os.WriteFile(lent, text, 0o644); err != nil {
		return err
	}
	target := resolv
	st, err := os.Lstat(resolv)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if err := l.makeFile(resolv, nil, 0o644); err != nil {
			return err
		}
	case err != nil:
		return err
	case st.Mode()&fs.ModeSymlink != 0:
		link, err := os.Readlink(resolv)
		if err != nil {
			return err
		}
		if !filepath.IsAbs(link) {
			link = filepath.Join("/etc", link)
		}
		target = link
		if _, err := os.Stat(resolv); errors.Is(err, fs.ErrNotExist) {
			if err := os.MkdirAll(filepath.Dir(link), 0o755); err != nil {
				return err
			}
			if err := l.makeFile(link, nil, 0o644); err != nil {
				return err
			}
		}
	}
	return l.bind(lent, target)
}

// lendPolicy makes invoke-rc.d start nothing.
func (l *loans) lendPolicy() error {
	const script = "#!/bin/sh\nexit 101\n"
	lent := lendDir + "/policy-rc.d"
	if err := os.WriteFile(lent, []byte(script), 0o755); err != nil {
		return err
	}
	if _, err := os.Lstat(policyRC); err == nil {
		return l.bind(lent, policyRC)
	}
	if _, err := os.Stat(filepath.Dir(policyRC)); errors.Is(err, fs.ErrNotExist) {
		return nil // no /usr/sbin, so no invoke-rc.d
	}
	return l.makeFile(policyRC, []byte(script), 0o755)
}

// makeFile makes a file that is taken back afterwards, unless a step replaced
// it by something else.
func (l *loans) makeFile(name string, content []byte, perm fs.FileMode) error {
	if err := os.WriteFile(name, content, perm); err != nil {
		return err
	}
	made, err := os.Lstat(name)
	if err != nil {
		return err
	}
	l.undo = append(l.undo, func() error {
		now, err := os.Lstat(name)
		if errors.Is(err, fs.ErrNotExist) || err == nil && !os.SameFile(made, now) {
			return nil
		}
		if err != nil {
			return err
		}
		return os.Remove(name)
	})
	return nil
}

func (l *loans) bind(from, at string) error {
	if err := unix.Mount(from, at, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("%w: %w", errMachine, err)
	}
	l.undo = append(l.undo, func() error { return unix.Unmount(at, unix.MNT_DETACH) })
	return nil
}
