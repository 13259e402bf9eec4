package fogvm

import (
	"errors"
	"fmt"
	"regexp"

	"github.com/formthefog/formation/fogvm/guest"
)

// Bounds of a VM.
const (
	MaxVCPU     = 128
	MinMemory   = 128 << 20
	MaxMemory   = 256000 << 20
	MinDisk     = 64 << 20
	MaxLogBytes = 4 << 20 // per log file; one predecessor of the same size is kept
)

var idPattern = regexp.MustCompile(`^[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}$`)

// Validate checks the bounds stated at VM's fields.
func (v *VM) Validate() error {
	switch {
	case !idPattern.MatchString(v.ID):
		return fmt.Errorf("VM ID %q: want 1 to 128 of [A-Za-z0-9._-], not starting with a dot", v.ID)
	case v.VCPU < 1 || v.VCPU > MaxVCPU:
		return fmt.Errorf("%d vCPUs: want 1 to %d", v.VCPU, MaxVCPU)
	case v.MemoryBytes < MinMemory || v.MemoryBytes > MaxMemory || v.MemoryBytes%(1<<20) != 0:
		return fmt.Errorf("%d bytes of memory: want whole MiB from 128 MiB to 256000 MiB", v.MemoryBytes)
	case v.DiskBytes < MinDisk || v.DiskBytes%4096 != 0 || v.DiskBytes > 1<<47:
		return fmt.Errorf("%d bytes of disk: want a multiple of 4096 from 64 MiB on", v.DiskBytes)
	case len(v.Lowers) < 1 || len(v.Lowers) > guest.MaxLowers:
		return fmt.Errorf("%d layers: want 1 to %d", len(v.Lowers), guest.MaxLowers)
	case v.Kernel == "" || v.Initrd == "":
		return errors.New("no kernel or no modules archive")
	case v.Guest.Init != "" && v.Guest.Init != guest.InitAgent:
		return fmt.Errorf("INIT %s is not supported on this host; use INIT agent", v.Guest.Init)
	}
	return nil
}
