package fogvm

import (
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// cgroup confines one VM's QEMU. It is best effort: see newCgroup.
type cgroup struct {
	// folders that exist: one for cgroup v2, one per controller for v1.
	folders []string
}

const cgroupRoot = "/sys/fs/cgroup"

// overhead is what QEMU may use beyond the guest's memory, before the kernel
// reclaims and then kills: emulator, translation buffers, page tables.
const overhead = 512 << 20

// cgroupName is the same for a run directory each time and differs between the
// nodes of one machine.
func cgroupName(dir string) string {
	h := fnv.New64a()
	h.Write([]byte(dir))
	return fmt.Sprintf("%016x", h.Sum64())
}

const cgroupPrefix = "formation-"

// newCgroup makes a cgroup of its own for a VM, beside this process's. The
// error says which part could not be had; what could is still used.
func newCgroup(root, name string, vm VM) (*cgroup, error) {
	limits := cgroupLimits(vm)
	c := &cgroup{}
	parents, err := cgroupParents(root)
	errs := []error{err}
	for controller, parent := range parents {
		errs = append(errs, c.add(filepath.Join(parent, cgroupPrefix+name), limits[controller]))
	}
	return c, errors.Join(errs...)
}

// cgroupParents are the folders this process is in, by the v1 controller that
// cgroupLimits knows, or "" for v2.
func cgroupParents(root string) (map[string]string, error) {
	self, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, fmt.Errorf("cgroup: %w", err)
	}
	known := cgroupLimits(VM{})
	parents := map[string]string{}
	for line := range strings.SplitSeq(strings.TrimSpace(string(self)), "\n") {
		parts := strings.SplitN(line, ":", 3)
		if len(parts) != 3 {
			continue
		}
		for controller := range strings.SplitSeq(parts[1], ",") {
			base := filepath.Join(root, controller, parts[2])
			if controller == "" && !isFile(filepath.Join(base, "cgroup.procs")) {
				// Below a v1 layout, v2 is mounted as "unified".
				base = filepath.Join(root, "unified", parts[2])
			}
			if _, ok := known[controller]; ok && isFile(filepath.Join(base, "cgroup.procs")) {
				parents[controller] = base
			}
		}
	}
	return parents, nil
}

// sweepCgroups removes the empty cgroups of VMs that were killed together with
// everything that could have cleaned up, and whose run directories are gone
// too. The kernel refuses to remove one that is in use; one that was made just
// now may still be waiting for its QEMU.
func sweepCgroups(root string, now time.Time) error {
	parents, err := cgroupParents(root)
	errs := []error{err}
	for _, parent := range parents {
		found, err := filepath.Glob(filepath.Join(parent, cgroupPrefix+"*"))
		errs = append(errs, err)
		for _, folder := range found {
			info, err := os.Stat(folder)
			if err != nil || now.Sub(info.ModTime()) < time.Minute {
				continue
			}
			if err := os.Remove(folder); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.EBUSY) {
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}

// cgroupLimits are the files to write, per v1 controller and "" for v2. CPU
// time is bounded to the vCPUs plus one for the emulator's own threads.
func cgroupLimits(vm VM) map[string]map[string]string {
	const period = 100000 // µs
	memory := strconv.FormatUint(vm.MemoryBytes+overhead, 10)
	quota := strconv.Itoa((vm.VCPU + 1) * period)
	return map[string]map[string]string{
		"":       {"memory.max": memory, "cpu.max": quota + " " + strconv.Itoa(period), "pids.max": "512"},
		"memory": {"memory.limit_in_bytes": memory},
		"cpu":    {"cpu.cfs_quota_us": quota},
		"pids":   {"pids.max": "512"},
	}
}

func (c *cgroup) add(folder string, files map[string]string) error {
	if err := os.Mkdir(folder, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("cgroup: %w", err)
	}
	c.folders = append(c.folders, folder)
	var errs []error
	for name, value := range files {
		path := filepath.Join(folder, name)
		if !isFile(path) {
			continue // the controller is not delegated to us
		}
		if err := os.WriteFile(path, []byte(value), 0o644); err != nil {
			errs = append(errs, fmt.Errorf("cgroup limit: %w", err))
		}
	}
	return errors.Join(errs...)
}

// enter puts a process in.
func (c *cgroup) enter(pid int) error {
	var errs []error
	for _, f := range c.folders {
		errs = append(errs, os.WriteFile(filepath.Join(f, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0o644))
	}
	return errors.Join(errs...)
}

// remove deletes the cgroup; a process that is just ending keeps it busy for a
// moment.
func (c *cgroup) remove() error {
	var errs []error
	for _, f := range c.folders {
		deadline := time.Now().Add(2 * time.Second)
		for {
			err := os.Remove(f)
			if err == nil || errors.Is(err, fs.ErrNotExist) {
				break
			}
			if time.Now().After(deadline) {
				errs = append(errs, fmt.Errorf("cgroup: %w", err))
				break
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
	c.folders = nil
	return errors.Join(errs...)
}

func isFile(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
