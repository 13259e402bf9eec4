package build

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/formthefog/formation/store/formfile"
)

// errMachine marks what this machine cannot do, as opposed to what a Formfile
// got wrong.
var errMachine = errors.New("cannot set up the sandbox")

// mounted is a stack in this process's private mount namespace. Everything is
// bound to short names below one tmpfs, because mount options must fit a page.
type mounted struct {
	dir    string   // the tmpfs
	lowers []string // relative to dir, topmost first, the base last
}

// mountStack makes the mount namespace private and mounts base and lowers.
func mountStack(s stack) (*mounted, error) {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return nil, fmt.Errorf("%w: make mounts private: %w", errMachine, err)
	}
	if err := unix.Mount("tmpfs", s.Scratch, "tmpfs", unix.MS_NODEV|unix.MS_NOSUID, "mode=0755"); err != nil {
		return nil, fmt.Errorf("%w: mount tmpfs: %w", errMachine, err)
	}
	m := &mounted{dir: s.Scratch}
	for i, l := range s.Lowers {
		name := fmt.Sprintf("l%d", i)
		if err := m.bind(l, name); err != nil {
			return nil, err
		}
		m.lowers = append(m.lowers, name)
	}
	if s.IsImage {
		if err := m.mkdir("base"); err != nil {
			return nil, err
		}
		if err := mountLoop(s.Base, m.path("base")); err != nil {
			return nil, err
		}
	} else if err := m.bind(s.Base, "base"); err != nil {
		return nil, err
	}
	m.lowers = append(m.lowers, "base")
	return m, nil
}

func (m *mounted) path(name string) string { return filepath.Join(m.dir, name) }

func (m *mounted) mkdir(name string) error {
	if err := os.Mkdir(m.path(name), 0o755); err != nil {
		return fmt.Errorf("%w: %w", errMachine, err)
	}
	return nil
}

func (m *mounted) bind(from, name string) error {
	return bindDir(from, m.path(name))
}

func bindDir(from, at string) error {
	if err := os.Mkdir(at, 0o755); err != nil {
		return fmt.Errorf("%w: %w", errMachine, err)
	}
	if err := unix.Mount(from, at, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("%w: bind %s: %w", errMachine, from, err)
	}
	return nil
}

// overlay mounts the whole stack, with work's "upper" on top, at "root".
func (m *mounted) overlay(work string, userns bool) error {
	if err := m.bind(work, "d"); err != nil {
		return err
	}
	if err := m.mkdir("root"); err != nil {
		return err
	}
	opts := m.lowerOption() + ",upperdir=d/upper,workdir=d/work" + overlayOptions(userns)
	return m.mountOverlay("root", unix.MS_NODEV, opts)
}

// lowerView mounts the stack read-only, for comparing, and gives its path.
func (m *mounted) lowerView(userns bool) (string, error) {
	if len(m.lowers) == 1 {
		return m.path(m.lowers[0]), nil
	}
	if err := m.mkdir("low"); err != nil {
		return "", err
	}
	opts := m.lowerOption() + overlayOptions(userns)
	return m.path("low"), m.mountOverlay("low", unix.MS_RDONLY|unix.MS_NODEV, opts)
}

func (m *mounted) lowerOption() string { return "lowerdir=" + strings.Join(m.lowers, ":") }

// overlayOptions turn off what would put references to lower files into a
// layer, or make it depend on this machine. userxattr, without which a user
// namespace cannot mark deletions, implies the first two and refuses them.
func overlayOptions(userns bool) string {
	if userns {
		return ",index=off,userxattr"
	}
	return ",redirect_dir=nofollow,metacopy=off,index=off"
}

func (m *mounted) mountOverlay(name string, flags uintptr, opts string) error {
	if err := os.Chdir(m.dir); err != nil {
		return err
	}
	err := unix.Mount("overlay", name, "overlay", flags, opts)
	if errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("%w: mount overlay: %w (the cache directory may be on an overlay itself, as in a container: choose another)", errMachine, err)
	}
	if err != nil {
		return fmt.Errorf("%w: mount overlay: %w", errMachine, err)
	}
	return nil
}

// mountLoop mounts a squashfs image read-only. The loop device goes away by
// itself with the mount, so with this process's mount namespace.
func mountLoop(image, at string) error {
	f, err := os.Open(image)
	if err != nil {
		return err
	}
	defer f.Close()
	ctl, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("%w: %w", errMachine, err)
	}
	defer ctl.Close()
	// Another process may take the free device first.
	for range 32 {
		n, err := unix.IoctlRetInt(int(ctl.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return fmt.Errorf("%w: get a loop device: %w", errMachine, err)
		}
		err = tryLoop(n, f, at)
		if errors.Is(err, unix.EBUSY) {
			continue
		}
		return err
	}
	return fmt.Errorf("%w: no free loop device", errMachine)
}

func tryLoop(n int, f *os.File, at string) error {
	name := fmt.Sprintf("/dev/loop%d", n)
	dev, err := os.OpenFile(name, os.O_RDONLY, 0)
	if err != nil {
		return fmt.Errorf("%w: %w", errMachine, err)
	}
	defer dev.Close()
	cfg := unix.LoopConfig{Fd: uint32(f.Fd())}
	cfg.Info.Flags = unix.LO_FLAGS_AUTOCLEAR | unix.LO_FLAGS_READ_ONLY
	if err := unix.IoctlLoopConfigure(int(dev.Fd()), &cfg); err != nil {
		return fmt.Errorf("%w: configure %s: %w", errMachine, name, err)
	}
	if err := unix.Mount(name, at, "squashfs", unix.MS_RDONLY|unix.MS_NODEV, ""); err != nil {
		return fmt.Errorf("%w: mount squashfs: %w", errMachine, err)
	}
	return nil
}

// enterRoot makes "root" the root directory, with a minimal /dev, a /proc that
// shows and changes nothing of the host, and empty /tmp and /run.
// The host's directories lend are bound below lendDir.
func (m *mounted) enterRoot(lend map[string]string) error {
	root := m.path("root")
	if err := mkVolatile(root); err != nil {
		return err
	}
	if err := m.mountDev(filepath.Join(root, "dev")); err != nil {
		return err
	}
	mounts := []struct {
		fs, at string
		flags  uintptr
		opts   string
	}{
		{"proc", "proc", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
		{"tmpfs", "tmp", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777"},
		{"tmpfs", "run", unix.MS_NOSUID | unix.MS_NODEV, "mode=0755"},
	}
	for _, x := range mounts {
		if err := unix.Mount(x.fs, filepath.Join(root, x.at), x.fs, x.flags, x.opts); err != nil {
			return fmt.Errorf("%w: mount /%s: %w", errMachine, x.at, err)
		}
	}
	if err := maskProc(filepath.Join(root, "proc")); err != nil {
		return err
	}
	at := filepath.Join(root, lendDir)
	if err := os.Mkdir(at, 0o755); err != nil {
		return err
	}
	for name, from := range lend {
		if err := bindDir(from, filepath.Join(at, name)); err != nil {
			return err
		}
	}
	return pivot(root)
}

// enterForCopy makes "root" the root directory for a process that only writes
// files. There is no /proc, whose links lead out, and what cannot hold files of
// an image refuses them, through symlinks of the image, too.
func (m *mounted) enterForCopy() error {
	root := m.path("root")
	if err := mkVolatile(root); err != nil {
		return err
	}
	for _, d := range formfile.VolatileDirs {
		if err := unix.Mount("tmpfs", filepath.Join(root, d), "tmpfs", unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV, "size=4k"); err != nil {
			return fmt.Errorf("%w: mount /%s: %w", errMachine, d, err)
		}
	}
	return pivot(root)
}

func mkVolatile(root string) error {
	for _, d := range formfile.VolatileDirs {
		if err := mkdirInRoot(root, d); err != nil {
			return err
		}
	}
	return nil
}

func pivot(root string) error {
	if err := os.Chdir(root); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("%w: pivot_root: %w", errMachine, err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("%w: detach the host's root: %w", errMachine, err)
	}
	return os.Chdir("/")
}

// mkdirInRoot makes a mount point that is no symlink, before the root is ours:
// a symlink here would be followed on the host.
func mkdirInRoot(root, name string) error {
	p := filepath.Join(root, name)
	st, err := os.Lstat(p)
	if errors.Is(err, os.ErrNotExist) {
		return os.Mkdir(p, 0o755)
	}
	if err == nil && !st.IsDir() {
		return fmt.Errorf("/%s of the image is not a directory", name)
	}
	return err
}

func (m *mounted) mountDev(dev string) error {
	if err := unix.Mount("tmpfs", dev, "tmpfs", unix.MS_NOSUID|unix.MS_NOEXEC, "mode=0755,size=64k"); err != nil {
		return fmt.Errorf("%w: mount /dev: %w", errMachine, err)
	}
	for _, n := range []string{"null", "zero", "full", "random", "urandom", "tty"} {
		f, err := os.OpenFile(filepath.Join(dev, n), os.O_CREATE|os.O_EXCL, 0o666)
		if err != nil {
			return err
		}
		if err := errors.Join(f.Close(), unix.Mount("/dev/"+n, f.Name(), "", unix.MS_BIND, "")); err != nil {
			return fmt.Errorf("%w: bind /dev/%s: %w", errMachine, n, err)
		}
	}
	for _, d := range []string{"pts", "shm"} {
		if err := os.Mkdir(filepath.Join(dev, d), 0o755); err != nil {
			return err
		}
	}
	if err := unix.Mount("devpts", filepath.Join(dev, "pts"), "devpts", unix.MS_NOSUID|unix.MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620"); err != nil {
		return fmt.Errorf("%w: mount /dev/pts: %w", errMachine, err)
	}
	if err := unix.Mount("tmpfs", filepath.Join(dev, "shm"), "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=1777"); err != nil {
		return fmt.Errorf("%w: mount /dev/shm: %w", errMachine, err)
	}
	for name, target := range map[string]string{"ptmx": "pts/ptmx", "fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2"} {
		if err := os.Symlink(target, filepath.Join(dev, name)); err != nil {
			return err
		}
	}
	return nil
}

// maskProc hides what the kernel would let a root user without capabilities
// read or change of the host. Files that this kernel lacks are no concern.
func maskProc(proc string) error {
	for _, n := range []string{"kcore", "keys", "timer_list", "sched_debug", "latency_stats", "kmsg", "sysrq-trigger", "config.gz"} {
		err := unix.Mount("/dev/null", filepath.Join(proc, n), "", unix.MS_BIND, "")
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("%w: mask /proc/%s: %w", errMachine, n, err)
		}
	}
	for _, n := range []string{"sys", "bus", "fs", "irq", "scsi", "acpi", "driver", "asound"} {
		p := filepath.Join(proc, n)
		err := unix.Mount(p, p, "", unix.MS_BIND|unix.MS_REC, "")
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err == nil {
			err = unix.Mount("", p, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
		}
		if err != nil {
			return fmt.Errorf("%w: make /proc/%s read-only: %w", errMachine, n, err)
		}
	}
	return nil
}
