package base

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// errBadTree marks what the splitter itself refuses, as opposed to a stream that
// broke because the bootstrap failed.
var errBadTree = errors.New("unexpected bootstrap tree")

// sideDir is where the customize hook puts what is not root file system.
const sideDir = ".formation"

// maxNote bounds one of the hook's notes.
const maxNote = 1 << 20

// sideTree is what left the tree beside the root file system.
type sideTree struct {
	dir   string            // holds tree/boot and tree/lib/modules
	notes map[string]string // small files of sideDir: release, packages, …
}

// squashRootfs reads the bootstrap's tar and writes the root file system to
// image, everything under sideDir to a folder in dir.
func squashRootfs(ctx context.Context, epoch time.Time, tree io.Reader, dir, image string) (*sideTree, error) {
	side := &sideTree{dir: filepath.Join(dir, "side"), notes: map[string]string{}}
	if err := os.Mkdir(side.dir, 0o700); err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, "sqfstar", append(squashArgs(epoch), "-exports", image)...)
	gently(cmd)
	log := &tail{}
	cmd.Stdout, cmd.Stderr = log, log
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("sqfstar: %w (install squashfs-tools 4.5 or newer)", err)
	}
	splitErr := split(tree, epoch, in, side)
	closeErr := in.Close()
	if err := cmd.Wait(); err != nil {
		return nil, errors.Join(splitErr, fmt.Errorf("sqfstar: %w; it said:\n%s", err, log))
	}
	return side, errors.Join(splitErr, closeErr)
}

// squashArgs are the options of every image here: zstd, no fragments so that a
// changed file changes only its own blocks, one time for all.
func squashArgs(epoch time.Time) []string {
	at := strconv.FormatInt(epoch.Unix(), 10)
	return []string{"-comp", "zstd", "-no-fragments", "-all-time", at, "-mkfs-time", at, "-no-progress", "-quiet"}
}

// split copies the root file system's entries from r to w, without what would
// differ from build to build, and the rest into side.
func split(r io.Reader, epoch time.Time, w io.Writer, side *sideTree) error {
	in, out := tar.NewReader(r), tar.NewWriter(w)
	for {
		hdr, err := in.Next()
		if errors.Is(err, io.EOF) {
			return out.Close()
		}
		if err != nil {
			return fmt.Errorf("read the bootstrap's tree: %w", err)
		}
		name := path.Clean("/" + hdr.Name)[1:]
		switch {
		case name == sideDir || strings.HasPrefix(name, sideDir+"/"):
			if err := side.add(strings.TrimPrefix(name, sideDir), hdr, in); err != nil {
				return err
			}
		case leftOut(name, hdr):
		default:
			if err := copyEntry(out, hdr, in, name, epoch); err != nil {
				return fmt.Errorf("root file system: %s: %w", name, err)
			}
		}
	}
}

func copyEntry(out *tar.Writer, hdr *tar.Header, in io.Reader, name string, epoch time.Time) error {
	h := *hdr
	h.Name = "./" + name
	if h.Typeflag == tar.TypeDir && name != "" {
		h.Name += "/"
	}
	h.ModTime, h.AccessTime, h.ChangeTime = epoch, time.Time{}, time.Time{}
	h.Uname, h.Gname = "", ""
	h.PAXRecords = nil
	h.Format = tar.FormatUnknown
	for key, value := range hdr.PAXRecords {
		if strings.HasPrefix(key, "SCHILY.xattr.") { // file capabilities, as ping's
			if h.PAXRecords == nil {
				h.PAXRecords = map[string]string{}
			}
			h.PAXRecords[key] = value
			h.Format = tar.FormatPAX
		}
	}
	if err := out.WriteHeader(&h); err != nil {
		return err
	}
	_, err := io.Copy(out, in)
	return err
}

// leftOut says what of the bootstrap is state of the build, or is made anew at
// every boot, and so has no place in an image.
func leftOut(name string, hdr *tar.Header) bool {
	for _, dir := range []string{"dev", "run", "tmp", "proc", "sys"} {
		if strings.HasPrefix(name, dir+"/") {
			return true
		}
	}
	for _, dir := range []string{"var/log", "var/tmp", "var/cache/apt", "var/lib/apt/lists", "var/cache/ldconfig"} {
		if strings.HasPrefix(name, dir+"/") {
			// Folders, and empty files such as wtmp, wait for their writers.
			return hdr.Typeflag != tar.TypeDir && hdr.Size > 0
		}
	}
	switch name {
	case "etc/.pwd.lock", "etc/passwd-", "etc/shadow-", "etc/group-", "etc/gshadow-", "etc/subuid-", "etc/subgid-",
		"var/lib/dpkg/lock", "var/lib/dpkg/lock-frontend", "var/lib/dpkg/triggers/Lock",
		"var/lib/dpkg/status-old", "var/lib/dpkg/diversions-old", "var/lib/dpkg/statoverride-old",
		"var/lib/apt/extended_states.old", "var/lib/systemd/random-seed":
		return true
	}
	return path.Dir(name) == "var/cache/debconf" && strings.HasSuffix(name, "-old")
}

// add files one entry under sideDir: small files at its top are notes, the
// kernel's tree goes to disk. The tree comes from a .deb and is not trusted to
// stay inside its folder.
func (s *sideTree) add(rel string, hdr *tar.Header, r io.Reader) error {
	rel = strings.TrimPrefix(rel, "/")
	if rel == "" {
		return nil
	}
	if !filepath.IsLocal(rel) {
		return fmt.Errorf("%w: %q leaves its folder", errBadTree, hdr.Name)
	}
	target := filepath.Join(s.dir, rel)
	switch hdr.Typeflag {
	case tar.TypeDir:
		if err := os.Mkdir(target, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		return os.Chmod(target, 0o755)
	case tar.TypeReg:
		if path.Dir(rel) == "." {
			data, err := io.ReadAll(io.LimitReader(r, maxNote))
			s.notes[rel] = string(data)
			return err
		}
		return writeFile(target, r)
	case tar.TypeSymlink:
		return nil // lib/modules/*/build and source, which point outside
	}
	return fmt.Errorf("%w: %q has type %q", errBadTree, hdr.Name, hdr.Typeflag)
}

func writeFile(name string, r io.Reader) error {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	return errors.Join(err, f.Chmod(0o644), f.Close())
}

// packModules makes the image whose usr/lib/modules a guest mounts over the root
// file system.
func packModules(ctx context.Context, epoch time.Time, side, release, image string) error {
	top := filepath.Join(side, "modules")
	into := filepath.Join(top, "usr/lib/modules")
	if err := os.MkdirAll(into, 0o755); err != nil {
		return fmt.Errorf("base: modules: %w", err)
	}
	for _, dir := range []string{top, filepath.Join(top, "usr"), filepath.Join(top, "usr/lib"), into} {
		if err := os.Chmod(dir, 0o755); err != nil {
			return fmt.Errorf("base: modules: %w", err)
		}
	}
	if err := os.Rename(filepath.Join(side, "tree/lib/modules", release), filepath.Join(into, release)); err != nil {
		return fmt.Errorf("base: modules: %w", err)
	}
	args := append([]string{top, image, "-noappend", "-all-root"}, squashArgs(epoch)...)
	cmd := exec.CommandContext(ctx, "mksquashfs", args...)
	gently(cmd)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("base: mksquashfs: %w; it said:\n%s", err, out)
	}
	return nil
}
