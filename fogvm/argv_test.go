package fogvm

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// TestArgvGolden: the whole command line, one argument a line, for review.
func TestArgvGolden(t *testing.T) {
	vm := VM{ID: "web-0", VCPU: 4, MemoryBytes: 640 << 20, DiskBytes: 5 << 30, Lowers: []string{"/s/layer", "/s/modules", "/s/rootfs"}}
	fd := descriptors{qmp: 3, console: 4, agent: 5, nic: 6, kernel: 7, initrd: 8, disk: 9, lowers: []int{10, 11, 12}}
	for _, accel := range []string{"kvm", "tcg"} {
		got := strings.Join(qemuArgv("/usr/bin/qemu-system-x86_64", accel, vm, fd), "\n") + "\n"
		golden := filepath.Join("testdata", "argv-"+accel+".txt")
		if *update {
			if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(golden)
		if err != nil {
			t.Fatal(err)
		}
		if got != string(want) {
			t.Errorf("%s: got\n%s\nwant\n%s", golden, got, want)
		}
	}
}

// TestArgvHasNoPaths: QEMU is given descriptors only, so it needs rights on no
// folder of the host.
func TestArgvHasNoPaths(t *testing.T) {
	vm := VM{ID: "web-0", VCPU: 1, MemoryBytes: 128 << 20, Kernel: "/secret/k", Initrd: "/secret/i", Lowers: []string{"/secret/l"}}
	for _, arg := range qemuArgv("qemu", "tcg", vm, descriptors{lowers: []int{9}}) {
		if strings.Contains(arg, "/secret") {
			t.Errorf("path in %q", arg)
		}
	}
}
