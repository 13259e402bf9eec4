package fogvm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// kvmDevice is what KVM is reached by.
const kvmDevice = "/dev/kvm"

// errKVMDenied: the device is there and not for QEMU's user.
var errKVMDenied = errors.New("not open to QEMU's user")

// detectAccel resolves "auto" (or ""), "kvm" or "tcg"; try runs a machine on
// KVM. The warning, if any, is for the operator.
func detectAccel(want string, try func() error) (accel, warning string, err error) {
	switch want {
	case "tcg":
		return "tcg", "", nil
	case "", "auto", "kvm":
	default:
		return "", "", fmt.Errorf("accel %q: want auto, kvm or tcg", want)
	}
	err = try()
	switch {
	case err == nil:
		return "kvm", "", nil
	case want == "kvm":
		return "", "", fmt.Errorf("accel kvm was asked for: %w", err)
	case errors.Is(err, fs.ErrNotExist):
		return "tcg", "slow: TCG (no " + kvmDevice + " on this machine)", nil
	case errors.Is(err, fs.ErrPermission):
		return "tcg", "slow: TCG (" + kvmDevice + " is not readable; remedy: sudo usermod -aG kvm \"$USER\", then log in again)", nil
	case errors.Is(err, errKVMDenied):
		return "tcg", "slow: TCG (" + kvmDevice + " is not open to QEMU's user; remedy: sudo chgrp kvm " + kvmDevice + " && sudo chmod 660 " + kvmDevice + ")", nil
	}
	return "tcg", fmt.Sprintf("slow: TCG (%v)", err), nil
}

// kvmProbeTime is how long the smallest machine may take; with a working KVM it
// takes 0.1 s.
const kvmProbeTime = 10 * time.Second

// kvmProbeDone is QEMU's exit status when the probe's ROM ran: twice what it
// writes to the exit device, plus one.
const kvmProbeDone = probeValue<<1 | 1

const (
	probePort  = 0xf4
	probeValue = 0x10
)

// probeROM is firmware that does nothing but tell the exit device so.
func probeROM() []byte {
	const size, resetVector = 64 << 10, 0xfff0
	rom := make([]byte, size)
	copy(rom[resetVector:], []byte{
		0xba, probePort, 0x00, // mov dx, probePort
		0xb0, probeValue, //      mov al, probeValue
		0xee, //                  out dx, al
		0xf4, //                  hlt
	})
	return rom
}

// tryKVM runs a machine on KVM, with the CPU that VMs get and as the user that
// QEMU gets: a device that can be opened need not be of use (nested KVM that
// lacks what QEMU's host CPU needs, a device for root alone).
func tryKVM(qemu string, uid, gid uint32) error {
	f, err := os.OpenFile(kvmDevice, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	binary, err := exec.LookPath(qemu)
	if err != nil {
		return nil // nothing to try it with: launching will say so
	}
	fd, err := unix.MemfdCreate("probe", unix.MFD_CLOEXEC)
	if err != nil {
		return fmt.Errorf("memfd: %w", err)
	}
	rom := os.NewFile(uintptr(fd), "probe")
	defer rom.Close()
	if _, err := rom.Write(probeROM()); err != nil {
		return fmt.Errorf("probe: %w", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), kvmProbeTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
		"-machine", "q35", "-accel", "kvm", "-cpu", "host", "-m", "16M", "-bios", "/proc/self/fd/3",
		"-device", fmt.Sprintf("isa-debug-exit,iobase=%#x,iosize=1", probePort))
	cmd.Dir, cmd.ExtraFiles = "/", []*os.File{rom}
	cmd.SysProcAttr = qemuUser(uid, gid, "kvm")
	out, err := cmd.CombinedOutput()
	switch {
	case cmd.ProcessState != nil && cmd.ProcessState.ExitCode() == kvmProbeDone:
		return nil
	case ctx.Err() != nil:
		return fmt.Errorf("%s runs no machine: no answer in %v", kvmDevice, kvmProbeTime)
	case strings.Contains(string(out), "Permission denied"):
		return errKVMDenied
	}
	return fmt.Errorf("%s runs no machine: %s", kvmDevice, lastLine(strings.TrimSpace(string(out)), fmt.Sprint(err)))
}

// qemuUser drops QEMU's credentials; uid 0 keeps them.
func qemuUser(uid, gid uint32, accel string) *syscall.SysProcAttr {
	attr := &syscall.SysProcAttr{}
	if uid != 0 {
		attr.Credential = &syscall.Credential{Uid: uid, Gid: gid, Groups: kvmGroups(accel)}
	}
	return attr
}

// kvmGroups is the group that owns the KVM device, which QEMU opens by path.
// Root's group would give more than that.
func kvmGroups(accel string) []uint32 {
	if accel != "kvm" {
		return nil
	}
	var st unix.Stat_t
	if err := unix.Stat(kvmDevice, &st); err != nil || st.Gid == 0 {
		return nil
	}
	return []uint32{st.Gid}
}
