// Package fogvm runs virtual machines and keeps them as they are wanted.
//
// A Manager is given the whole set of wanted VMs with Sync and closes the gap
// in the background: it prepares disks and the initramfs, starts one shim
// process per VM (RunShim, the body of `formd vm DIR`), follows it, relaunches
// what dies, and stops and deletes what is not wanted any more. The shim owns
// QEMU, the VM's user-mode network, its console and log files and the control
// channel, and serves them on a unix socket in the VM's run directory.
//
// Guarantees:
//   - Sync is idempotent. Two VMs with different IDs never share a disk.
//   - VMs outlive the Manager: a new one finds them by their run directories
//     and adopts them without a reboot. A run directory whose shim is gone is
//     cleaned before it is used again.
//   - A shim that dies takes its QEMU with it (parent-death signal).
//   - VCPU and MemoryBytes are what QEMU is given, DiskBytes is the exact size
//     of the guest's block device.
//   - Stop asks the guest's agent, then presses the ACPI power button, then
//     sends SIGTERM, then SIGKILL, each after a stated time.
//   - After a VM is deleted no process, socket, disk, cgroup or folder of it
//     is left.
//
// Non-guarantees: cgroups are best effort (without a writable hierarchy whose
// memory, cpu and pids controllers can be had the VM runs without those limits,
// and the shim's log says so); VMs of the fake driver end with
// the process; a guest is never trusted, but a hypervisor escape is bounded
// only by QEMU's sandbox and its unprivileged user.
package fogvm
