package fogvm

import (
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
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

// translationBuffer is the part of it that emulation may fill with translated
// code; QEMU's own choice is up to 1 GiB.
const translationBuffer = 256 << 20

// controllers are what the limits of a VM need.
var controllers = []string{"memory", "cpu", "pids"}

// cgroupName is the same for a run directory each time and differs between the
// nodes of one machine.
func cgroupName(dir string) string {
	h := fnv.New64a()
	h.Write([]byte(dir))
	return fmt.Sprintf("%016x", h.Sum64())
}

const cgroupPrefix = "formation-"

// newCgroup makes a cgroup of its own for a VM. The error says which part could
// not be had; what could is still used.
func newCgroup(root, name string, vm VM) (*cgroup, error) {
	limits := cgroupLimits(vm)
	c := &cgroup{}
	parents, err := cgroupParents(root)
	errs := []error{err}
	for controller, parent := range parents {
		if controller == "" {
			parent = unifiedParent(parent)
		}
		errs = append(errs, c.add(filepath.Join(parent, cgroupPrefix+name), limits[controller]))
	}
	if parents[""] == "" {
		for _, controller := range controllers {
			if parents[controller] == "" {
				errs = append(errs, fmt.Errorf("cgroup: no %s controller here", controller))
			}
		}
	}
	return c, errors.Join(errs...)
}

// unifiedParent is the cgroup (v2) whose children can be given limits: own,
// which this process is in, or the nearest one above it that passes the
// controllers on, else the nearest that can be made to. It is mostly one above:
// with processes of its own, a cgroup passes nothing on. To move them away is no
// way out, as a service manager could not start the next formd in own then. own
// is also the answer when there is none; then the limits are missing.
func unifiedParent(own string) string {
	for _, passes := range []func(string) bool{passesOn, passOn} {
		for _, dir := range ancestry(own) {
			if mayMoveInto(dir) && passes(dir) {
				return dir
			}
		}
	}
	return own
}

// ancestry is a cgroup and those above it, nearest first.
func ancestry(own string) (dirs []string) {
	for dir := own; isFile(filepath.Join(dir, "cgroup.procs")); dir = filepath.Dir(dir) {
		dirs = append(dirs, dir)
	}
	return dirs
}

// mayMoveInto: cgroups can be made in dir, which is own or above it, and a
// process of own be moved into them.
func mayMoveInto(dir string) bool {
	return unix.Access(dir, unix.W_OK) == nil && unix.Access(filepath.Join(dir, "cgroup.procs"), unix.W_OK) == nil
}

const subtreeControl = "cgroup.subtree_control"

func passesOn(dir string) bool {
	data, err := os.ReadFile(filepath.Join(dir, subtreeControl))
	passed := strings.Fields(string(data))
	return err == nil && !slices.ContainsFunc(controllers, func(c string) bool { return !slices.Contains(passed, c) })
}

func passOn(dir string) bool {
	f, err := os.OpenFile(filepath.Join(dir, subtreeControl), os.O_WRONLY, 0)
	if err != nil {
		return false
	}
	_, err = f.WriteString("+" + strings.Join(controllers, " +"))
	return errors.Join(err, f.Close()) == nil
}

// cgroupParents are the folders this process is in, by the v1 controller that
// cgroupLimits knows, or "" for v2.
func cgroupParents(root string) (map[string]string, error) {
	self, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, fmt.Errorf("cgroup: %w", err)
	}
	return parentsOf(root, string(self)), nil
}

func parentsOf(root, self string) map[string]string {
	known := cgroupLimits(VM{})
	parents := map[string]string{}
	for line := range strings.SplitSeq(strings.TrimSpace(self), "\n") {
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
	if len(parents) > 1 {
		delete(parents, "") // beside a v1 layout, v2 has no controllers
	}
	return parents
}

// sweepCgroups removes the empty cgroups of VMs that were killed together with
// everything that could have cleaned up, and whose run directories are gone
// too. The kernel refuses to remove one that is in use; one that was made just
// now may still be waiting for its QEMU.
func sweepCgroups(root string, now time.Time) error {
	parents, err := cgroupParents(root)
	errs := []error{err}
	for controller, parent := range parents {
		dirs := []string{parent}
		if controller == "" {
			dirs = ancestry(parent)
		}
		for _, dir := range dirs {
			found, err := filepath.Glob(filepath.Join(dir, cgroupPrefix+"*"))
			errs = append(errs, err)
			for _, folder := range found {
				errs = append(errs, sweepCgroup(folder, now))
			}
		}
	}
	return errors.Join(errs...)
}

func sweepCgroup(folder string, now time.Time) error {
	info, err := os.Stat(folder)
	if err != nil || now.Sub(info.ModTime()) < time.Minute {
		return nil
	}
	if err := os.Remove(folder); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.EBUSY) {
		return err
	}
	return nil
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
			errs = append(errs, fmt.Errorf("cgroup limit: no %s: the controller is not passed on to %s", name, filepath.Dir(folder)))
			continue
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
