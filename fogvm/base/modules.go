package base

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/u-root/u-root/pkg/cpio"
)

// drivers are loaded by the guest before its root is mounted: the bus, disk,
// network, control channel and entropy of the machine fogvm describes, the file
// systems of the root, and the power button. All else is loaded on demand from
// the mounted modules.
var drivers = []string{
	"virtio_ring", "virtio", "virtio_pci", "virtio_blk", "virtio_net",
	"virtio_console", "virtio_rng", "squashfs", "overlay", "button", "evdev",
}

// builtIn are options a guest relies on without loading anything.
var builtIn = []string{
	"CONFIG_EXT4_FS", "CONFIG_DEVTMPFS", "CONFIG_SQUASHFS_ZSTD", "CONFIG_SQUASHFS_XATTR",
	"CONFIG_UNIX", "CONFIG_INET", "CONFIG_IPV6", "CONFIG_CRYPTO_CRC32C", "CONFIG_ACPI", "CONFIG_SERIAL_8250_CONSOLE",
}

// checkConfig refuses a kernel that a guest could not boot with.
func checkConfig(file string) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("base: kernel configuration: %w", err)
	}
	lines := strings.Split(string(data), "\n")
	for _, option := range builtIn {
		if !slices.Contains(lines, option+"=y") {
			return fmt.Errorf("base: this kernel has no built-in %s", option)
		}
	}
	return nil
}

// moduleIndex is a kernel's modules.dep and modules.builtin. Names are as
// modprobe sees them: "-" and "_" are one.
type moduleIndex struct {
	file    map[string]string   // name → path below the release's folder
	needs   map[string][]string // name → names, in no useful order
	builtin map[string]bool
}

func moduleName(file string) string {
	return strings.ReplaceAll(strings.TrimSuffix(path.Base(file), ".ko"), "-", "_")
}

// parseModules reads modules.dep ("path: dep dep") and modules.builtin (a path a
// line).
func parseModules(dep, builtin io.Reader) (*moduleIndex, error) {
	ix := &moduleIndex{file: map[string]string{}, needs: map[string][]string{}, builtin: map[string]bool{}}
	lines := bufio.NewScanner(dep)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		file, deps, ok := strings.Cut(lines.Text(), ":")
		if !ok || !strings.HasSuffix(file, ".ko") {
			return nil, fmt.Errorf("modules.dep: %q is not a plain module", lines.Text())
		}
		name := moduleName(file)
		ix.file[name] = file
		for _, d := range strings.Fields(deps) {
			ix.needs[name] = append(ix.needs[name], moduleName(d))
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("modules.dep: %w", err)
	}
	lines = bufio.NewScanner(builtin)
	for lines.Scan() {
		ix.builtin[moduleName(lines.Text())] = true
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("modules.builtin: %w", err)
	}
	return ix, nil
}

// loadOrder gives the files of wanted and all they need, each after what it
// needs. modules.dep lists a module's whole closure, but in no order that can be
// relied on, so the order is found here.
func (ix *moduleIndex) loadOrder(wanted []string) ([]string, error) {
	var order []string
	const visiting, done = 1, 2
	state := map[string]int{}
	var visit func(name string) error
	visit = func(name string) error {
		if ix.builtin[name] || state[name] == done {
			return nil
		}
		file, ok := ix.file[name]
		if !ok {
			return fmt.Errorf("the kernel has no module %s", name)
		}
		if state[name] == visiting {
			return fmt.Errorf("module %s needs itself", name)
		}
		state[name] = visiting
		for _, need := range ix.needs[name] {
			if err := visit(need); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
		state[name] = done
		order = append(order, file)
		return nil
	}
	for _, name := range wanted {
		if err := visit(name); err != nil {
			return nil, err
		}
	}
	return order, nil
}

// writeInitrd writes the newc archive that follows the guest's own in an
// initramfs: /lib/modules/NAME.ko, and /lib/modules/load with one absolute path
// a line in load order. Its bytes depend on the modules alone.
func writeInitrd(image, release string) error {
	dep, err := os.Open(filepath.Join(release, "modules.dep"))
	if err != nil {
		return fmt.Errorf("base: initrd: %w", err)
	}
	defer dep.Close()
	builtin, err := os.Open(filepath.Join(release, "modules.builtin"))
	if err != nil {
		return fmt.Errorf("base: initrd: %w", err)
	}
	defer builtin.Close()
	ix, err := parseModules(dep, builtin)
	if err != nil {
		return fmt.Errorf("base: initrd: %w", err)
	}
	order, err := ix.loadOrder(drivers)
	if err != nil {
		return fmt.Errorf("base: initrd: %w", err)
	}
	records, err := initrdRecords(release, order)
	if err != nil {
		return fmt.Errorf("base: initrd: %w", err)
	}
	f, err := os.OpenFile(image, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("base: initrd: %w", err)
	}
	w := cpio.Newc.Writer(f)
	err = cpio.WriteRecords(w, records)
	if err == nil {
		err = cpio.WriteTrailer(w)
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return fmt.Errorf("base: initrd: %w", err)
	}
	return nil
}

func initrdRecords(release string, order []string) ([]cpio.Record, error) {
	records := []cpio.Record{cpio.Directory("lib", 0o755), cpio.Directory("lib/modules", 0o755)}
	var load strings.Builder
	for _, file := range order {
		data, err := os.ReadFile(filepath.Join(release, file))
		if err != nil {
			return nil, err
		}
		name := "lib/modules/" + path.Base(file)
		records = append(records, cpio.StaticFile(name, string(data), 0o644))
		load.WriteString("/" + name + "\n")
	}
	records = append(records, cpio.StaticFile("lib/modules/load", load.String(), 0o644))
	for i := range records {
		records[i] = cpio.MakeReproducible(records[i])
		records[i].Ino = uint64(i + 1) // equal numbers would read as hard links
	}
	return records, nil
}
