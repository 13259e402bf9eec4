package main

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/formthefog/formation/cmd/form/internal/cli"
	"github.com/formthefog/formation/cmd/form/internal/kit"
	"github.com/formthefog/formation/cmd/internal/api"
	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/stmt"
	"github.com/formthefog/formation/store"
)

// wishes is what the owner asks for beyond the pack, checked.
type wishes struct {
	replicas int // 0: the pack's
	env      map[string]string
	labels   map[string]string
	region   *string // nil: as it is
	sshKeys  []string
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
	if w.env, err = pairs("--env", o.env); err != nil {
		return w, err
	}
	if w.labels, err = pairs("--label", o.labels); err != nil {
		return w, err
	}
	if o.given("region") {
		w.region = &o.region
	}
	w.sshKeys, err = a.moreSSHKeys(o.sshKeys)
	return w, err
}

func pairs(flag string, list []string) (map[string]string, error) {
	out := map[string]string{}
	for _, kv := range list {
		k, v, ok := strings.Cut(kv, "=")
		if !ok || k == "" {
			return nil, cli.Errorf(api.ExitUsage, "%s %q is not K=V", flag, kv)
		}
		out[k] = v
	}
	return out, nil
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
// mention stays.
func (w wishes) apply(s *crdt.Spec, id cid.Cid, root *store.Root, update bool) {
	s.Pack = id.String()
	s.Phase = crdt.PhaseRunning
	s.VCPU, s.MemoryBytes, s.DiskBytes = root.Run.VCPU, root.Run.MemoryBytes, root.Run.DiskBytes
	s.Partition = root.Run.Partition
	s.Expose = nil
	for _, p := range root.Run.Expose {
		s.Expose = append(s.Expose, fmt.Sprintf("%d/%s", p.Port, p.Proto))
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
	for _, k := range w.sshKeys {
		if !slices.Contains(s.SSHKeys, k) {
			s.SSHKeys = append(s.SSHKeys, k)
		}
	}
}

// change writes what was asked for beside the pack.
func (w wishes) change(s *crdt.Spec) {
	if w.replicas > 0 {
		s.Replicas = w.replicas
	}
	s.Env = merged(s.Env, w.env)
	s.Labels = merged(s.Labels, w.labels)
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

func merged(old, more map[string]string) map[string]string {
	if len(more) == 0 {
		return old
	}
	out := maps.Clone(old)
	if out == nil {
		out = map[string]string{}
	}
	maps.Copy(out, more)
	return out
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
			a.p.Warn("ENV %s looks like a credential, and every member of the swarm can read it", e.Key)
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
