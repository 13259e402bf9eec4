package build

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/formthefog/formation/store/formfile"
)

// maxContextFiles bounds one COPY.
const maxContextFiles = 500_000

const (
	formfileName = "Formfile"
	gitDir       = ".git"
)

// A buildContext is the directory that COPY reads, through an os.Root: no path
// and no symlink leads out of it.
type buildContext struct {
	root     *os.Root
	ignore   ignoreRules
	formfile string // slash path in the context, "" if outside
	warned   map[string]bool
	warnings []string
}

func openContext(dir, formfileRel string) (*buildContext, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("open context: %w", err)
	}
	c := &buildContext{root: root, warned: map[string]bool{}}
	if rel := path.Clean(filepath.ToSlash(formfileRel)); fs.ValidPath(rel) {
		c.formfile = rel
	}
	switch text, err := root.ReadFile(ignoreFile); {
	case err == nil:
		c.ignore, err = parseIgnore(string(text))
		if err != nil {
			return nil, errors.Join(err, root.Close())
		}
	case !errors.Is(err, fs.ErrNotExist):
		return nil, errors.Join(fmt.Errorf("read %s: %w", ignoreFile, err), root.Close())
	}
	return c, nil
}

func (c *buildContext) close() error { return c.root.Close() }

// A copyEntry is one thing that COPY brings along.
type copyEntry struct {
	From string      // slash path in the context
	To   string      // slash path below the destination; "" for the single file itself
	Type fs.FileMode // 0 (regular), fs.ModeDir or fs.ModeSymlink
	Perm fs.FileMode // 0755 or 0644; of a symlink 0777
	Size int64
	Sum  [32]byte // of a regular file
	Link string   // of a symlink
	word int      // of the COPY: the index of the source that brought it
}

// A copySet is all of one COPY, in a fixed order, parents first.
type copySet struct {
	entries []copyEntry
	// single is set if there is one regular file, which may take the name of
	// the destination; its entry's To is its base name.
	single bool
}

// swept says whether COPY of a directory or a glob takes the path along. The
// Formfile that is built, the one at the root, .formignore and .git are left out unless a COPY names them: what
// they change is no content, and it would undo caching and repeatability.
func (c *buildContext) swept(p string, isDir bool) bool {
	return p != c.formfile && p != formfileName && p != ignoreFile && path.Base(p) != gitDir && !c.ignore.match(p, isDir)
}

// A wordError is what is wrong with one word of a COPY: a source, or after them
// the destination.
type wordError struct {
	word int
	error
}

// resolve finds what the sources of a COPY are, and hashes it.
func (c *buildContext) resolve(cp *formfile.Copy) (set *copySet, bad []wordError) {
	set = &copySet{}
	files := 0
	for i, src := range cp.Sources {
		before := len(set.entries)
		names, err := c.expand(src)
		for _, name := range names {
			isFile, aerr := c.add(set, name)
			if err = errors.Join(err, aerr); isFile {
				files++
			}
		}
		if err != nil {
			bad = append(bad, wordError{i, err})
		}
		for j := before; j < len(set.entries); j++ {
			set.entries[j].word = i
		}
	}
	set.single = files == 1 && len(set.entries) == 1
	if err := set.settle(); err != nil {
		bad = append(bad, *err)
	}
	if err := set.checkRoot(cp.Dest); err != nil {
		bad = append(bad, wordError{len(cp.Sources), err})
	}
	return set, bad
}

// checkRoot refuses what a COPY to / would lose.
func (s *copySet) checkRoot(dest string) error {
	if dest != "/" {
		return nil // formfile.Parse has refused the rest
	}
	for _, e := range s.entries {
		to := "/" + e.To
		if d := formfile.Volatile(to); d != "" && d != to {
			return fmt.Errorf("COPY of %s to %s: %s is empty whenever the instance starts; list it in %s, or choose another destination", e.From, to, d, ignoreFile)
		}
	}
	return nil
}

// settle sorts the entries, drops what a later source replaces, and refuses
// what cannot be: a file where another source has a directory.
func (s *copySet) settle() *wordError {
	slices.SortStableFunc(s.entries, func(a, b copyEntry) int { return strings.Compare(a.To, b.To) })
	out := s.entries[:0]
	for _, e := range s.entries {
		if n := len(out); n > 0 && out[n-1].To == e.To {
			if out[n-1].Type.IsDir() != e.Type.IsDir() {
				return &wordError{e.word, fmt.Errorf("%s and %s become the same path, and only one is a directory", out[n-1].From, e.From)}
			}
			out[n-1] = e
			continue
		}
		out = append(out, e)
	}
	s.entries = out
	return nil
}

// expand gives the paths that a source names, sorted.
func (c *buildContext) expand(src string) ([]string, error) {
	if !strings.ContainsAny(src, `*?[\`) {
		if src != "." && c.ignore.matchAny(src, c.isDir(src)) {
			return nil, fmt.Errorf("COPY %s: it is excluded by %s", src, ignoreFile)
		}
		return []string{src}, nil
	}
	all, err := fs.Glob(c.root.FS(), src)
	if err != nil {
		return nil, fmt.Errorf("COPY %s: %w", src, err)
	}
	names := slices.DeleteFunc(all, func(n string) bool {
		return !c.swept(n, false) || c.ignore.matchAny(n, c.isDir(n)) || sweepsGit(src, n)
	})
	if len(names) == 0 {
		return nil, fmt.Errorf("COPY %s: nothing in the context matches", src)
	}
	return names, nil
}

// sweepsGit says whether the glob reached the path through a .git that it does
// not name.
func sweepsGit(glob, name string) bool {
	pattern := strings.Split(glob, "/")
	for i, part := range strings.Split(name, "/") {
		if part == gitDir && pattern[i] != gitDir {
			return true
		}
	}
	return false
}

func (c *buildContext) isDir(name string) bool {
	st, err := c.root.Stat(name)
	return err == nil && st.IsDir()
}

// add adds what one path names. A symlink named directly is followed, as long
// as it stays inside.
func (c *buildContext) add(set *copySet, name string) (isFile bool, err error) {
	st, err := c.root.Stat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return false, fmt.Errorf("COPY %s: no such file in the context", name)
	case err != nil:
		if l, lerr := c.root.Lstat(name); lerr == nil && l.Mode()&fs.ModeSymlink != 0 {
			return false, fmt.Errorf("COPY %s: the symlink leaves the context or leads nowhere", name)
		}
		return false, fmt.Errorf("COPY %s: %w", name, err)
	case st.IsDir():
		return false, c.walk(set, name, "")
	case !st.Mode().IsRegular():
		return false, fmt.Errorf("COPY %s: neither a file nor a directory", name)
	}
	return true, c.addFile(set, name, path.Base(name), st)
}

// walk adds what is below the directory dir, at to below the destination.
func (c *buildContext) walk(set *copySet, dir, to string) error {
	d, err := c.root.Open(dir)
	if err != nil {
		return fmt.Errorf("COPY %s: %w", dir, err)
	}
	list, err := d.ReadDir(-1)
	if err := errors.Join(err, d.Close()); err != nil {
		return fmt.Errorf("COPY %s: %w", dir, err)
	}
	slices.SortFunc(list, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	for _, e := range list {
		from, dest := path.Join(dir, e.Name()), path.Join(to, e.Name())
		if !c.swept(from, e.IsDir()) {
			continue
		}
		if len(set.entries) >= maxContextFiles {
			return fmt.Errorf("COPY %s: more than %d files", dir, maxContextFiles)
		}
		st, err := c.root.Lstat(from)
		if err != nil {
			return fmt.Errorf("COPY %s: %w", from, err)
		}
		switch mode := st.Mode(); {
		case mode.IsDir():
			set.entries = append(set.entries, copyEntry{From: from, To: dest, Type: fs.ModeDir, Perm: normalPerm(mode)})
			err = c.walk(set, from, dest)
		case mode.IsRegular():
			err = c.addFile(set, from, dest, st)
		case mode&fs.ModeSymlink != 0:
			link, lerr := c.root.Readlink(from)
			set.entries = append(set.entries, copyEntry{From: from, To: dest, Type: fs.ModeSymlink, Perm: 0o777, Link: link})
			err = lerr
		default:
			c.warn("COPY leaves %s out: neither a file, a directory nor a symlink", from)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// normalPerm is what git keeps of a mode: whether a file is a program. All else
// differs between checkouts of one tree with different umasks; it takes a --chmod.
func normalPerm(m fs.FileMode) fs.FileMode {
	if m.IsDir() || m&0o100 != 0 {
		return 0o755
	}
	return 0o644
}

func (c *buildContext) addFile(set *copySet, from, to string, st fs.FileInfo) error {
	e := copyEntry{From: from, To: to, Perm: normalPerm(st.Mode())}
	head := &headWriter{}
	h := sha256.New()
	n, err := c.read(from, io.MultiWriter(h, head))
	if err != nil {
		return fmt.Errorf("COPY %s: %w", from, err)
	}
	e.Size = n
	h.Sum(e.Sum[:0])
	set.entries = append(set.entries, e)
	if looksLikeCredential(from, head.buf.Bytes()) {
		c.warn("%s looks like a credential, and every member can read a pack: use form secret set, or list it in %s", from, ignoreFile)
	}
	return nil
}

func (c *buildContext) read(name string, w io.Writer) (n int64, err error) {
	f, err := c.root.Open(name)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return io.Copy(w, f)
}

func (c *buildContext) warn(format string, args ...any) {
	s := fmt.Sprintf(format, args...)
	if !c.warned[s] && len(c.warnings) < 100 {
		c.warned[s] = true
		c.warnings = append(c.warnings, s)
	}
}

// A headWriter keeps the first KiB.
type headWriter struct{ buf bytes.Buffer }

func (h *headWriter) Write(p []byte) (int, error) {
	if room := 1024 - h.buf.Len(); room > 0 {
		h.buf.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}

var (
	credentialNames = []string{
		"id_rsa", "id_dsa", "id_ecdsa", "id_ed25519", ".env", ".env.*", ".netrc", ".npmrc", ".pypirc",
		".git-credentials", ".htpasswd", ".pgpass", "credentials", "credentials.json", "*.pem", "*.key",
		"*.p12", "*.pfx", "*.jks", "*.keystore", "*.kdbx", "*.ppk",
	}
	notCredentials = []string{".env.example", ".env.sample", ".env.template"}
)

// looksLikeCredential judges by name, and by the start of the content.
func looksLikeCredential(name string, head []byte) bool {
	base := strings.ToLower(path.Base(name))
	if slices.Contains(notCredentials, base) {
		return false
	}
	for _, p := range credentialNames {
		if ok, err := path.Match(p, base); err == nil && ok {
			return true
		}
	}
	i := bytes.Index(head, []byte("-----BEGIN "))
	return i >= 0 && bytes.Contains(head[i:], []byte("PRIVATE KEY-----"))
}
