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
	req      *copyRequest
	uid, gid int
	homes    map[string]account // of the users the guest will make
}

func unpackCopy(req *copyRequest, from io.Reader) error {
	u := &unpacker{req: req, homes: map[string]account{}}
	for name, a := range req.Users.Users {
		u.homes["/home/"+name] = a
	}
	if req.Chown != "" {
		root, err := os.OpenRoot("/")
		if err != nil {
			return err
		}
		img, err := accountsIn(root)
		if err := errors.Join(err, root.Close()); err != nil {
			return err
		}
		if u.uid, u.gid, err = img.owner(req.Chown, req.Users); err != nil {
			return fmt.Errorf("%w: %w", errContext, err)
		}
	}
	st, err := os.Stat(req.Dest)
	asDir := req.DestIsDir || !req.Single || err == nil && st.IsDir()
	if err := u.mkdirs(path.Dir(req.Dest)); err != nil {
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
		return os.Lchown(to, u.uid, u.gid)
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
		return fmt.Errorf("%w: COPY cannot replace the directory %s by a file", errContext, to)
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
	if err := f.Chown(u.uid, u.gid); err != nil {
		return err
	}
	mode := uint32(perm)
	if u.req.Chmod != nil {
		mode = *u.req.Chmod
	}
	return unix.Fchmod(int(f.Fd()), mode) // after chown, which clears set-id bits
}

// dir makes a directory below the destination. One that is there stays as it
// is. With --chmod a directory gets search permission where it gets read.
func (u *unpacker) dir(name string, perm fs.FileMode) error {
	if made, err := mkdir(name); !made || err != nil {
		return err
	}
	uid, gid, mode := u.uid, u.gid, uint32(perm)
	if c := u.req.Chmod; c != nil {
		mode = *c&0o777 | *c&0o444>>2
	} else if a, ok := u.homes[name]; ok && u.req.Chown == "" {
		uid, gid = a.UID, a.GID
	}
	if err := os.Chown(name, uid, gid); err != nil {
		return err
	}
	return unix.Chmod(name, mode)
}

// mkdirs makes the directories above the destination: owned by root, except
// the home of a user that the guest will make.
func (u *unpacker) mkdirs(name string) error {
	if name == "/" {
		return nil
	}
	if err := u.mkdirs(path.Dir(name)); err != nil {
		return err
	}
	if made, err := mkdir(name); !made || err != nil {
		return err
	}
	a := u.homes[name] // root, if it is nobody's home
	return os.Chown(name, a.UID, a.GID)
}

func mkdir(name string) (made bool, err error) {
	st, err := os.Stat(name)
	switch {
	case err == nil && st.IsDir():
		return false, nil
	case err == nil:
		return false, fmt.Errorf("%w: COPY needs the directory %s, and the image has a file there", errContext, name)
	case !errors.Is(err, fs.ErrNotExist):
		return false, err
	}
	return true, os.Mkdir(name, 0o755)
}
