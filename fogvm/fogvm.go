package fogvm

import (
	"errors"

	"log/slog"
	"net/netip"
	"time"

	"github.com/formthefog/formation/fogvm/guest"
)

// VM is one wanted virtual machine. It is plain data: two equal VMs are the
// same wish, and Sync of an unchanged VM does nothing.
type VM struct {
	// ID names the machine and its run directory, unique on this host:
	// "<instance>-<slot>". 1 to 128 characters of [A-Za-z0-9._-], not starting
	// with a dot.
	ID string `json:"id"`
	// Incarnation: when it changes the VM is recreated with an empty disk.
	Incarnation string `json:"incarnation"`
	// Run false stops the VM and keeps its disk.
	Run bool `json:"run"`
	// Restart: when it changes the VM is stopped and started, disk kept.
	Restart uint64 `json:"restart"`

	// Kernel is a bzImage, Initrd the base's cpio of kernel modules with its
	// load list (guest.ModuleList). Both are paths on this host, only read.
	Kernel string `json:"kernel"`
	Initrd string `json:"initrd"`
	// Lowers are squashfs images, topmost first, the root filesystem last;
	// 1 to guest.MaxLowers.
	Lowers []string `json:"lowers"`

	// VCPU is 1 to 128. MemoryBytes is 128 MiB to 256000 MiB and a multiple of
	// 1 MiB. DiskBytes is the exact size of the guest's writable disk, a
	// multiple of 4 KiB, at least 64 MiB; the file on the host is sparse.
	VCPU        int    `json:"vcpu"`
	MemoryBytes uint64 `json:"memory_bytes"`
	DiskBytes   uint64 `json:"disk_bytes"`

	// Fenced: it runs only while Manager.RunUntil lets it, and starts paused.
	Fenced bool `json:"fenced,omitempty"`

	Guest guest.Config `json:"guest"`

	// AwaitSecrets: the guest is not configured before it was given its secrets.
	AwaitSecrets bool `json:"await_secrets,omitempty"`
	// Secrets are what the guest finds in guest.SecretsDir before its entrypoint
	// starts, by name, and whenever they change. They are held in memory only, here
	// and in the shim. nil: not known, and a guest that runs keeps those it has.
	Secrets []guest.Secret `json:"-"`
}

// Phase is where a VM is in its life on this host.
type Phase string

// Phases of a VM.
const (
	Launching Phase = "launching" // being prepared or booting; not ready yet
	Running   Phase = "running"   // up; Ready says whether it serves
	Unhealthy Phase = "unhealthy" // up but failing; Reason says how
	Stopping  Phase = "stopping"
	Stopped   Phase = "stopped" // Run is false; the disk is kept
	Failed    Phase = "failed"  // not up, or given up; Reason says why. Retried with back-off while wanted, unless the entrypoint's own restart policy gave up
)

// Status is what is known of a VM.
type Status struct {
	ID          string `json:"id"`
	Incarnation string `json:"incarnation"`
	// Restart is the VM.Restart this run was started for.
	Restart uint64 `json:"restart"`
	Phase   Phase  `json:"phase"`
	Ready   bool   `json:"ready"`
	// Reason is for a user to read: "entrypoint exited with code 2: …".
	Reason string `json:"reason,omitempty"`
	// Accel is "kvm", "tcg" or "fake"; empty before the first launch.
	Accel string `json:"accel,omitempty"`
	// PID is QEMU's and ShimPID the shim's process; 0 when not running.
	PID     int `json:"pid,omitempty"`
	ShimPID int `json:"shim_pid,omitempty"`
	// Restarts counts the entrypoint's restarts since boot, Launches the starts
	// of this VM by this Manager.
	Restarts int `json:"restarts,omitempty"`
	Launches int `json:"launches,omitempty"`

	StartedAt time.Time `json:"started_at,omitzero"`
	// AgentAt is when the guest's agent first answered in this run.
	AgentAt time.Time `json:"agent_at,omitzero"`
	ReadyAt time.Time `json:"ready_at,omitzero"`

	// Fenced: the VM runs only before HeldUntil, which is counted from boot
	// (package boottime) and 0 when nothing is held.
	Fenced    bool          `json:"fenced,omitempty"`
	HeldUntil time.Duration `json:"held_until,omitempty"`

	SSHHostKey string `json:"ssh_host_key,omitempty"`
	MeshKey    string `json:"mesh_key,omitempty"`
	// MeshProblem is why the guest is not on the mesh, or what of its host's word
	// it does not believe.
	MeshProblem string `json:"mesh_problem,omitempty"`

	// Size is what the VM was last started with; its disk has it also while it is
	// stopped. Zero: nothing was started yet, or it is not known.
	Size Size `json:"size,omitzero"`
}

// Size is what a VM takes of its host.
type Size struct {
	VCPU        int    `json:"vcpu"`
	MemoryBytes uint64 `json:"memory_bytes"`
	DiskBytes   uint64 `json:"disk_bytes"`
}

// LogOptions select what Logs returns.
type LogOptions struct {
	// Console asks for the serial console instead of the entrypoint's output.
	Console bool
	// Tail is the number of last lines; 0 means everything kept (at most
	// 2 × MaxLogBytes), negative means none (only useful with Follow).
	Tail int
	// Follow keeps the reader open for new output until the context ends.
	Follow bool
}

// Driver names for Config.Driver.
const (
	DriverQEMU = "qemu"
	DriverFake = "fake"
)

// Config of a Manager.
type Config struct {
	// Dir holds one run directory per VM and the initramfs cache. It is made
	// with mode 0711 and may be deep: no socket path limit applies.
	Dir string
	// Accel is "auto" (also when empty), "kvm" or "tcg".
	Accel string
	// Driver is DriverQEMU (also when empty) or DriverFake.
	Driver string
	// ShimCommand is the argv prefix that starts a shim; the run directory is
	// appended. Required by DriverQEMU, e.g. {"/usr/bin/formd", "vm"}.
	ShimCommand []string
	// GuestBinary is the path of the static form-guest. Required by DriverQEMU.
	GuestBinary string
	// QEMU is the emulator's path or name; empty means qemu-system-x86_64.
	QEMU string
	// User is the numeric "uid" or "uid:gid" QEMU runs as when this process is
	// root; empty means one unprivileged number per VM. Ignored without root.
	User string
	// Fake scripts the fake driver; nil means instantly ready VMs.
	Fake *Fake
	// Backoff is the first delay before a VM that died is relaunched; it doubles
	// up to 64 times this. 0 means 1 s.
	Backoff time.Duration
	// StopTimeout is how long a guest may take to shut down before it is
	// killed; 0 means 20 s.
	StopTimeout time.Duration
	// Egress are networks that guests reach beside the public internet. Without
	// them they reach no private, shared or link-local network, nothing of this
	// machine and nothing that is on a wire with it; loopback never. A VM keeps
	// what it was launched with.
	Egress []netip.Prefix
	Logger *slog.Logger
}

// Errors of Dial, Exec and Logs.
var (
	// ErrNotFound: no VM of that ID is known here.
	ErrNotFound = errors.New("no such VM on this host")
	// ErrNotRunning: the VM is known and not up.
	ErrNotRunning = errors.New("VM is not running")
)
