package fogvm

import (
	"context"
	"net"
)

// hypervisor starts VMs that outlive the caller. dir is the VM's run directory,
// which exists; a hypervisor keeps nothing elsewhere but caches.
type hypervisor interface {
	// start prepares dir (a disk that is already there is kept) and launches.
	start(ctx context.Context, dir string, vm VM) (instance, error)
	// adopt finds the instance that runs in dir. ErrNotRunning: there is none,
	// and nothing of an earlier one is left but files in dir.
	adopt(ctx context.Context, dir string) (instance, error)
	// accel is what VMs run on, and a warning for the operator or "".
	accel() (name, warning string)
}

// instance is one VM that runs.
type instance interface {
	// watch delivers the status now and at changes. The channel is closed when
	// the VM has ended, after a last status whose Reason says why, or ctx is.
	watch(ctx context.Context) <-chan Status
	// open starts a dial or exec stream.
	open(ctx context.Context, req shimRequest) (net.Conn, error)
	// tell carries out a request that is answered by a word: authorize, secrets, hold.
	tell(ctx context.Context, req shimRequest) error
	// stop ends the VM in order, or at once when force is set, and returns when
	// nothing of it runs.
	stop(ctx context.Context, force bool) error
}
