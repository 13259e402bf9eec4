package guest

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	newRoot    = "/newroot"
	diskMount  = "/disk"
	layerMount = "/layers"
)

// mountKernel mounts what the agent needs to see devices; the initramfs has
// only empty folders for them.
func mountKernel() error {
	for _, m := range []struct{ kind, at string }{{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}} {
		if err := os.MkdirAll(m.at, 0o755); err != nil {
			return err
		}
		err := unix.Mount(m.kind, m.at, m.kind, unix.MS_NOSUID, "")
		if err != nil && !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("mount %s: %w", m.at, err)
		}
	}
	return nil
}

// loadModules inserts the modules of ModuleList in order. A module that is
// built in or already loaded is fine; another failure is returned joined with
// the rest, because what it means shows only later (no disk, no network).
func loadModules() error {
	list, err := os.ReadFile(ModuleList)
	if err != nil {
		return fmt.Errorf("read module list: %w", err)
	}
	var errs []error
	for line := range strings.SplitSeq(string(list), "\n") {
		name := strings.TrimSpace(line)
		if name == "" || strings.HasPrefix(name, "#") {
			continue
		}
		if !filepath.IsAbs(name) {
			name = filepath.Join(filepath.Dir(ModuleList), name)
		}
		if err := loadModule(name); err != nil {
			errs = append(errs, fmt.Errorf("load %s: %w", name, err))
		}
	}
	return errors.Join(errs...)
}

func loadModule(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	err = unix.FinitModule(int(f.Fd()), "", 0)
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	return err
}

// disks maps serial → device of the virtio disks whose driver is up. sys is
// where sysfs is mounted.
func disks(sys string) (map[string]string, error) {
	serials, err := filepath.Glob(filepath.Join(sys, "block/vd*/serial"))
	if err != nil {
		return nil, err
	}
	out := map[string]string{}
	for _, s := range serials {
		data, err := os.ReadFile(s)
		if err != nil {
			return nil, err
		}
		if serial := strings.TrimSpace(string(data)); serial != "" {
			out[serial] = "/dev/" + filepath.Base(filepath.Dir(s))
		}
	}
	return out, nil
}

// busDisks counts the virtio disks on the bus, which the kernel knows before
// any driver is up.
func busDisks(sys string) (int, error) {
	devices, err := filepath.Glob(filepath.Join(sys, "bus/pci/devices/*"))
	if err != nil {
		return 0, err
	}
	count := 0
	for _, d := range devices {
		vendor, err1 := os.ReadFile(filepath.Join(d, "vendor"))
		device, err2 := os.ReadFile(filepath.Join(d, "device"))
		if err := errors.Join(err1, err2); err != nil {
			return 0, err
		}
		switch strings.TrimSpace(string(vendor)) + strings.TrimSpace(string(device)) {
		case "0x1af40x1001", "0x1af40x1042": // before and since virtio 1.0
			count++
		}
	}
	return count, nil
}

// waitDisks waits until every disk on the bus is there, the writable one and at
// least one layer among them: drivers probe asynchronously, and a root without
// one of its layers is another root.
func waitDisks(sys string, limit time.Duration) (map[string]string, error) {
	deadline := time.Now().Add(limit)
	for {
		want, err := busDisks(sys)
		if err != nil {
			return nil, err
		}
		found, err := disks(sys)
		if err != nil {
			return nil, err
		}
		if found[DiskSerial] != "" && found[LayerSerial(0)] != "" && len(found) >= want {
			return found, nil
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("disks missing after %s: have %v, %d on the bus", limit, found, want)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// mountRoot stacks the layers under the writable disk at newRoot.
func mountRoot(found map[string]string) error {
	var serials []string
	for s := range found {
		if strings.HasPrefix(s, "layer") {
			serials = append(serials, s)
		}
	}
	sort.Strings(serials)
	var lowers []string
	for _, s := range serials {
		at := filepath.Join(layerMount, strings.TrimPrefix(s, "layer"))
		if err := mountAt(found[s], at, "squashfs", unix.MS_RDONLY, ""); err != nil {
			return err
		}
		lowers = append(lowers, at)
	}
	if err := mountAt(found[DiskSerial], diskMount, "ext4", unix.MS_NOATIME, ""); err != nil {
		return err
	}
	upper, work := filepath.Join(diskMount, "upper"), filepath.Join(diskMount, "work")
	for _, d := range []string{upper, work} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	// Plain diffs only (no redirects, no metadata-only copies): the upper
	// folder must be readable as a layer by itself.
	options := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s,redirect_dir=off,metacopy=off,index=off",
		strings.Join(lowers, ":"), upper, work)
	return mountAt("overlay", newRoot, "overlay", 0, options)
}

func mountAt(source, at, kind string, flags uintptr, options string) error {
	if err := os.MkdirAll(at, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(source, at, kind, flags, options); err != nil {
		return fmt.Errorf("mount %s (%s) on %s: %w", source, kind, at, err)
	}
	return nil
}

// switchRoot makes newRoot the root and frees the initramfs. The layers stay
// mounted under the overlay; the disk moves to diskHome.
func switchRoot() error {
	if err := mountAt("tmpfs", newRoot+"/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
		return err
	}
	if err := os.MkdirAll(newRoot+diskHome, 0o700); err != nil {
		return err
	}
	if err := os.Chmod(newRoot+filepath.Dir(diskHome), 0o755); err != nil {
		return err
	}
	moves := [][2]string{{diskMount, newRoot + diskHome}}
	for _, m := range []string{"/proc", "/sys", "/dev"} {
		if err := os.MkdirAll(newRoot+m, 0o755); err != nil {
			return err
		}
		moves = append(moves, [2]string{m, newRoot + m})
	}
	for _, m := range moves {
		if err := unix.Mount(m[0], m[1], "", unix.MS_MOVE, ""); err != nil {
			return fmt.Errorf("move mount %s: %w", m[0], err)
		}
	}
	emptyInitramfs()
	if err := unix.Chdir(newRoot); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("chroot: %w", err)
	}
	return unix.Chdir("/")
}

// emptyInitramfs removes its files, which only hold memory: it is a tmpfs
// nobody can reach after the switch. Failures cost memory and nothing else.
func emptyInitramfs() {
	_ = filepath.WalkDir("/", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return fs.SkipDir
		}
		if d.IsDir() {
			switch path {
			case newRoot, layerMount, diskMount, "/proc", "/sys", "/dev":
				return fs.SkipDir
			}
			return nil
		}
		_ = os.Remove(path)
		return nil
	})
}
