package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/formthefog/formation/fogvm"
	"github.com/formthefog/formation/fogvm/guest"
	"github.com/formthefog/formation/store"
)

func init() {
	register(measurement{
		Figures: []figure{
			{Name: "vm-boot-ratio", Unit: "x", Target: 1.15, AtMost: true},
			{Name: "vm-boot", Unit: "s", Target: 15, AtMost: true},
		},
		Rounds: 3,
		Run:    benchBoot,
	})
}

// benchBoot times a VM from the wish for it (disk, initramfs, shim and all) to
// its agent's hello, and the same kernel and initramfs under a QEMU command as
// one would type it.
func benchBoot(ctx context.Context, e *env) (map[string]float64, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	vm, err := benchVM(ctx, e)
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(e.Dir, "vms")
	managed, accel, err := bootManaged(ctx, e, dir, vm)
	if err != nil {
		return nil, err
	}
	found, err := filepath.Glob(filepath.Join(dir, ".cache", "initramfs-*"))
	if err != nil || len(found) != 1 {
		return nil, fmt.Errorf("initramfs: found %v, %w", found, err)
	}
	bare, err := bootBare(ctx, e, vm, found[0], accel)
	if err != nil {
		return nil, err
	}
	e.logf("vm-boot (%s): managed %s, bare %s", accel, managed.Round(time.Millisecond), bare.Round(time.Millisecond))
	return map[string]float64{"vm-boot-ratio": managed.Seconds() / bare.Seconds(), "vm-boot": managed.Seconds()}, nil
}

// benchVM is a small VM of the base: of the folder FORMATION_VM_BASE (vmlinuz,
// modules.cpio, rootfs.sqfs) or of the base's CAR.
func benchVM(ctx context.Context, e *env) (fogvm.VM, error) {
	vm := fogvm.VM{ID: "bench-0", Incarnation: "1", Run: true, VCPU: 1, MemoryBytes: 512 << 20, DiskBytes: 1 << 30,
		Guest: guest.Config{Hostname: "bench"}}
	if dir := os.Getenv("FORMATION_VM_BASE"); dir != "" {
		vm.Kernel, vm.Initrd = filepath.Join(dir, "vmlinuz"), filepath.Join(dir, "modules.cpio")
		vm.Lowers = []string{filepath.Join(dir, "rootfs.sqfs")}
		return vm, nil
	}
	if e.BaseCAR == "" {
		return vm, errors.New("no base: set FORMATION_BASE to its CAR (make base)")
	}
	st, err := store.Open(store.Config{Dir: filepath.Join(e.Dir, "store"), Logger: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err != nil {
		return vm, err
	}
	defer st.Close()
	f, err := os.Open(e.BaseCAR)
	if err != nil {
		return vm, err
	}
	defer f.Close()
	root, err := st.Import(ctx, f)
	if err != nil {
		return vm, err
	}
	base, err := st.Base(ctx, root)
	if err != nil {
		return vm, err
	}
	var lowers [2]string
	for _, p := range []struct {
		into  *string
		entry store.Entry
	}{{&vm.Kernel, base.Kernel}, {&vm.Initrd, base.Initrd}, {&lowers[0], base.Modules}, {&lowers[1], base.Rootfs}} {
		if *p.into, err = st.Path(p.entry); err != nil {
			return vm, err
		}
	}
	vm.Lowers = lowers[:]
	return vm, nil
}

func bootManaged(ctx context.Context, e *env, dir string, vm fogvm.VM) (took time.Duration, accel string, err error) {
	m, err := fogvm.New(fogvm.Config{Dir: dir, ShimCommand: []string{filepath.Join(e.Bin, "formd"), "vm"},
		GuestBinary: filepath.Join(e.Bin, "form-guest"), Logger: slog.New(slog.NewTextHandler(e.Log, &slog.HandlerOptions{Level: slog.LevelWarn}))})
	if err != nil {
		return 0, "", err
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	defer func() {
		cancel()
		err = errors.Join(err, <-done)
	}()
	start := time.Now()
	if err := m.Sync(ctx, []fogvm.VM{vm}); err != nil {
		return 0, "", err
	}
	s, err := awaitVM(ctx, m, func(s *fogvm.Status) bool { return s != nil && (!s.AgentAt.IsZero() || s.Phase == fogvm.Failed) })
	if err == nil && s.AgentAt.IsZero() {
		err = errors.New(s.Reason)
	}
	if err != nil {
		return 0, "", fmt.Errorf("managed boot: %w", err)
	}
	took, accel = s.AgentAt.Sub(start), s.Accel
	if err := m.Sync(ctx, nil); err != nil {
		return 0, "", err
	}
	_, err = awaitVM(ctx, m, func(s *fogvm.Status) bool { return s == nil })
	return took, accel, err
}

// awaitVM waits until cond holds for the only VM; nil when there is none.
func awaitVM(ctx context.Context, m *fogvm.Manager, cond func(*fogvm.Status) bool) (fogvm.Status, error) {
	for {
		var s *fogvm.Status
		if list := m.List(); len(list) > 0 {
			s = &list[0]
		}
		if cond(s) {
			if s == nil {
				return fogvm.Status{}, nil
			}
			return *s, nil
		}
		select {
		case <-ctx.Done():
			return fogvm.Status{}, ctx.Err()
		case <-m.Changed():
		}
	}
}

// bootBare times the plain command. Its writable disk is made beforehand: a
// person has one lying ready.
func bootBare(ctx context.Context, e *env, vm fogvm.VM, initramfs, accel string) (time.Duration, error) {
	disk := filepath.Join(e.Dir, "bare.raw")
	if err := os.WriteFile(disk, nil, 0o600); err != nil {
		return 0, err
	}
	if err := os.Truncate(disk, int64(vm.DiskBytes)); err != nil {
		return 0, err
	}
	if out, err := exec.CommandContext(ctx, "mkfs.ext4", "-q", "-F", disk).CombinedOutput(); err != nil {
		return 0, fmt.Errorf("mkfs.ext4: %w: %s", err, out)
	}
	socket := filepath.Join(e.Dir, "agent")
	l, err := net.Listen("unix", socket)
	if err != nil {
		return 0, err
	}
	defer l.Close()
	cpu := map[string]string{"kvm": "host", "tcg": "max"}[accel]
	argv := []string{"-nodefaults", "-nographic", "-machine", "q35", "-accel", accel, "-cpu", cpu,
		"-m", fmt.Sprintf("%dM", vm.MemoryBytes>>20), "-smp", fmt.Sprint(vm.VCPU),
		"-kernel", vm.Kernel, "-initrd", initramfs, "-append", "console=ttyS0 quiet", "-serial", "file:" + filepath.Join(e.Dir, "console"),
		"-device", "virtio-serial-pci", "-chardev", "socket,id=agent,path=" + socket, "-device", "virtserialport,chardev=agent,name=" + guest.PortName,
		"-drive", "if=none,id=disk,format=raw,file=" + disk, "-device", "virtio-blk-pci,drive=disk,serial=" + guest.DiskSerial}
	for i, path := range vm.Lowers {
		id := guest.LayerSerial(i)
		argv = append(argv, "-drive", "if=none,readonly=on,format=raw,id="+id+",file="+path, "-device", "virtio-blk-pci,drive="+id+",serial="+id)
	}
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", argv...)
	var said strings.Builder
	cmd.Stderr = &said
	start := time.Now()
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	defer func() {
		// Killed on purpose: how it ended is not news.
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	c, err := l.Accept()
	if err != nil {
		return 0, fmt.Errorf("bare boot: %w %s", err, said.String())
	}
	agent, err := guest.Connect(ctx, c)
	if err != nil {
		return 0, fmt.Errorf("bare boot: %w %s", err, said.String())
	}
	took := time.Since(start)
	return took, agent.Close()
}
