package build

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/ipfs/go-cid"

	"github.com/formthefog/formation/store"
	"github.com/formthefog/formation/store/formfile"
)

// cacheVersion changes whenever the same step may give another layer.
const cacheVersion = "formation/step/2"

// A planned step is one that executes.
type planned struct {
	step formfile.Step
	set  *copySet // of a COPY, once resolved
	dirs []string // of the final WORKDIR step

	users    accounts                // of the Formfile, as the step sees them
	workdirs map[string]formfile.Pos // of the Formfile
}

// planSteps leaves out what needs no execution. ENV is state of the steps after
// it; RUN makes its working directory. One step at the end makes the
// directories that WORKDIR names and nothing else made.
func planSteps(f *formfile.File) []planned {
	var out []planned
	var dirs []string
	workdirs := map[string]formfile.Pos{}
	for _, s := range f.Steps {
		switch s.Op {
		case formfile.OpCopy, formfile.OpInstall, formfile.OpRun:
			out = append(out, planned{step: s, workdirs: workdirs})
		case formfile.OpWorkdir:
			workdirs[s.Workdir] = s.Words[0]
			if s.Workdir != "/" && !slices.Contains(dirs, s.Workdir) {
				dirs = append(dirs, s.Workdir)
			}
		}
	}
	if len(dirs) > 0 {
		last := formfile.Step{Op: formfile.OpWorkdir, Text: "WORKDIR " + f.Workdir, Workdir: "/"}
		for _, s := range f.Steps {
			if s.Op == formfile.OpWorkdir {
				last.Pos = s.Pos
			}
		}
		out = append(out, planned{step: last, dirs: dirs, workdirs: workdirs})
	}
	return out
}

// proxyVars and caVars are given to a step without being part of its key: they
// say how to reach the network from here, not what to fetch.
var (
	proxyVars = []string{"http_proxy", "https_proxy", "ftp_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY"}
	caVars    = []string{"SSL_CERT_FILE", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO", "REQUESTS_CA_BUNDLE", "PIP_CERT", "NODE_EXTRA_CA_CERTS"}
)

// stepEnv is the environment of a command before ENV. SOURCE_DATE_EPOCH makes
// well-behaved tools repeat: account databases and Python's byte code among
// them.
var stepEnv = []string{
	"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
	"HOME=/root",
	"LC_ALL=C.UTF-8",
	"TZ=UTC",
	"DEBIAN_FRONTEND=noninteractive",
	"SOURCE_DATE_EPOCH=" + strconv.Itoa(Epoch),
}

// request is what the sandbox runs for INSTALL, RUN or the final WORKDIR.
func (s *planned) request() *runRequest {
	r := &runRequest{Dir: "/", Mkdirs: s.dirs, Users: s.users}
	var own []string
	switch s.step.Op {
	case formfile.OpInstall:
		r.Install, r.Packages = true, s.step.Install
		// Byte code that is compiled by the way differs by who was first.
		own = []string{"APT_CONFIG=" + aptConf, "PYTHONDONTWRITEBYTECODE=1"}
		r.Commands = [][]string{
			{"apt-get", "-q", "update"},
			append([]string{"apt-get", "-q", "-y", "--no-install-recommends", "install", "--"}, s.step.Install...),
		}
	case formfile.OpRun:
		r.Dir = s.step.Workdir
		r.Commands = [][]string{s.step.Run}
		for _, v := range s.step.Env {
			own = append(own, v.Key+"="+v.Value)
		}
	}
	r.Env = environ(stepEnv, own)
	return r
}

// environ joins lists of K=V, sorted; of a key given twice the later wins.
func environ(lists ...[]string) []string {
	values := map[string]string{}
	for _, l := range lists {
		for _, kv := range l {
			k, v, _ := strings.Cut(kv, "=")
			values[k] = v
		}
	}
	out := make([]string, 0, len(values))
	for k, v := range values {
		out = append(out, k+"="+v)
	}
	slices.Sort(out)
	return out
}

// key names what a step gives by all that decides it: the base, the steps
// before, the instruction with the state in effect, and what COPY brings.
func (s *planned) key(base cid.Cid, prev string, users accounts) string {
	k := newKey("step", base.String(), prev, string(s.step.Op))
	switch s.step.Op {
	case formfile.OpCopy:
		s.copyKey(k, users)
	default:
		r := s.request()
		if !r.Install {
			k.users(users) // whose homes it may make
		}
		k.list(r.Env)
		k.list(r.Mkdirs)
		k.add(r.Dir)
		for _, c := range r.Commands {
			k.list(c)
		}
	}
	return k.sum()
}

func (s *planned) copyKey(k *keyHash, users accounts) {
	c := s.step.Copy
	k.add(c.Dest, strconv.FormatBool(c.DestIsDir), strconv.FormatBool(s.set.single), c.Chown)
	if c.Chmod != nil {
		k.add(strconv.FormatUint(uint64(*c.Chmod), 8))
	}
	k.users(users)
	k.add("files")
	for _, e := range s.set.entries {
		k.add(e.To, e.Type.String(), strconv.FormatUint(uint64(e.Perm), 8), e.Link, string(e.Sum[:]))
	}
}

// resultKey names what a step gave, for the keys of the steps after it: the same
// step may give something else when it runs again, and then so must they.
func resultKey(key, digest string) string { return newKey("result", key, digest).sum() }

// mergeKey names the merge of the first n of layers, all of them on base: what
// is the same there, or hidden there, is no part of a layer.
func mergeKey(base cid.Cid, layers []store.Entry, n int) string {
	k := newKey("merge", base.String(), strconv.Itoa(n))
	for _, e := range layers {
		k.add(string(e.SHA256))
	}
	return k.sum()
}

// A keyHash hashes strings with their lengths, so that no two lists are alike.
type keyHash struct{ h hash.Hash }

func newKey(first ...string) *keyHash {
	k := &keyHash{sha256.New()}
	k.add(cacheVersion)
	k.add(first...)
	return k
}

func (k *keyHash) add(parts ...string) {
	for _, p := range parts {
		var n [8]byte
		binary.BigEndian.PutUint64(n[:], uint64(len(p)))
		k.h.Write(n[:])
		k.h.Write([]byte(p))
	}
}

func (k *keyHash) users(a accounts) {
	k.add("users", strconv.Itoa(len(a.Users)))
	for _, n := range slices.Sorted(maps.Keys(a.Users)) {
		k.add(n, strconv.Itoa(a.Users[n].UID), strconv.Itoa(a.Users[n].GID))
	}
}

func (k *keyHash) list(parts []string) {
	k.add(strconv.Itoa(len(parts)))
	k.add(parts...)
}

// sum is 128 bits in hex: enough against accidents, which is all a private
// cache has to fear, and short in paths.
func (k *keyHash) sum() string { return hex.EncodeToString(k.h.Sum(nil)[:16]) }

// stream writes the files of a COPY as a tar stream, and fails if one is not
// any more what was hashed.
func (c *buildContext) stream(w io.Writer, set *copySet) error {
	tw := tar.NewWriter(w)
	for i := range set.entries {
		e := &set.entries[i]
		h := &tar.Header{Name: e.To, Mode: int64(e.Perm), Size: e.Size, Format: tar.FormatPAX, Typeflag: tar.TypeReg}
		switch e.Type {
		case fs.ModeDir:
			h.Typeflag = tar.TypeDir
		case fs.ModeSymlink:
			h.Typeflag, h.Linkname = tar.TypeSymlink, e.Link
		}
		if err := tw.WriteHeader(h); err != nil {
			return fmt.Errorf("COPY %s: %w", e.From, err)
		}
		if e.Type != 0 {
			continue
		}
		sum := sha256.New()
		_, err := c.read(e.From, io.MultiWriter(tw, sum))
		if errors.Is(err, tar.ErrWriteTooLong) || err == nil && [32]byte(sum.Sum(nil)) != e.Sum {
			err = errors.New("the file changed during the build")
		}
		if err != nil {
			return fmt.Errorf("COPY %s: %w", e.From, err)
		}
	}
	return tw.Close()
}
