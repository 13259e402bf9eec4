package fogvm

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/u-root/u-root/pkg/cpio"

	"github.com/formthefog/formation/fogvm/guest"
)

func TestValidate(t *testing.T) {
	good := VM{ID: "a-0", Kernel: "k", Initrd: "i", Lowers: []string{"l"}, VCPU: 1, MemoryBytes: 128 << 20, DiskBytes: 64 << 20}
	if err := good.Validate(); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*VM){
		"empty id":          func(v *VM) { v.ID = "" },
		"path in id":        func(v *VM) { v.ID = "../etc" },
		"dot id":            func(v *VM) { v.ID = ".cache" },
		"comma in id":       func(v *VM) { v.ID = "a,readonly=off" },
		"no cpu":            func(v *VM) { v.VCPU = 0 },
		"too many cpus":     func(v *VM) { v.VCPU = 129 },
		"little memory":     func(v *VM) { v.MemoryBytes = 127 << 20 },
		"part of a MiB":     func(v *VM) { v.MemoryBytes++ },
		"no disk":           func(v *VM) { v.DiskBytes = 0 },
		"odd disk":          func(v *VM) { v.DiskBytes += 512 },
		"no rootfs":         func(v *VM) { v.Lowers = nil },
		"too many lowers":   func(v *VM) { v.Lowers = make([]string, guest.MaxLowers+1) },
		"no kernel":         func(v *VM) { v.Kernel = "" },
		"systemd":           func(v *VM) { v.Guest.Init = "systemd" },
		"too much memory":   func(v *VM) { v.MemoryBytes = MaxMemory + 1<<20 },
		"newline in the id": func(v *VM) { v.ID = "a\nb" },
	} {
		v := good
		change(&v)
		if v.Validate() == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestDetectAccel(t *testing.T) {
	broken := errors.New("/dev/kvm runs no machine: MSR")
	for _, c := range []struct {
		want    string
		try     error
		accel   string
		warning string // part of it
		fails   bool
	}{
		{"auto", nil, "kvm", "", false},
		{"", nil, "kvm", "", false},
		{"kvm", nil, "kvm", "", false},
		{"tcg", nil, "tcg", "", false},
		{"auto", fs.ErrNotExist, "tcg", "no /dev/kvm", false},
		{"auto", fs.ErrPermission, "tcg", "usermod -aG kvm", false},
		{"auto", errKVMDenied, "tcg", "chgrp kvm /dev/kvm", false},
		{"auto", broken, "tcg", "MSR", false},
		{"kvm", fs.ErrNotExist, "", "", true},
		{"kvm", broken, "", "", true},
		{"xen", nil, "", "", true},
	} {
		accel, warning, err := detectAccel(c.want, func() error { return c.try })
		if accel != c.accel || !strings.Contains(warning, c.warning) || (warning == "") != (c.warning == "") || (err != nil) != c.fails {
			t.Errorf("detectAccel(%q) after %v = %q, %q, %v", c.want, c.try, accel, warning, err)
		}
	}
}

// The probe's ROM runs: here on TCG, which every machine has.
func TestProbeROM(t *testing.T) {
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		t.Skip("no QEMU here: scripts/setup.sh installs it")
	}
	rom := filepath.Join(t.TempDir(), "rom")
	if err := os.WriteFile(rom, probeROM(), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("qemu-system-x86_64", "-nodefaults", "-no-reboot", "-display", "none", "-machine", "q35",
		"-accel", "tcg", "-m", "16M", "-bios", rom, "-device", fmt.Sprintf("isa-debug-exit,iobase=%#x,iosize=1", probePort))
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil || cmd.ProcessState.ExitCode() != kvmProbeDone {
		t.Errorf("%v: %s", err, out)
	}
}

func TestInitramfs(t *testing.T) {
	dir := t.TempDir()
	binary, modules := filepath.Join(dir, "form-guest"), filepath.Join(dir, "modules.cpio")
	write := func(path, content string) {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(binary, "ELF one")
	write(modules, "MODULES")
	cache := filepath.Join(dir, "cache")
	first, err := initramfs(cache, binary, modules)
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(first)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.HasSuffix(data, []byte("MODULES")) {
		t.Error("the base's archive is not at the end")
	}
	records, err := cpio.ReadAllRecords(cpio.Newc.Reader(bytes.NewReader(data)))
	if err != nil {
		t.Fatal(err)
	}
	archive := cpio.ArchiveFromRecords(records)
	init, ok := archive.Get("init")
	if !ok || init.Mode&0o7777 != 0o755 {
		t.Fatalf("no executable init: %v", records)
	}
	content, err := io.ReadAll(io.NewSectionReader(init, 0, int64(init.FileSize)))
	if err != nil || string(content) != "ELF one" {
		t.Errorf("init is %q, %v", content, err)
	}
	if _, ok := archive.Get("dev/console"); !ok {
		t.Error("no console")
	}

	var again bytes.Buffer
	if err := writeInitramfs(&again, binary, modules); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(again.Bytes(), data) {
		t.Error("two archives of the same parts differ")
	}
	if cached, err := initramfs(cache, binary, modules); err != nil || cached != first {
		t.Errorf("not cached: %s, %v", cached, err)
	}
	write(binary, "ELF two")
	second, err := initramfs(cache, binary, modules)
	if err != nil || second == first {
		t.Fatalf("a changed part has the same file: %v", err)
	}
	if err := cleanCache(cache, map[string]bool{second: true}); err != nil {
		t.Fatal(err)
	}
	left, err := filepath.Glob(filepath.Join(cache, "*"))
	if err != nil || len(left) != 1 || left[0] != second {
		t.Errorf("after cleaning: %v, %v", left, err)
	}
}

func TestFrameFilter(t *testing.T) {
	ip := func(dst string) []byte {
		frame := make([]byte, 14+20)
		copy(frame[6:], guestMAC[:])
		binary.BigEndian.PutUint16(frame[12:], 0x0800)
		frame[14] = 0x45
		copy(frame[14+12:], net.ParseIP(guest.Address).To4())
		copy(frame[14+16:], net.ParseIP(dst).To4())
		return frame
	}
	ether := func(kind uint16, size int) []byte {
		frame := make([]byte, 14+size)
		copy(frame[6:], guestMAC[:])
		binary.BigEndian.PutUint16(frame[12:], kind)
		return frame
	}
	with := func(frame []byte, at int, b ...byte) []byte {
		copy(frame[at:], b)
		return frame
	}
	for _, c := range []struct {
		name  string
		frame []byte
		ok    bool
	}{
		{"gateway", ip(guest.Gateway), true},
		{"internet", ip("93.184.216.34"), true},
		{"broadcast", ip("255.255.255.255"), true},
		{"arp", ether(0x0806, 28), true},
		{"host loopback", ip("127.0.0.1"), false},
		{"other loopback", ip("127.200.0.9"), false},
		{"this host", ip("0.0.0.0"), false},
		{"this network", ip("0.1.2.3"), false},
		{"metadata service, which the forwarder judges", ip("169.254.169.254"), true},
		{"multicast", ip("224.0.0.251"), false},
		{"empty", nil, false},
		{"short ethernet", make([]byte, 13), false},
		{"short arp", ether(0x0806, 27), false},
		{"short ip", ether(0x0800, 19), false},
		{"ip version 0", ether(0x0800, 20), false},
		{"ipv6", ether(0x86dd, 40), false},
		{"largest", append(ip(guest.Gateway), make([]byte, 1480)...), true},
		{"too large", append(ip(guest.Gateway), make([]byte, 1481)...), false},
		{"another's MAC", with(ip(guest.Gateway), 6, 2), false},
		{"the gateway's MAC", with(ether(0x0806, 28), 6, 0x5a, 0x94, 0xef, 0xe4, 0x0c, 0xdd), false},
		{"another's address", with(ip(guest.Gateway), 14+12, 10, 0, 0, 1), false},
		{"no address yet", with(ip("255.255.255.255"), 14+12, 0, 0, 0, 0), true},
	} {
		if got := frameAllowed(c.frame); got != c.ok {
			t.Errorf("%s: allowed %v", c.name, got)
		}
	}
}

// TestFilteredNIC: refused frames vanish from the stream and the others arrive
// whole.
func TestFilteredNIC(t *testing.T) {
	host, guestEnd := net.Pipe()
	arp := make([]byte, 14+28)
	copy(arp[6:], guestMAC[:])
	binary.BigEndian.PutUint16(arp[12:], 0x0806)
	framed := func(f []byte) []byte {
		return append(binary.BigEndian.AppendUint32(nil, uint32(len(f))), f...)
	}
	go func() {
		for _, f := range [][]byte{{1, 2, 3}, arp, make([]byte, 100), arp} {
			if _, err := guestEnd.Write(framed(f)); err != nil {
				return
			}
		}
		_, _ = guestEnd.Write([]byte{0xff, 0xff, 0xff, 0xff})
	}()
	nic := &filteredNIC{Conn: host}
	var got []byte
	for {
		frame, err := nic.next()
		if err == nil {
			got = append(got, framed(frame)...)
		} else {
			if errors.Is(err, io.EOF) || !strings.Contains(err.Error(), "frame") {
				t.Errorf("the oversized frame: %v", err)
			}
			break
		}
	}
	if want := append(framed(arp), framed(arp)...); !bytes.Equal(got, want) {
		t.Errorf("got %d bytes, want %d", len(got), len(want))
	}
}

func FuzzFrameAllowed(f *testing.F) {
	f.Add([]byte{})
	f.Add(make([]byte, 14))
	f.Add(make([]byte, 60))
	f.Add(append(append(make([]byte, 6, 60), guestMAC[:]...), make([]byte, 48)...))
	f.Fuzz(func(t *testing.T, frame []byte) {
		if frameAllowed(frame) && len(frame) < 14+20 {
			t.Errorf("a frame of %d bytes passes", len(frame))
		}
	})
}

func TestLastN(t *testing.T) {
	for _, c := range []struct {
		data string
		n    int
		want string
	}{
		{"a\nb\nc\n", 2, "b\nc\n"}, {"a\nb\nc", 2, "b\nc"}, {"a\nb\n", 5, "a\nb\n"},
		{"a\nb\n", 0, "a\nb\n"}, {"a\nb\n", -1, ""}, {"", 3, ""}, {"\n\n\n", 1, "\n"},
	} {
		if got := string(lastN([]byte(c.data), c.n)); got != c.want {
			t.Errorf("lastN(%q, %d) = %q, want %q", c.data, c.n, got, c.want)
		}
	}
}

// TestFollowLogsAcrossRotation: a follower sees every byte once, in order.
func TestFollowLogsAcrossRotation(t *testing.T) {
	path := filepath.Join(t.TempDir(), "app.log")
	f, err := guest.OpenRotatingFile(path, 64)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	r, err := openLogs(ctx, path, LogOptions{Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for _, line := range []string{"one " + strings.Repeat("x", 40) + "\n", "two " + strings.Repeat("y", 40) + "\n", "three\n"} {
		if _, err := f.Write([]byte(line)); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(line))
		if _, err := io.ReadFull(r, got); err != nil || string(got) != line {
			t.Fatalf("got %q, %v; want %q", got, err, line)
		}
	}
	cancel()
	if rest, err := io.ReadAll(r); err != nil || len(rest) != 0 {
		t.Errorf("after the end: %q, %v", rest, err)
	}
}

// TestDiskIsExactAndReproducible needs mkfs.ext4, as the QEMU driver does.
func TestDiskIsExactAndReproducible(t *testing.T) {
	dir := t.TempDir()
	var disks [2][]byte
	for i := range disks {
		path := filepath.Join(dir, "disk", string(rune('a'+i)))
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := makeDisk(t.Context(), path, 64<<20); err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		disks[i] = data
	}
	if len(disks[0]) != 64<<20 || !bytes.Equal(disks[0], disks[1]) {
		t.Errorf("sizes %d, %d; equal %v", len(disks[0]), len(disks[1]), bytes.Equal(disks[0], disks[1]))
	}
	if err := makeDisk(t.Context(), filepath.Join(dir, "disk", "a"), 128<<20); err == nil {
		t.Error("another size for an existing disk is accepted")
	}
}

// TestShimSocketInADeepFolder: no path length limit, mode 0600.
func TestShimSocketInADeepFolder(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("deep/", 40))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	l, err := listenIn(dir, shimSocket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	info, err := os.Stat(filepath.Join(dir, shimSocket))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("socket: %v, %v", info, err)
	}
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		lc := newLineConn(c)
		var req shimRequest
		if err := lc.readLine(&req); err == nil {
			_ = lc.writeLine(shimReply{Error: "op " + req.Op})
		}
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if _, err := openShim(ctx, dir, shimRequest{Op: opDial}); err == nil || !strings.Contains(err.Error(), "op dial") {
		t.Errorf("got %v", err)
	}
}
