// Package base makes the base that packs build on: a Debian root file system
// with OpenSSH, a kernel, its modules, and the few of them that a guest must
// load before it can see its disks.
//
// Guaranteed: what is installed was verified by apt against the archive's keys;
// two builds with the same Epoch, key and archive content give the same CID;
// nothing of the building machine (names, addresses, host keys, logs, caches,
// device nodes) is in the images. A cancelled build ends mmdebstrap and lets it
// undo its mounts; so does a killed one, and the next build with the same WorkDir
// removes its files.
//
// Not guaranteed: that the archive still serves tomorrow what it serves today.
// A base rebuilt after a security update is another base with another CID, and
// its package list says what differs.
//
// It needs mmdebstrap and squashfs-tools 4.5, as root or as a user who may make
// user namespaces.
package base

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/formthefog/formation/store"
)

// Defaults of Options.
const (
	DefaultName   = "debian:12"
	DefaultSuite  = "bookworm"
	DefaultMirror = "http://deb.debian.org/debian"
)

// Store is where a finished base goes. *store.Store satisfies it.
type Store interface {
	// AddImage chunks the file at path and takes it over.
	AddImage(ctx context.Context, path, kind, format string) (store.Entry, error)
	PutBase(ctx context.Context, b store.Base, key ed25519.PrivateKey) (cid.Cid, error)
}

// Options say what to build. Only WorkDir, and Store and Key for Build, are
// required.
type Options struct {
	Name   string // "debian:12"
	Suite  string // "bookworm"
	Arch   string // Debian architecture, this machine's by default
	Mirror string // of the main archive; the guest's own sources always name the public one

	// SecurityMirror serves SUITE-security. By default it is Mirror with
	// "-security" appended, as on deb.debian.org.
	SecurityMirror string

	// Epoch is every file's time. Zero means SOURCE_DATE_EPOCH of the
	// environment, else the date of the suite's last point release, asked from
	// the mirror, so that it does not move from day to day.
	Epoch time.Time

	// WorkDir is scratch on a disk with 1 GiB free. It must exist; Build makes a
	// folder base-* there and removes it, and those of builds that were killed.
	WorkDir string
	Store   Store
	Key     ed25519.PrivateKey // signs the base
	Out     io.Writer          // progress lines; nil is silence

	lock *os.File // of the work folder, for mmdebstrap to hold; may be nil
}

// Artefacts are the files of a base before they are in a store.
type Artefacts struct {
	Kernel, Initrd, Modules, Rootfs string // paths

	KernelVersion string   // "6.1.0-56-cloud-amd64"
	Packages      []string // "name version architecture", sorted
	Provenance    string
}

// Build assembles a base and puts it into o.Store. The caller names it.
func Build(ctx context.Context, o Options) (_ cid.Cid, _ *store.Base, err error) {
	if o.Store == nil || len(o.Key) != ed25519.PrivateKeySize {
		return cid.Undef, nil, errors.New("base: a store and a signing key are needed")
	}
	if err := o.fill(); err != nil {
		return cid.Undef, nil, err
	}
	work, err := newWorkDir(ctx, o.WorkDir)
	if err != nil {
		return cid.Undef, nil, fmt.Errorf("base: work folder: %w", err)
	}
	defer func() { err = errors.Join(err, work.remove()) }()
	o.lock = work.lock
	a, err := assemble(ctx, o, work.path)
	if err != nil {
		return cid.Undef, nil, err
	}
	return put(ctx, o, a)
}

// Assemble makes the files of a base in dir, which must exist, and stores
// nothing.
func Assemble(ctx context.Context, o Options, dir string) (*Artefacts, error) {
	if o.WorkDir == "" {
		o.WorkDir = dir
	}
	if err := o.fill(); err != nil {
		return nil, err
	}
	return assemble(ctx, o, dir)
}

func put(ctx context.Context, o Options, a *Artefacts) (cid.Cid, *store.Base, error) {
	b := store.Base{
		Name: o.Name, Arch: o.Arch,
		KernelVersion: a.KernelVersion, Packages: a.Packages, Provenance: a.Provenance,
	}
	for _, part := range []struct {
		entry              *store.Entry
		path, kind, format string
	}{
		{&b.Kernel, a.Kernel, "kernel", "vmlinuz"},
		{&b.Initrd, a.Initrd, "initrd", "cpio"},
		{&b.Modules, a.Modules, "modules", "squashfs"},
		{&b.Rootfs, a.Rootfs, "rootfs", "squashfs"},
	} {
		o.say("storing %s", part.kind)
		entry, err := o.Store.AddImage(ctx, part.path, part.kind, part.format)
		if err != nil {
			return cid.Undef, nil, fmt.Errorf("base: store %s: %w", part.kind, err)
		}
		*part.entry = entry
	}
	c, err := o.Store.PutBase(ctx, b, o.Key)
	if err != nil {
		return cid.Undef, nil, fmt.Errorf("base: store the root node: %w", err)
	}
	return c, &b, nil
}

func (o *Options) fill() error {
	if o.WorkDir == "" {
		return errors.New("base: no work folder")
	}
	for _, field := range []struct {
		value *string
		or    string
	}{
		{&o.Name, DefaultName}, {&o.Suite, DefaultSuite}, {&o.Mirror, DefaultMirror}, {&o.Arch, runtime.GOARCH},
	} {
		if *field.value == "" {
			*field.value = field.or
		}
	}
	o.Mirror = strings.TrimSuffix(o.Mirror, "/")
	if o.SecurityMirror == "" {
		o.SecurityMirror = o.Mirror + "-security"
	}
	if o.Out == nil {
		o.Out = io.Discard
	}
	if text := os.Getenv("SOURCE_DATE_EPOCH"); text != "" && o.Epoch.IsZero() {
		seconds, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return fmt.Errorf("base: SOURCE_DATE_EPOCH: %w", err)
		}
		o.Epoch = time.Unix(seconds, 0).UTC()
	}
	if o.Epoch.Unix() < 0 && !o.Epoch.IsZero() {
		return fmt.Errorf("base: epoch %s is before 1970", o.Epoch)
	}
	return nil
}

func (o *Options) say(format string, args ...any) {
	// A progress line that cannot be shown is no reason to give up the build.
	_, _ = fmt.Fprintf(o.Out, "base: "+format+"\n", args...)
}

func assemble(ctx context.Context, o Options, dir string) (*Artefacts, error) {
	if o.Epoch.IsZero() {
		epoch, err := releaseDate(ctx, o.Mirror, o.Suite)
		if err != nil {
			return nil, fmt.Errorf("base: %w (set SOURCE_DATE_EPOCH to build without asking)", err)
		}
		o.Epoch = epoch
	}
	a := &Artefacts{
		Kernel:  filepath.Join(dir, "vmlinuz"),
		Initrd:  filepath.Join(dir, "modules.cpio"),
		Modules: filepath.Join(dir, "modules.sqfs"),
		Rootfs:  filepath.Join(dir, "rootfs.sqfs"),
	}
	o.say("bootstrapping %s (%s) from %s: a minute or two", o.Suite, o.Arch, o.Mirror)
	side, err := bootstrap(ctx, o, dir, a.Rootfs)
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(side.dir)
	if err := a.describe(o, side); err != nil {
		return nil, err
	}
	o.say("kernel %s", a.KernelVersion)
	if err := os.Rename(filepath.Join(side.dir, "tree/boot/vmlinuz-"+a.KernelVersion), a.Kernel); err != nil {
		return nil, fmt.Errorf("base: kernel image: %w", err)
	}
	if err := checkConfig(filepath.Join(side.dir, "tree/boot/config-"+a.KernelVersion)); err != nil {
		return nil, err
	}
	modules := filepath.Join(side.dir, "tree/lib/modules", a.KernelVersion)
	if err := writeInitrd(a.Initrd, modules); err != nil {
		return nil, err
	}
	o.say("packing the kernel's modules")
	if err := packModules(ctx, o.Epoch, side.dir, a.KernelVersion, a.Modules); err != nil {
		return nil, err
	}
	return a, nil
}

// describe fills in what the customize step wrote down.
func (a *Artefacts) describe(o Options, side *sideTree) error {
	read := func(name string) string { return strings.TrimSpace(side.notes[name]) }
	a.KernelVersion = read("release")
	if a.KernelVersion == "" || filepath.Base(a.KernelVersion) != a.KernelVersion {
		return fmt.Errorf("base: the bootstrap named no kernel release (%q)", a.KernelVersion)
	}
	a.Packages = append(strings.Split(read("packages"), "\n"), read("kernel-package"))
	a.Provenance = fmt.Sprintf("mmdebstrap --variant=minbase %s %s; epoch %d; kernel package sha256 %s",
		o.Suite, o.Arch, o.Epoch.Unix(), read("kernel-sha256"))
	return nil
}
