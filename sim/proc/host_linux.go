package proc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Where a run has what it makes.
const (
	base       = "/run/formsim"
	namespaces = "/run/netns"
	// mark is in the environment of every process of a run, with its name.
	mark = "FORMATION_SIM"
)

// host is what one run has on this machine. All of it has the run's name, or is
// below its folder.
type host struct {
	id   string // formsim-BOOT-PID-START: the process that owns it, and no other ever
	dir  string
	wire *wire // between its nodes; nil: a bridge of the kernel's is
}

var ours = regexp.MustCompile(`^formsim-([0-9a-f]{8})-(\d+)-(\d+)`)

// named is the host of a process's run.
func named(pid int) (*host, error) {
	start, err := startOf(pid)
	if err != nil {
		return nil, err
	}
	boot, err := bootID()
	if err != nil {
		return nil, err
	}
	return hostOf(fmt.Sprintf("formsim-%s-%d-%s", boot, pid, start)), nil
}

func hostOf(id string) *host { return &host{id: id, dir: filepath.Join(base, id)} }

// bootID begins with what no other run of the kernel has.
func bootID() (string, error) {
	raw, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", err
	}
	return string(raw[:min(len(raw), 8)]), nil
}

// startOf is when a process began, in ticks since the boot: its number may be
// another's later.
func startOf(pid int) (string, error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", err
	}
	// The name, in parentheses, may hold anything.
	fields := bytes.Fields(raw[bytes.LastIndexByte(raw, ')')+1:])
	if len(fields) < 20 {
		return "", fmt.Errorf("/proc/%d/stat: %q", pid, raw)
	}
	return string(fields[19]), nil
}

// abandoned says whether the process that a name is of is gone.
func abandoned(id string) (bool, error) {
	m := ours.FindStringSubmatch(id)
	if m == nil {
		return false, nil
	}
	boot, err := bootID()
	if err != nil {
		return false, err
	}
	pid, err := strconv.Atoi(m[2])
	if err != nil || m[1] != boot {
		return true, nil
	}
	start, err := startOf(pid)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
		return true, nil
	}
	return start != m[3], err
}

// Sweep removes what runs have left whose process is gone, and says of which.
func sweep(ctx context.Context) (swept []string, err error) {
	seen := map[string]bool{}
	for _, dir := range []string{base, namespaces} {
		entries, rerr := os.ReadDir(dir)
		if rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
			return swept, rerr
		}
		for _, e := range entries {
			id := ours.FindString(e.Name())
			if id == "" || seen[id] {
				continue
			}
			seen[id] = true
			is, aerr := abandoned(id)
			if aerr != nil || !is {
				err = errors.Join(err, aerr)
				continue
			}
			swept = append(swept, id)
			err = errors.Join(err, hostOf(id).remove(ctx))
		}
	}
	return swept, err
}

// ns is the network namespace of node n; that of the switch is ns(-1).
func (h *host) ns(n int) string {
	if n < 0 {
		return h.id + "-switch"
	}
	return fmt.Sprintf("%s-%d", h.id, n)
}

func (h *host) path(parts ...string) string {
	return filepath.Join(append([]string{h.dir}, parts...)...)
}

// make makes so many nodes, each with a file system of its own of so many bytes at
// most, and what is between them: a bridge, or with lines a wire.
func (h *host) make(ctx context.Context, nodes int, size int64, l *lines) error {
	if err := os.MkdirAll(base, 0o700); err != nil {
		return err
	}
	if err := os.Mkdir(h.dir, 0o700); err != nil {
		return err
	}
	connect := h.bridge
	if l != nil {
		connect = func(ctx context.Context, nodes int) error { return h.wired(ctx, nodes, l) }
	}
	if err := connect(ctx, nodes); err != nil {
		return err
	}
	for n := range nodes {
		at := h.disk(n)
		if err := os.MkdirAll(at, 0o700); err != nil {
			return err
		}
		if err := syscall.Mount("formsim", at, "tmpfs", syscall.MS_NODEV|syscall.MS_NOSUID, fmt.Sprintf("size=%d,mode=0700", size)); err != nil {
			return fmt.Errorf("mount %s: %w", at, err)
		}
	}
	return nil
}

func in(ns string, args ...string) []string { return append([]string{"ip", "-n", ns}, args...) }

// add makes the network namespace of a node, whose interface attach makes.
func (h *host) add(ctx context.Context, n int, attach func(ns string) error) error {
	ns := h.ns(n)
	if err := commands(ctx, []string{"ip", "netns", "add", ns}, in(ns, "link", "set", "lo", "up")); err != nil {
		return err
	}
	if err := attach(ns); err != nil {
		return err
	}
	return commands(ctx, in(ns, "address", "add", address(n).String()+"/24", "dev", "eth0"), in(ns, "link", "set", "eth0", "up"))
}

// bridge makes nodes on a switch of the kernel's.
func (h *host) bridge(ctx context.Context, nodes int) error {
	sw := h.ns(-1)
	if err := commands(ctx,
		[]string{"ip", "netns", "add", sw},
		in(sw, "link", "add", "switch", "type", "bridge"),
		in(sw, "link", "set", "switch", "up"),
	); err != nil {
		return err
	}
	for n := range nodes {
		port := fmt.Sprint("port", n)
		if err := h.add(ctx, n, func(ns string) error {
			return commands(ctx,
				in(sw, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", ns),
				in(sw, "link", "set", port, "master", "switch", "up"))
		}); err != nil {
			return err
		}
	}
	return nil
}

// wired makes nodes on a wire of ours.
func (h *host) wired(ctx context.Context, nodes int, l *lines) error {
	var ends []io.ReadWriteCloser
	for n := range nodes {
		if err := h.add(ctx, n, func(ns string) error {
			tap, err := openTap(ns)
			if err != nil {
				return err
			}
			ends = append(ends, tap)
			at := hardware(n)
			return command(ctx, "", in(ns, "link", "set", "eth0", "address", net.HardwareAddr(at[:]).String())...)
		}); err != nil {
			for _, e := range ends {
				err = errors.Join(err, e.Close())
			}
			return err
		}
	}
	h.wire = newWire(l, ends)
	return nil
}

// Sizes of a node's file system, in bytes: memory of the machine once it is used.
const (
	diskSize   = 32 << 20
	diskSizeVM = 2 << 30 // the base, twice while it is fetched, and disks of machines
)

// disk is the folder of a node's own file system.
func (h *host) disk(n int) string { return h.path(fmt.Sprint("node", n), "disk") }

func commands(ctx context.Context, all ...[]string) error {
	for _, args := range all {
		if err := command(ctx, "", args...); err != nil {
			return err
		}
	}
	return nil
}

func command(ctx context.Context, stdin string, args ...string) error {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Stdin = strings.NewReader(stdin)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return nil
}

// processes of the run: those that have its mark, wherever they are, and those that
// are in its namespaces, whatever their environment: machines have none.
func (h *host) processes() (pids []int, err error) {
	names, err := h.spaces()
	if err != nil {
		return nil, err
	}
	in := inside(names...)
	want := []byte("\x00" + mark + "=" + h.id + "\x00")
	return processes(func(pid string) bool {
		env, err := os.ReadFile(filepath.Join("/proc", pid, "environ"))
		return err == nil && bytes.Contains(slices.Concat([]byte{0}, env, []byte{0}), want) || in(pid)
	})
}

// on are the processes on a node: all there is of a machine that is up.
func (h *host) on(n int) ([]int, error) { return processes(inside(h.ns(n))) }

// processes that are what is asked for, but for this one. One that ends meanwhile is
// nothing.
func processes(is func(pid string) bool) (pids []int, err error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil && pid != os.Getpid() && is(e.Name()) {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// inside says whether a process is in one of these network namespaces.
func inside(names ...string) func(pid string) bool {
	var spaces []fs.FileInfo
	for _, name := range names {
		if i, err := os.Stat(filepath.Join(namespaces, name)); err == nil { // else nobody is in it
			spaces = append(spaces, i)
		}
	}
	return func(pid string) bool {
		own, err := os.Stat(filepath.Join("/proc", pid, "ns", "net"))
		return err == nil && slices.ContainsFunc(spaces, func(i fs.FileInfo) bool { return os.SameFile(i, own) })
	}
}

// mounts below the run's folder, the latest first.
func (h *host) mounts() (at []string, err error) {
	raw, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(raw)) {
		if f := strings.Fields(line); len(f) > 1 && strings.HasPrefix(f[1], h.dir+"/") {
			at = append(at, f[1])
		}
	}
	slices.Reverse(at)
	return at, nil
}

// spaces are the names of the run's network namespaces.
func (h *host) spaces() (names []string, err error) {
	entries, err := os.ReadDir(namespaces)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), h.id+"-") {
			names = append(names, e.Name())
		}
	}
	return names, err
}

// sockets are the unix sockets, as files, below the run's folder.
func (h *host) sockets() (at []string, err error) {
	err = filepath.WalkDir(h.dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil && d.Type()&fs.ModeSocket != 0 {
			at = append(at, path)
		}
		return err
	})
	return at, err
}

// left is everything of the run that is there.
func (h *host) left() (what []string, err error) {
	pids, e1 := h.processes()
	mounts, e2 := h.mounts()
	spaces, e3 := h.spaces()
	for _, p := range pids {
		what = append(what, fmt.Sprintf("process %d (%s)", p, commandOf(p)))
	}
	for _, m := range mounts {
		what = append(what, "mount "+m)
	}
	for _, s := range spaces {
		what = append(what, "network namespace "+s)
	}
	if _, err := os.Lstat(h.dir); err == nil {
		what = append(what, "folder "+h.dir)
	}
	return what, errors.Join(e1, e2, e3)
}

func commandOf(pid int) string {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return err.Error()
	}
	return string(bytes.ReplaceAll(bytes.TrimRight(raw, "\x00"), []byte{0}, []byte{' '}))
}

// killLimit is how long processes may take to be gone once they are killed.
const killLimit = 10 * time.Second

// remove takes away everything of the run, whatever of it there is.
func (h *host) remove(ctx context.Context) error {
	if err := h.killAll(); err != nil {
		return err
	}
	if h.wire != nil {
		if err := h.wire.close(); err != nil {
			return err
		}
		h.wire = nil
	}
	mounts, err := h.mounts()
	if err != nil {
		return err
	}
	for _, at := range mounts {
		if err := syscall.Unmount(at, 0); err != nil {
			return fmt.Errorf("unmount %s: %w", at, err)
		}
	}
	spaces, err := h.spaces()
	if err != nil {
		return err
	}
	for _, ns := range spaces {
		if err := command(ctx, "", "ip", "netns", "del", ns); err != nil {
			return err
		}
	}
	return os.RemoveAll(h.dir)
}

// killAll ends every process of the run and waits until it is gone.
func (h *host) killAll() error { return h.killThose(h.processes) }

func (h *host) killThose(which func() ([]int, error)) error {
	for until := time.Now().Add(killLimit); ; {
		pids, err := which()
		if err != nil || len(pids) == 0 {
			return err
		}
		for _, pid := range pids {
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
				return fmt.Errorf("kill %d: %w", pid, err)
			}
		}
		if time.Now().After(until) {
			return fmt.Errorf("%d processes of %s are still there", len(pids), h.id)
		}
		time.Sleep(20 * time.Millisecond) // the pause of a poll
	}
}
