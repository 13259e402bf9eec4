package main

import (
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/formthefog/formation/cmd/form/internal/cli"
	"github.com/formthefog/formation/cmd/form/internal/kit"
	"github.com/formthefog/formation/cmd/internal/api"
	"github.com/formthefog/formation/cmd/internal/config"
	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/policy"
	"github.com/formthefog/formation/crdt/stmt"
	"github.com/formthefog/formation/store"
)

// wishes is what the owner asks for beyond the pack, checked.
type wishes struct {
	replicas int // 0: the pack's
	env      edits
	labels   edits
	region   *string // nil: as it is
	sshKeys  []string
	voters   voterWish
	secrets  []shipSecret
}

// edits is what K=V and K- flags do to a map.
type edits struct {
	set  map[string]string
	drop []string
}

// of is old after the edits; old stays as it is.
func (e edits) of(old map[string]string) map[string]string {
	out := maps.Clone(old)
	if out == nil {
		out = map[string]string{}
	}
	for _, k := range e.drop {
		delete(out, k)
	}
	maps.Copy(out, e.set)
	return out
}

// readWishes checks every flag before anything is built or dialled.
func (a *app) readWishes(o shipOptions) (w wishes, err error) {
	if o.given("replicas") && (o.replicas < 1 || o.replicas > crdt.MaxReplicas) {
		return w, cli.Errorf(api.ExitUsage, "--replicas: %d is not between 1 and %d", o.replicas, crdt.MaxReplicas)
	}
	if o.wait != "" && o.wait != waitReady && o.wait != waitAll {
		return w, cli.Errorf(api.ExitUsage, "--wait: %q is neither %q nor %q", o.wait, waitReady, waitAll)
	}
	if o.hold < 0 {
		return w, cli.Errorf(api.ExitUsage, "--hold: %s is negative", o.hold)
	}
	w.replicas = o.replicas
	if w.env, err = readEdits("--env", o.env, checkEnv); err != nil {
		return w, err
	}
	if w.labels, err = readEdits("--label", o.labels, checkLabel); err != nil {
		return w, err
	}
	if len(o.region) > maxRegion {
		return w, cli.Errorf(api.ExitUsage, "--region: %d bytes; a node's region has at most %d", len(o.region), maxRegion)
	}
	if o.given("region") {
		w.region = &o.region
	}
	if w.voters, err = readVoters(o.voters, o.given("voters")); err != nil {
		return w, err
	}
	if w.sshKeys, err = a.moreSSHKeys(o.sshKeys); err != nil {
		return w, err
	}
	if err := w.rehearse(o.name); err != nil {
		return w, err
	}
	// Last: standard input may be a terminal.
	w.secrets, err = a.readSecrets(o.secrets)
	return w, err
}

// rehearse signs an instance of nothing but the wishes, with a key made for it:
// what an owner's statement cannot hold is found before anything is built.
func (w wishes) rehearse(name string) error {
	what := "--name, --env, --label, --ssh-key"
	if name == "" {
		name = "x"
	}
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return fmt.Errorf("rehearse: %w", err)
	}
	au, err := crdt.NewAuthor(key, stmt.NetworkID{}, nil)
	if err != nil {
		return fmt.Errorf("rehearse: %w", err)
	}
	spec := crdt.Spec{Name: name, SSHKeys: w.sshKeys}
	w.change(&spec)
	if _, _, err = au.Create(spec); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// maxRegion is the longest region a node may have, in bytes.
const maxRegion = 63

var envKey = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

func checkEnv(k, v string) error {
	switch {
	case !envKey.MatchString(k):
		return fmt.Errorf("%q: a variable's name has letters, digits and _, and no digit first", k)
	case strings.ContainsRune(v, 0):
		return fmt.Errorf("the value of %s holds a zero byte", k)
	}
	return nil
}

// checkLabel wants what a node's label can be, or it would match none.
func checkLabel(k, v string) error {
	_, err := config.ParseLabels([]string{k + "=" + v})
	return err
}

// readEdits reads K=V, and K- to take K back.
func readEdits(flag string, list []string, check func(k, v string) error) (edits, error) {
	e := edits{set: map[string]string{}}
	for _, w := range list {
		k, v, set := strings.Cut(w, "=")
		if !set {
			var ok bool
			if k, ok = strings.CutSuffix(w, "-"); !ok || k == "" {
				return e, cli.Errorf(api.ExitUsage, "%s %q is neither K=V nor K- (to take K back)", flag, w)
			}
			e.drop = append(e.drop, k)
			continue
		}
		if err := check(k, v); err != nil {
			return e, cli.Errorf(api.ExitUsage, "%s: %w", flag, err)
		}
		e.set[k] = v
	}
	return e, nil
}

// moreSSHKeys is whom every USER of the instance lets in beside the kit's own
// key: the kit's further keys, and those of --ssh-key.
func (a *app) moreSSHKeys(more []string) (out []string, err error) {
	k, err := a.kit()
	if err != nil {
		return nil, err
	}
	for _, s := range append(slices.Clone(k.SSHKeys), more...) {
		lines, err := readSSHKeys(s)
		if err != nil {
			return nil, err
		}
		out = append(out, lines...)
	}
	return out, nil
}

// ownSSHKey is the kit's own, in authorized_keys form.
func (a *app) ownSSHKey() (string, error) {
	key, err := a.key()
	if err != nil {
		return "", err
	}
	own, err := kit.SSHKey(key)
	if err != nil {
		return "", err
	}
	return kit.AuthorizedKey(own)
}

// readSSHKeys is one public key, or those of a file.
func readSSHKeys(s string) ([]string, error) {
	if key, err := kit.ParseAuthorizedKey(s); err == nil {
		return []string{key}, nil
	}
	b, err := os.ReadFile(s)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, cli.Errorf(api.ExitUsage, "SSH key %q is neither a public key nor a file", s)
		}
		return nil, fmt.Errorf("SSH key: %w", err)
	}
	var out []string
	for l := range strings.SplitSeq(string(b), "\n") {
		if l = strings.TrimSpace(l); l == "" || strings.HasPrefix(l, "#") {
			continue
		}
		if strings.Contains(l, "PRIVATE KEY") {
			return nil, cli.Errorf(api.ExitUsage, "%s is a private key, and stays where it is", s).Hint("give its public half: %s.pub", s)
		}
		key, err := kit.ParseAuthorizedKey(l)
		if err != nil {
			return nil, cli.Errorf(api.ExitUsage, "%s: %w", s, err)
		}
		out = append(out, key)
	}
	return out, nil
}

// apply writes the pack and the wishes into a spec. What an update does not
// mention stays, but for the SSH keys: who is let in is said anew by each ship,
// or a key that was taken out of the kit would be let in for ever.
func (w wishes) apply(s *crdt.Spec, id cid.Cid, root *store.Root, update bool) {
	s.Pack = id.String()
	s.Phase = crdt.PhaseRunning
	s.VCPU, s.MemoryBytes, s.DiskBytes = root.Run.VCPU, root.Run.MemoryBytes, root.Run.DiskBytes
	s.Partition = root.Run.Partition
	s.Expose = nil
	for _, p := range root.Run.Expose {
		s.Expose = append(s.Expose, policy.Port{Number: p.Port, Proto: p.Proto, Public: p.Public}.String())
	}
	var gpus []string
	for _, g := range root.Run.GPU {
		gpus = append(gpus, fmt.Sprintf("%s:%d", g.Model, g.Count))
	}
	s.GPU = strings.Join(gpus, ",")
	switch {
	case root.Run.Replicas > 0:
		s.Replicas = root.Run.Replicas
	case !update || s.Replicas == 0:
		s.Replicas = defaultReplicas
	}
	w.change(s)
	s.SSHKeys = w.sshKeys
}

// change writes what was asked for beside the pack.
func (w wishes) change(s *crdt.Spec) {
	if w.replicas > 0 {
		s.Replicas = w.replicas
	}
	s.Env, s.Labels = w.env.of(s.Env), w.labels.of(s.Labels)
	if w.region != nil {
		s.Region = *w.region
	}
}

// authorised is whom an instance lets in: the kit's own key and the others.
func (w wishes) authorised(own string) []string {
	keys := []string{own}
	for _, k := range w.sshKeys {
		if !slices.Contains(keys, k) {
			keys = append(keys, k)
		}
	}
	return keys
}

// warnSecrets says what of a pack its readers can see.
func (a *app) warnSecrets(root *store.Root) {
	for _, u := range root.Run.Users {
		if u.PasswordHash != "" {
			a.p.Warn("the pack holds a password hash (user %s), and every member of the swarm can read it\nhint: log in by SSH key instead: leave passwd: out", u.Name)
			break
		}
	}
	for _, e := range root.Run.Env {
		if secretName(e.Key) && e.Value != "" {
			a.p.Warn("ENV %s looks like a credential, and every member of the swarm can read it\nhint: leave it out, and give it to the instance once it is shipped: form secret set INSTANCE %s --env", e.Key, e.Key)
		}
	}
}

func secretName(key string) bool {
	key = strings.ToUpper(key)
	for _, w := range []string{"PASSWORD", "PASSWD", "SECRET", "TOKEN", "API_KEY", "APIKEY", "PRIVATE_KEY", "CREDENTIAL"} {
		if strings.Contains(key, w) {
			return true
		}
	}
	return false
}

// maxScan bounds the search for credentials in a context.
const maxScan = 20000

// warnFiles looks at the names of what COPY takes in.
func (a *app) warnFiles(in buildInput) error {
	var found []string
	seen := 0
	for _, st := range in.file.Steps {
		if st.Copy == nil {
			continue
		}
		for _, src := range st.Copy.Sources {
			hits, err := filepath.Glob(filepath.Join(in.dir, filepath.FromSlash(src)))
			if err != nil {
				return fmt.Errorf("COPY %s: %w", src, err)
			}
			for _, h := range hits {
				err := filepath.WalkDir(h, func(p string, d fs.DirEntry, err error) error {
					if seen++; err != nil || seen > maxScan {
						return fs.SkipAll // the builder says what it cannot read
					}
					if !d.IsDir() && secretFile(d.Name()) {
						rel, err := filepath.Rel(in.dir, p)
						if err != nil {
							return err
						}
						found = append(found, rel)
					}
					return nil
				})
				if err != nil {
					return fmt.Errorf("look for credentials: %w", err)
				}
			}
		}
	}
	if len(found) > 0 {
		slices.Sort(found)
		found = slices.Compact(found)
		a.p.Warn("these look like credentials, and every member of the swarm can read a pack: %s\nhint: unless .formignore leaves them out already, name them there", strings.Join(found[:min(len(found), 8)], ", "))
	}
	return nil
}

// secretFile says whether a file's name is one that usually holds a credential.
func secretFile(name string) bool {
	switch name = strings.ToLower(name); name {
	case ".env", ".netrc", ".npmrc", ".pypirc", ".pgpass", ".git-credentials", ".htpasswd", "credentials", "credentials.json", "kubeconfig",
		"id_rsa", "id_ecdsa", "id_ed25519", "id_dsa", "key.age", "secrets.yaml", "secrets.yml", "secrets.json":
		return true
	}
	return strings.HasPrefix(name, ".env.") || slices.Contains([]string{".pem", ".key", ".p12", ".pfx", ".jks", ".kdbx"}, filepath.Ext(name))
}

// keyOf is a peer's key; peers of a swarm have Ed25519 keys only.
func keyOf(p peer.ID) stmt.Key {
	k, err := stmt.KeyOfPeerID(string(p))
	if err != nil {
		return stmt.Key{}
	}
	return k
}
