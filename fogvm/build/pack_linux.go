package build

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/formthefog/formation/store/formfile"
)

// A packer turns what steps changed into a layer, the same bytes every time:
// entries sorted, times fixed, overlay marks normalised, and what is the same
// as below left out.
//
// It walks directories that untrusted commands wrote. It never follows a
// symlink: it only descends into what lstat says is a directory, and nothing
// else runs in them any more.
type packer struct {
	low     string // the file system below, "" when an opaque directory hides it
	started int64
	entries []packEntry
	inodes  map[[2]uint64]string // first path of each inode with several links
	bytes   int64
	skipped []string // at most maxSkipped
	more    int      // and so many that are not told
}

// maxSkipped bounds what a reply says about things that are left out.
const maxSkipped = 20

// A packEntry is one line of the layer.
type packEntry struct {
	rel      string
	src      string // where its content is
	st       unix.Stat_t
	xattrs   map[string]string
	opaque   bool
	whiteout bool
	link     string // hard link to this earlier entry
}

func packLayer(req *packRequest, low string) (reply, error) {
	p := &packer{low: low, started: req.Started, inodes: map[[2]uint64]string{}}
	if err := p.dir("", req.Uppers, low); err != nil {
		return reply{}, fmt.Errorf("pack layer: %w", err)
	}
	rep := reply{Entries: len(p.entries), Bytes: p.bytes, Warnings: p.skipped}
	if p.more > 0 {
		rep.Warnings = append(rep.Warnings, fmt.Sprintf("%d more sockets and devices are left out", p.more))
	}
	if len(p.entries) == 0 {
		return rep, nil
	}
	sum := sha256.New()
	var err error
	if req.Image == "" {
		err = p.stream(sum)
	} else {
		err = squash(req.Image, func(w io.Writer) error { return p.stream(io.MultiWriter(sum, w)) })
	}
	rep.Digest = hex.EncodeToString(sum.Sum(nil))
	return rep, err
}

func (p *packer) stream(w io.Writer) error {
	tw := tar.NewWriter(w)
	for i := range p.entries {
		if err := p.write(tw, &p.entries[i]); err != nil {
			return fmt.Errorf("pack %s: %w", p.entries[i].rel, err)
		}
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	// The reader may be content with the first of the two zero blocks that end
	// an archive, and gone when the second comes.
	if err := tw.Close(); err != nil && !errors.Is(err, unix.EPIPE) {
		return err
	}
	return nil
}

// dir packs the children of rel. Tops are the directories that make it up, the
// topmost first; low is the same directory below them, or "".
func (p *packer) dir(rel string, tops []string, low string) error {
	names := map[string]bool{}
	for _, t := range tops {
		list, err := os.ReadDir(t)
		if err != nil {
			return err
		}
		for _, e := range list {
			names[e.Name()] = true
		}
	}
	sorted := make([]string, 0, len(names))
	for n := range names {
		if rel != "" || !slices.Contains(formfile.VolatileDirs, n) {
			sorted = append(sorted, n)
		}
	}
	slices.Sort(sorted)
	for _, n := range sorted {
		if err := p.child(path.Join(rel, n), n, tops, low); err != nil {
			return err
		}
	}
	return nil
}

// child packs one name: the topmost of tops that has it decides what it is,
// and a directory goes on below until something hides the rest.
func (p *packer) child(rel, name string, tops []string, low string) error {
	var first packEntry
	var dirs []string
	hidden := low == ""
	for _, t := range tops {
		src := filepath.Join(t, name)
		var st unix.Stat_t
		if err := unix.Lstat(src, &st); errors.Is(err, unix.ENOENT) {
			continue
		} else if err != nil {
			return err
		}
		if first.src == "" {
			first = packEntry{rel: rel, src: src, st: st, whiteout: isWhiteout(&st)}
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			hidden = true
			break
		}
		dirs = append(dirs, src)
		if opaque, err := isOpaque(src); err != nil {
			return err
		} else if opaque {
			hidden = true
			break
		}
	}
	below, err := p.below(low, name)
	if err != nil {
		return err
	}
	switch {
	case first.whiteout:
		if below.exists {
			p.entries = append(p.entries, first)
		}
		return nil
	case len(dirs) > 0:
		return p.packDir(first, dirs, below, hidden)
	}
	return p.packFile(first, below)
}

// lowEntry is what is below a name.
type lowEntry struct {
	path   string
	exists bool
	st     unix.Stat_t
}

func (p *packer) below(low, name string) (lowEntry, error) {
	if low == "" {
		return lowEntry{}, nil
	}
	e := lowEntry{path: filepath.Join(low, name)}
	err := unix.Lstat(e.path, &e.st)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return e, nil
	}
	e.exists = err == nil
	return e, err
}

func (l lowEntry) isDir() bool { return l.exists && l.st.Mode&unix.S_IFMT == unix.S_IFDIR }

// packDir packs a directory, without a line of its own if only its times
// changed and nothing in it did.
func (p *packer) packDir(e packEntry, dirs []string, below lowEntry, hidden bool) (err error) {
	if e.xattrs, err = readXattrs(e.src); err != nil {
		return err
	}
	e.opaque = hidden && below.isDir()
	low := ""
	if !hidden && below.isDir() {
		low = below.path
	}
	same := below.isDir() && !e.opaque && sameMeta(&e.st, &below.st)
	if same {
		x, err := readXattrs(below.path)
		if err != nil {
			return err
		}
		same = equalXattrs(e.xattrs, x)
	}
	at := len(p.entries)
	p.entries = append(p.entries, e)
	if err := p.dir(e.rel, dirs, low); err != nil {
		return err
	}
	if same && len(p.entries) == at+1 {
		p.entries = p.entries[:at]
	}
	return nil
}

func (p *packer) packFile(e packEntry, below lowEntry) (err error) {
	switch e.st.Mode & unix.S_IFMT {
	case unix.S_IFREG, unix.S_IFLNK, unix.S_IFIFO:
	default: // a socket or device means nothing in an image
		if len(p.skipped) == maxSkipped {
			p.more++
			return nil
		}
		p.skipped = append(p.skipped, "/"+e.rel+" is a socket or device and is left out")
		return nil
	}
	if e.xattrs, err = readXattrs(e.src); err != nil {
		return err
	}
	if e.st.Nlink > 1 && e.st.Mode&unix.S_IFMT == unix.S_IFREG {
		id := [2]uint64{e.st.Dev, e.st.Ino}
		if e.link = p.inodes[id]; e.link == "" {
			p.inodes[id] = e.rel
		}
	} else if same, err := sameFile(&e, below); same || err != nil {
		return err
	}
	if e.st.Mode&unix.S_IFMT == unix.S_IFREG && e.link == "" {
		p.bytes += e.st.Size
	}
	p.entries = append(p.entries, e)
	return nil
}

func isWhiteout(st *unix.Stat_t) bool {
	return st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0
}

// isOpaque reads the mark in either spelling; an overlay in a user namespace
// writes the second.
func isOpaque(dir string) (bool, error) {
	for _, name := range []string{"trusted.overlay.opaque", "user.overlay.opaque"} {
		var buf [8]byte
		n, err := unix.Lgetxattr(dir, name, buf[:])
		switch {
		case err == nil && string(buf[:n]) == "y":
			return true, nil
		case err != nil && !errors.Is(err, unix.ENODATA) && !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EPERM):
			return false, fmt.Errorf("read %s: %w", name, err)
		}
	}
	return false, nil
}

// readXattrs gives the attributes that belong to an image: file capabilities
// and the user's own. Overlay marks, labels and the like belong to this host.
func readXattrs(name string) (map[string]string, error) {
	n, err := unix.Llistxattr(name, nil)
	if errors.Is(err, unix.EOPNOTSUPP) || err == nil && n == 0 {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	buf := make([]byte, n)
	if n, err = unix.Llistxattr(name, buf); err != nil {
		return nil, err
	}
	var out map[string]string
	for x := range strings.SplitSeq(strings.TrimRight(string(buf[:n]), "\x00"), "\x00") {
		if x != "security.capability" && (!strings.HasPrefix(x, "user.") || strings.HasPrefix(x, "user.overlay.")) {
			continue
		}
		val := make([]byte, 64<<10)
		n, err := unix.Lgetxattr(name, x, val)
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", x, err)
		}
		if out == nil {
			out = map[string]string{}
		}
		out[x] = string(val[:n])
	}
	return out, nil
}

func equalXattrs(a, b map[string]string) bool {
	if len(a) != len(b) {
		return false
	}
	for k, v := range a {
		if w, ok := b[k]; !ok || v != w {
			return false
		}
	}
	return true
}

func sameMeta(a, b *unix.Stat_t) bool {
	return a.Mode == b.Mode && a.Uid == b.Uid && a.Gid == b.Gid
}

// sameFile says whether what is below is the same but for its time.
func sameFile(e *packEntry, below lowEntry) (bool, error) {
	if !below.exists || !sameMeta(&e.st, &below.st) || e.st.Size != below.st.Size {
		return false, nil
	}
	x, err := readXattrs(below.path)
	if err != nil || !equalXattrs(e.xattrs, x) {
		return false, err
	}
	switch e.st.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		a, aerr := os.Readlink(e.src)
		b, berr := os.Readlink(below.path)
		return a == b, errors.Join(aerr, berr)
	case unix.S_IFREG:
		return sameContent(e.src, below.path)
	}
	return true, nil
}

func sameContent(a, b string) (same bool, err error) {
	f, err := openFile(a)
	if err != nil {
		return false, err
	}
	defer f.Close()
	g, err := openFile(b)
	if err != nil {
		return false, err
	}
	defer g.Close()
	x, y := make([]byte, 64<<10), make([]byte, 64<<10)
	for {
		n, ferr := io.ReadFull(f, x)
		m, gerr := io.ReadFull(g, y)
		if !bytes.Equal(x[:n], y[:m]) {
			return false, nil
		}
		for _, e := range []error{ferr, gerr} {
			if e != nil && !errors.Is(e, io.EOF) && !errors.Is(e, io.ErrUnexpectedEOF) {
				return false, e
			}
		}
		if ferr != nil || gerr != nil {
			return true, nil
		}
	}
}

// openFile opens a regular file and nothing else.
func openFile(name string) (*os.File, error) {
	return os.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
}

// mtime is the time of an entry: files that came with older times (those of
// packages) keep them, and whatever this step made gets Epoch.
func (p *packer) mtime(st *unix.Stat_t) time.Time {
	t := st.Mtim.Sec
	if t > Epoch || t >= p.started || t < 0 {
		t = Epoch
	}
	return time.Unix(t, 0).UTC()
}

func (p *packer) write(tw *tar.Writer, e *packEntry) (err error) {
	h := &tar.Header{Name: e.rel, Format: tar.FormatPAX}
	if e.whiteout {
		h.Typeflag, h.ModTime = tar.TypeChar, time.Unix(Epoch, 0).UTC()
		return tw.WriteHeader(h)
	}
	h.Uid, h.Gid, h.Mode = int(e.st.Uid), int(e.st.Gid), int64(e.st.Mode&0o7777)
	h.ModTime = p.mtime(&e.st)
	h.PAXRecords = map[string]string{}
	for k, v := range e.xattrs {
		h.PAXRecords["SCHILY.xattr."+k] = v
	}
	if e.opaque {
		h.PAXRecords["SCHILY.xattr.trusted.overlay.opaque"] = "y"
	}
	switch e.st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		h.Typeflag, h.Name = tar.TypeDir, e.rel+"/"
	case unix.S_IFLNK:
		h.Typeflag = tar.TypeSymlink
		if h.Linkname, err = os.Readlink(e.src); err != nil {
			return err
		}
	case unix.S_IFIFO:
		h.Typeflag = tar.TypeFifo
	default:
		if e.link != "" {
			h.Typeflag, h.Linkname, h.PAXRecords = tar.TypeLink, e.link, nil
			return tw.WriteHeader(h)
		}
		h.Typeflag, h.Size = tar.TypeReg, e.st.Size
		return writeFile(tw, h, e.src)
	}
	return tw.WriteHeader(h)
}

func writeFile(tw *tar.Writer, h *tar.Header, src string) error {
	f, err := openFile(src)
	if err != nil {
		return err
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil {
		return err
	} else if st.Mode()&fs.ModeType != 0 {
		return errors.New("no longer a regular file")
	}
	if err := tw.WriteHeader(h); err != nil {
		return err
	}
	_, err = io.Copy(tw, f)
	return err
}
