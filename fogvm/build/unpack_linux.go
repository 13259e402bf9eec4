package build

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"

	"golang.org/x/sys/unix"
)

// An unpacker puts the files of one COPY into the image. It runs with the image
// as its root, so that symlinks of the image lead where they lead in the guest.
type unpacker struct {
	req   *copyRequest
	chown *account // of --chown
	homes homes
}

// homes are the home directories of the users that the guest will make. What is
// made at or below one is its user's.
type homes map[string]account

func homesOf(users accounts) homes {
	h := homes{}
	for name, a := range users.Users {
		h["/home/"+name] = a
	}
	return h
}

// owner is whose the path is: root's, if it is in nobody's home.
func (h homes) owner(name string) account {
	for ; name != "/" && name != "."; name = path.Dir(name) {
		if a, ok := h[name]; ok {
			return a
		}
	}
	return account{}
}

func unpackCopy(req *copyRequest, from io.Reader) error {
	err := unpack(req, from)
	if errors.Is(err, unix.EROFS) {
		return refuse("COPY to %s leads to a folder that is empty whenever the instance starts: %v", req.Dest, err)
	}
	return err
}

func unpack(req *copyRequest, from io.Reader) error {
	u := &unpacker{req: req, homes: homesOf(req.Users)}
	if req.Chown != "" {
		root, err := os.OpenRoot("/")
		if err != nil {
			return err
		}
		img, err := accountsIn(root)
		if err := errors.Join(err, root.Close()); err != nil {
			return err
		}
		uid, gid, err := img.owner(req.Chown, req.Users)
		if err != nil {
			return &inputError{atChown, err.Error()}
		}
		u.chown = &account{uid, gid}
	}
	st, err := os.Stat(req.Dest)
	asDir := req.DestIsDir || !req.Single || err == nil && st.IsDir()
	if err := mkdirs(path.Dir(req.Dest), u.homes); err != nil {
		return err
	}
	if asDir {
		if err := u.dir(req.Dest, 0o755); err != nil {
			return err
		}
	}
	tr := tar.NewReader(from)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read COPY stream: %w", err)
		}
		to := req.Dest
		if asDir {
			to = path.Join(req.Dest, h.Name)
		}
		if err := u.entry(to, h, tr); err != nil {
			return err
		}
	}
}

func (u *unpacker) entry(to string, h *tar.Header, r io.Reader) error {
	perm := fs.FileMode(h.Mode).Perm()
	switch h.Typeflag {
	case tar.TypeDir:
		return u.dir(to, perm)
	case tar.TypeSymlink:
		if err := clear(to); err != nil {
			return err
		}
		if err := os.Symlink(h.Linkname, to); err != nil {
			return err
		}
		a := u.owner(to)
		return os.Lchown(to, a.UID, a.GID)
	case tar.TypeReg:
		if err := clear(to); err != nil {
			return err
		}
		return u.file(to, perm, r)
	}
	return fmt.Errorf("COPY stream holds type %q", h.Typeflag)
}

// clear makes way for a file: what is replaced is unlinked, never written
// through.
func clear(to string) error {
	st, err := os.Lstat(to)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case st.IsDir():
		return refuse("COPY cannot replace the directory %s by a file", to)
	}
	return os.Remove(to)
}

func (u *unpacker) file(to string, perm fs.FileMode, r io.Reader) (err error) {
	f, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err := io.Copy(f, r); err != nil {
		return err
	}
	a := u.owner(to)
	if err := f.Chown(a.UID, a.GID); err != nil {
		return err
	}
	mode := uint32(perm)
	if u.req.Chmod != nil {
		mode = *u.req.Chmod
	}
	return unix.Fchmod(int(f.Fd()), mode) // after chown, which clears set-id bits
}

func (u *unpacker) owner(name string) account {
	if u.chown != nil {
		return *u.chown
	}
	return u.homes.owner(name)
}

// dir makes a directory below the destination. One that is there stays as it
// is. With --chmod a directory gets search permission where it gets read.
func (u *unpacker) dir(name string, perm fs.FileMode) error {
	if made, err := mkdir(name); !made || err != nil {
		return err
	}
	mode := uint32(perm)
	if c := u.req.Chmod; c != nil {
		mode = *c&0o777 | *c&0o444>>2
	}
	a := u.owner(name)
	if err := os.Chown(name, a.UID, a.GID); err != nil {
		return err
	}
	return unix.Chmod(name, mode)
}

// mkdirs makes a directory and those above it, where they are missing: root's,
// or of the user whose home they are in.
func mkdirs(name string, h homes) error {
	if name == "/" {
		return nil
	}
	if err := mkdirs(path.Dir(name), h); err != nil {
		return err
	}
	if made, err := mkdir(name); !made || err != nil {
		return err
	}
	a := h.owner(name)
	return os.Chown(name, a.UID, a.GID)
}

func mkdir(name string) (made bool, err error) {
	st, err := os.Stat(name)
	switch {
	case err == nil && st.IsDir():
		return false, nil
	case err == nil, errors.Is(err, unix.ENOTDIR):
		return false, refuse("%s cannot be a directory: the image has a file there", name)
	case errors.Is(err, unix.ELOOP):
		return false, refuse("%s cannot be a directory: the image has a symlink to itself there", name)
	case !errors.Is(err, fs.ErrNotExist):
		return false, err
	}
	if err := os.Mkdir(name, 0o755); errors.Is(err, fs.ErrExist) {
		return false, refuse("%s cannot be a directory: the image has a symlink there that leads nowhere", name)
	} else if err != nil {
		return false, err
	}
	return true, nil
}
