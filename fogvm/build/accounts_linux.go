package build

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/formthefog/formation/store/formfile"
)

// number gives a step the numbers of the Formfile's users, and remembers those
// that it may write into the image.
func (b *builder) number(s *planned) error {
	if len(b.File.Users) == 0 || s.step.Op == formfile.OpInstall {
		return nil
	}
	img, err := b.imageAccounts()
	if err != nil {
		return b.atStep(s, err)
	}
	s.users = b.usersIn(img)
	for name, a := range s.users.Users {
		if _, ok := b.counted[name]; !ok && s.mayOwn(name) {
			b.counted[name] = a
		}
	}
	return nil
}

// mayOwn says whether the step may make something that is the user's.
func (s *planned) mayOwn(user string) bool {
	home := "/home/" + user
	inHome := func(p string) bool { return inside(p, home) }
	c := s.step.Copy
	if c == nil {
		return inHome(s.step.Workdir) || slices.ContainsFunc(s.dirs, inHome)
	}
	if slices.Contains(strings.Split(c.Chown, ":"), user) || inHome(c.Dest) {
		return true
	}
	return inside(home, c.Dest) && slices.ContainsFunc(s.set.entries, func(e copyEntry) bool {
		return inHome(path.Join(c.Dest, e.To))
	})
}

// changesAccounts says whether a step may bring users or groups into the image.
func (s *planned) changesAccounts() bool {
	c := s.step.Copy
	if c == nil {
		return s.step.Op != formfile.OpWorkdir
	}
	return inside(c.Dest, "/etc") || inside("/etc", c.Dest) && slices.ContainsFunc(s.set.entries, func(e copyEntry) bool {
		return inside(path.Join(c.Dest, e.To), "/etc")
	})
}

// inside says whether the cleaned absolute path p is dir or below it.
func inside(p, dir string) bool {
	return p == dir || dir == "/" || strings.HasPrefix(p, dir+"/")
}

// usersIn are the Formfile's users as the guest numbers them on an image: a name
// that is there keeps its number, the others have those of the base.
func (b *builder) usersIn(img accounts) accounts {
	out := accounts{Users: maps.Clone(b.users.Users), Groups: maps.Clone(b.users.Groups)}
	for name, a := range out.Users {
		if g, ok := img.Groups[name]; ok {
			a.GID, out.Groups[name] = g, g
		}
		if have, ok := img.Users[name]; ok {
			a = have
		}
		out.Users[name] = a
	}
	return out
}

// checkScopes refuses variables for users that nobody will have made. Services
// have no such list: any name may be one.
func (b *builder) checkScopes(img accounts) error {
	users := []string{"root"}
	for _, u := range b.File.Users {
		users = append(users, u.Username)
	}
	users = append(users, slices.Sorted(maps.Keys(img.Users))...)
	var errs []error
	for _, v := range b.File.Env {
		name, ok := strings.CutPrefix(v.Scope, "user:")
		if ok && !slices.Contains(users, name) {
			errs = append(errs, &ContextError{b.File.Source, v.Pos, fmt.Sprintf("--scope=%s: neither the image nor a USER of the Formfile has the name %s%s", v.Scope, name, formfile.DidYouMean(name, users))})
		}
	}
	return joinErrors(errs)
}

// joinErrors keeps a single error as it is.
func joinErrors(errs []error) error {
	if len(errs) == 1 {
		return errs[0]
	}
	return errors.Join(errs...)
}

// settleUsers gives the users their final numbers. It refuses an image in which
// a step took one of them, or moved a user whose files are there already.
func (b *builder) settleUsers() error {
	img, err := b.imageAccounts()
	if err != nil {
		return err
	}
	if err := b.checkScopes(img); err != nil {
		return err
	}
	final := b.usersIn(img)
	for _, u := range b.File.Users {
		refuse := func(format string, args ...any) error {
			return &ContextError{b.File.Source, u.Pos, fmt.Sprintf(format, args...)}
		}
		a := final.Users[u.Username]
		if before, ok := b.counted[u.Username]; ok && before != a {
			return refuse("user %s got the numbers %d:%d from a step, after files were made for %d:%d: make the user in an earlier step, or not at all", u.Username, a.UID, a.GID, before.UID, before.GID)
		}
		if _, there := img.Users[u.Username]; there {
			continue
		}
		for _, name := range slices.Sorted(maps.Keys(img.Users)) {
			if img.Users[name].UID == a.UID {
				return refuse("user %s needs the number %d, which a step gave to %s: give that one another, with useradd --uid", u.Username, a.UID, name)
			}
		}
		for _, name := range slices.Sorted(maps.Keys(img.Groups)) {
			if img.Groups[name] == a.GID && name != u.Username {
				return refuse("user %s needs the number %d for a group, which a step gave to group %s: give that one another, with groupadd --gid", u.Username, a.GID, name)
			}
		}
	}
	b.users = final
	return nil
}

// imageAccounts are the names of the image as the steps so far left it.
func (b *builder) imageAccounts() (accounts, error) {
	passwd, changed, err := readLowers(b.stack.Lowers, "etc/passwd")
	if err != nil {
		return accounts{}, err
	}
	group, changedGroup, err := readLowers(b.stack.Lowers, "etc/group")
	if err != nil {
		return accounts{}, err
	}
	a, err := readAccounts(bytes.NewReader(passwd), bytes.NewReader(group))
	if !changed {
		a.Users = b.base.Accounts.Users
	}
	if !changedGroup {
		a.Groups = b.base.Accounts.Groups
	}
	return a, err
}

// readLowers reads a file from the topmost difference that says something about
// it: nil if that deletes it, or has no file there. There is false if none does.
func readLowers(lowers []string, name string) (text []byte, there bool, err error) {
	for _, upper := range lowers {
		if text, there, err = readLower(upper, name); there || err != nil {
			break
		}
	}
	if err != nil {
		err = fmt.Errorf("read /%s of the image: %w", name, err)
	}
	return text, there, err
}

func readLower(upper, name string) (text []byte, there bool, err error) {
	root, err := os.OpenRoot(upper)
	if err != nil {
		return nil, false, err
	}
	defer root.Close()
	dir := filepath.Dir(name)
	st, err := root.Lstat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, false, nil
	case err != nil || !st.IsDir(): // a whiteout, say
		return nil, err == nil, err
	}
	hides, err := isOpaque(filepath.Join(upper, dir))
	if err != nil {
		return nil, false, err
	}
	st, err = root.Lstat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, hides, nil
	case err != nil || !st.Mode().IsRegular():
		return nil, err == nil, err
	}
	text, err = root.ReadFile(name)
	return text, err == nil, err
}
