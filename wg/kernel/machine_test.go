//go:build linux

package kernel

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/u-root/u-root/pkg/cpio"
	"golang.org/x/sys/unix"
)

// TestMain is also the first process of a virtual machine, which has the kernel
// that this machine may lack; the tests run there as they do here.
func TestMain(m *testing.M) {
	if _, ok := os.LookupEnv(victim); ok {
		beVictim()
		return
	}
	if os.Getpid() != 1 {
		os.Exit(m.Run())
	}
	code := 1
	if err := prepare(); err != nil {
		fmt.Println("prepare the machine:", err)
	} else {
		flag.Parse()
		if err := errors.Join(flag.Set("test.run", inMachine), flag.Set("test.v", "true"), flag.Set("rapid.checks", "30")); err != nil {
			fmt.Println(err)
		}
		code = m.Run()
	}
	fmt.Printf("%s%d\n", endMark, code)
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF) // or QEMU is killed
}

const (
	inMachine = "^(TestDeviceConforms|TestOpenAgain|TestNamesOfOthersStay|TestApart|TestApartIsSwept)$"
	endMark   = "the tests ended with "
	modules   = "/modules"
)

// prepare mounts what the runtime reads, and loads the modules in order.
func prepare() error {
	for _, m := range []struct{ kind, at string }{{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}} {
		if err := os.MkdirAll(m.at, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.kind, m.at, m.kind, 0, ""); err != nil && !errors.Is(err, unix.EBUSY) {
			return err
		}
	}
	list, err := os.ReadDir(modules) // sorted
	if err != nil {
		return err
	}
	for _, e := range list {
		f, err := os.Open(path.Join(modules, e.Name()))
		if err != nil {
			return err
		}
		err = unix.FinitModule(int(f.Fd()), "", 0)
		f.Close()
		if err != nil && !errors.Is(err, unix.ENODEV) { // of a processor without some instruction
			return fmt.Errorf("%s: %w", e.Name(), err)
		}
	}
	return nil
}

// The tests on Debian's kernel, which has WireGuard. FORMATION_VM_BASE is as for
// the tests of fogvm, with modules.sqfs.
func TestInAVirtualMachine(t *testing.T) {
	base := os.Getenv("FORMATION_VM_BASE")
	if base == "" {
		t.Skip("set FORMATION_VM_BASE to a folder with vmlinuz and modules.sqfs")
	}
	dir := t.TempDir()
	initrd := filepath.Join(dir, "initrd")
	if err := os.WriteFile(initrd, initramfs(t, base, dir), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, "qemu-system-x86_64", "-accel", "tcg", "-cpu", "max", "-m", "256", "-display", "none", "-serial", "stdio", "-nodefaults", "-no-reboot",
		"-kernel", filepath.Join(base, "vmlinuz"), "-initrd", initrd, "-append", "console=ttyS0 quiet panic=-1 rdinit=/init").CombinedOutput()
	t.Logf("%s", out)
	if err != nil || !bytes.Contains(out, []byte(endMark+"0")) || bytes.Contains(out, []byte("--- SKIP")) || bytes.Count(out, []byte("--- PASS")) != 5 {
		t.Errorf("qemu: %v", err)
	}
}

// initramfs has this test as its first process, and the modules that it needs.
func initramfs(t *testing.T, base, dir string) []byte {
	t.Helper()
	binary := filepath.Join(dir, "init")
	build := exec.CommandContext(t.Context(), "go", "test", "-c", "-ldflags=-s -w", "-o", binary, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v: %s", err, out)
	}
	code, err := os.ReadFile(binary)
	if err != nil {
		t.Fatal(err)
	}
	records := []cpio.Record{cpio.Directory("dev", 0o755), cpio.CharDev("dev/console", 0o600, 5, 1), cpio.Directory(modules[1:], 0o755), cpio.StaticFile("init", string(code), 0o755)}
	for i, m := range needed(t, base, dir) {
		code, err := os.ReadFile(m)
		if err != nil {
			t.Fatal(err)
		}
		records = append(records, cpio.StaticFile(fmt.Sprintf("%s/%02d-%s", modules[1:], i, filepath.Base(m)), string(code), 0o644))
	}
	var b bytes.Buffer
	w := cpio.Newc.Writer(&b)
	if err := cpio.WriteRecords(w, records); err != nil {
		t.Fatal(err)
	}
	if err := cpio.WriteTrailer(w); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// loaded are the modules that tests need, beside those that these need.
var loaded = []string{"wireguard.ko", "veth.ko", "sch_ingress.ko", "cls_u32.ko", "act_gact.ko"}

// needed unpacks those of the base's modules that are needed, and lists them in the
// order in which they load.
func needed(t *testing.T, base, dir string) (out []string) {
	t.Helper()
	image, tree := filepath.Join(base, "modules.sqfs"), filepath.Join(dir, "tree")
	unsquash := func(args ...string) string {
		t.Helper()
		text, err := exec.CommandContext(t.Context(), "unsquashfs", args...).Output()
		if err != nil {
			t.Fatalf("unsquashfs: %v", err)
		}
		return string(text)
	}
	release := ""
	for line := range strings.Lines(unsquash("-n", "-l", image)) {
		if name, ok := strings.CutSuffix(strings.TrimSpace(line), "/modules.dep"); ok {
			_, release, _ = strings.Cut(name, "/")
		}
	}
	var files []string
	for line := range strings.Lines(unsquash("-cat", image, release+"/modules.dep")) {
		name, deps, _ := strings.Cut(strings.TrimSpace(line), ":")
		if !slices.Contains(loaded, path.Base(name)) {
			continue
		}
		all := append([]string{name}, strings.Fields(deps)...)
		slices.Reverse(all) // what is listed last needs nothing
		for _, m := range all {
			if m = path.Join(release, m); !slices.Contains(files, m) {
				files = append(files, m)
			}
		}
	}
	unsquash(append([]string{"-n", "-no-xattrs", "-d", tree, image}, files...)...)
	for _, f := range files {
		out = append(out, filepath.Join(tree, f))
	}
	return out
}
