package guest

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"fmt"
	"maps"
	"slices"
	"strings"

	"golang.org/x/crypto/ssh"
)

// keysDir holds one authorized_keys file per user. It is on a tmpfs: an owner's
// keys come with the spec and must not end up in a committed pack.
const keysDir = "/run/formation/authorized_keys.d"

// hostKeyPath is on the writable disk but outside the root's own tree: neither a
// key that an image brings is ever used, nor does a commit take this one along.
const hostKeyPath = diskHome + "/ssh_host_ed25519_key"

// diskHome is where the writable disk itself is mounted in the guest; its
// folder "upper" is what the guest changed of its root.
const diskHome = "/run/formation/disk"

// sshdConfig is the drop-in that sorts before all others; sshd keeps the first
// value it reads of each keyword.
func sshdConfig(cfg Config, env environment) string {
	var b strings.Builder
	b.WriteString("# Written at each boot by the guest agent.\n")
	fmt.Fprintf(&b, "HostKey %s\n", hostKeyPath)
	b.WriteString("UsePAM yes\nUseDNS no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\nPubkeyAuthentication yes\nStrictModes yes\n")
	fmt.Fprintf(&b, "AuthorizedKeysFile .ssh/authorized_keys %s/%%u\n", keysDir)
	if rootLogin(cfg.Users) {
		b.WriteString("PermitRootLogin prohibit-password\n")
	} else {
		b.WriteString("PermitRootLogin no\n")
	}
	// Not every value survives /etc/environment, and PAM reads only that.
	b.WriteString(strings.TrimPrefix(setEnv(env.system), "\t"))
	password := map[string]bool{}
	for _, u := range cfg.Users {
		password[u.Name] = u.SSHPasswordAuth && u.PasswordHash != "" && !u.LockPasswd
	}
	for name := range env.users {
		if _, ours := password[name]; !ours {
			password[name] = false // the image's
		}
	}
	for _, name := range slices.Sorted(maps.Keys(password)) {
		set := ""
		if own := env.users[name]; len(own) > 0 {
			// SetEnv in a Match takes the place of the one outside as a whole.
			all := maps.Clone(env.system)
			maps.Copy(all, own)
			set = setEnv(all)
		}
		if !password[name] && set == "" {
			continue
		}
		fmt.Fprintf(&b, "Match User %s\n", name)
		if password[name] {
			b.WriteString("\tPasswordAuthentication yes\n")
		}
		b.WriteString(set)
	}
	return b.String()
}

// rootLogin: root may log in by key when a user says so, or when there is
// nobody else.
func rootLogin(users []User) bool {
	for _, u := range users {
		if !u.DisableRoot {
			return true
		}
	}
	return len(users) == 0
}

// setEnv is the one SetEnv line there may be. sshd splits it as a shell would:
// in double quotes only \ and " need a backslash.
func setEnv(m map[string]string) string {
	var b strings.Builder
	for _, kv := range list(m) {
		if strings.ContainsAny(kv, "\n\r") {
			continue // cannot be written in this file; the profile has it
		}
		b.WriteString(` "` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(kv) + `"`)
	}
	if b.Len() == 0 {
		return ""
	}
	return "\tSetEnv" + b.String() + "\n"
}

// keyFiles is the authorised keys of everyone who may log in, by user.
func keyFiles(users []User, owner []string) map[string]string {
	lists := map[string][][]string{}
	if rootLogin(users) {
		lists["root"] = nil
	}
	for _, u := range users {
		lists[u.Name] = append(lists[u.Name], u.SSHKeys)
	}
	files := map[string]string{}
	for name, own := range lists {
		files[name] = authorizedKeys(append(own, owner)...)
	}
	return files
}

// authorizedKeys is the content of a user's file; lines that are not keys are
// dropped, because options such as command= are the pack author's to write in
// the image, not the spec's.
func authorizedKeys(lists ...[]string) string {
	var b strings.Builder
	seen := map[string]bool{}
	for _, l := range lists {
		for _, line := range l {
			key, comment, _, _, err := ssh.ParseAuthorizedKey([]byte(line))
			if err != nil {
				continue
			}
			out := strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key)))
			if seen[out] {
				continue
			}
			seen[out] = true
			b.WriteString(out)
			if comment != "" && !strings.ContainsAny(comment, "\n\r") {
				b.WriteString(" " + comment)
			}
			b.WriteString("\n")
		}
	}
	return b.String()
}

// newHostKey makes an ed25519 host key: the private key in OpenSSH form and the
// public one in authorized_keys form without a line end.
func newHostKey() (private []byte, public string, err error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, "", err
	}
	block, err := ssh.MarshalPrivateKey(key, "")
	if err != nil {
		return nil, "", err
	}
	private = pem.EncodeToMemory(block)
	public, err = publicHostKey(private)
	return private, public, err
}

func publicHostKey(private []byte) (string, error) {
	signer, err := ssh.ParsePrivateKey(private)
	if err != nil {
		return "", fmt.Errorf("parse host key: %w", err)
	}
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(signer.PublicKey()))), nil
}

// NewHostKey makes an SSH host key as a guest does at its first boot and
// returns its public half; fakes of guests use it.
func NewHostKey() (public string, err error) {
	_, public, err = newHostKey()
	return public, err
}
