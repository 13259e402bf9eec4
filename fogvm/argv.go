package fogvm

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/containers/podman/v5/pkg/machine/qemu/command"

	"github.com/formthefog/formation/fogvm/guest"
)

// descriptors are the file descriptors QEMU inherits. Nothing of a VM is
// reached by path: so QEMU needs no rights on any folder, no socket can be
// connected to by others, and no path length limits apply.
type descriptors struct {
	qmp, console, agent, nic int
	kernel, initrd, disk     int
	lowers                   []int // as VM.Lowers
}

// macAddress is the same for every guest: each shim's network has exactly one.
const macAddress = "5a:94:ef:e4:0c:ee"

// kernelArgs are the guest kernel's command line, for every guest the same.
//
//   - quiet: each console line costs an exit, thousands of them seconds under
//     emulation. Errors still show.
//   - panic=-1 with -no-reboot ends QEMU when the kernel panics.
//   - net.ifnames=0 needs no udev; 8250.nr_uarts=1 probes one port, not four.
//   - no_timer_check, tsc=reliable: QEMU's timers need no proving.
//   - i8042.*: there is no keyboard controller to wait for.
//   - random.trust_cpu with virtio-rng: sshd's keys need no wait for entropy.
const kernelArgs = "console=ttyS0 quiet panic=-1 rdinit=/init net.ifnames=0 " +
	"8250.nr_uarts=1 no_timer_check tsc=reliable rcupdate.rcu_expedited=1 " +
	"i8042.noaux i8042.nomux i8042.nopnp i8042.dumbkbd random.trust_cpu=on"

// sandbox is what QEMU denies itself. elevateprivileges=deny rules out -runas,
// so credentials are dropped before QEMU starts.
const sandbox = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"

// qemuArgv is the emulator's command line: a pure function of its arguments.
// accel is "kvm" or "tcg".
func qemuArgv(qemu, accel string, vm VM, fd descriptors) []string {
	cpu, acceleration := "host", "kvm"
	if accel == "tcg" {
		cpu, acceleration = "max", "tcg,thread=multi,tb-size="+strconv.Itoa(translationBuffer>>20)
	}
	q := command.NewQemuBuilder(qemu, []string{
		"-name", "guest=" + vm.ID,
		"-nodefaults", "-no-user-config", "-no-reboot",
		"-machine", "q35,usb=off,vmport=off,smbus=off,sata=off,graphics=off,dump-guest-core=off",
		"-accel", acceleration,
		"-cpu", cpu,
		"-m", fmt.Sprintf("%dM", vm.MemoryBytes>>20),
		"-rtc", "base=utc",
		"-sandbox", sandbox,
		"-kernel", fmt.Sprintf("/proc/self/fd/%d", fd.kernel),
		"-initrd", fmt.Sprintf("/proc/self/fd/%d", fd.initrd),
		"-append", kernelArgs,
	})
	q.SetCPUs(uint64(vm.VCPU))
	q.SetDisplay("none")
	args := q.Build()
	if vm.Fenced {
		args = append(args, "-S") // its shim sets it going
	}
	add := func(option string, parts ...string) { args = append(args, option, strings.Join(parts, ",")) }

	add("-chardev", "socket", "id=qmp", fmt.Sprintf("fd=%d", fd.qmp))
	add("-mon", "chardev=qmp", "mode=control")
	add("-chardev", "socket", "id=console", fmt.Sprintf("fd=%d", fd.console))
	add("-serial", "chardev:console")
	add("-device", "virtio-serial-pci", "max_ports=2")
	add("-chardev", "socket", "id=agent", fmt.Sprintf("fd=%d", fd.agent))
	add("-device", "virtserialport", "chardev=agent", "name="+guest.PortName)
	add("-device", "virtio-rng-pci")
	add("-netdev", "socket", "id=nic", fmt.Sprintf("fd=%d", fd.nic))
	add("-device", "virtio-net-pci", "netdev=nic", "mac="+macAddress, "romfile=")
	for i, f := range fd.lowers {
		args = append(args, drive(guest.LayerSerial(i), f, i+1, true, layerAddress(i))...)
	}
	return append(args, drive(guest.DiskSerial, fd.disk, len(fd.lowers)+1, false, "")...)
}

// layerAddress packs eight layers into a PCI slot: the bus has 32 slots, and a
// pack may have more layers than that.
func layerAddress(i int) string {
	const firstSlot = 0x10
	return fmt.Sprintf(",multifunction=on,addr=%#x.%d", firstSlot+i/8, i%8)
}

// drive is one virtio disk on an inherited descriptor.
func drive(serial string, fd, set int, readonly bool, address string) []string {
	// A disk that the host has no room for pauses the VM (see keepRunning): told
	// of it, the guest would lose the write.
	options, onError := "discard=unmap", ",werror=enospc,rerror=report"
	if readonly {
		options, onError = "read-only=on", ""
	}
	return []string{
		"-add-fd", fmt.Sprintf("fd=%d,set=%d", fd, set),
		"-blockdev", fmt.Sprintf("driver=raw,node-name=%s,%s,file.driver=file,file.filename=/dev/fdset/%d", serial, options, set),
		"-device", fmt.Sprintf("virtio-blk-pci,drive=%s,serial=%s%s%s", serial, serial, address, onError),
	}
}
