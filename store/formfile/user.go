package formfile

import (
	"encoding/base64"
	"encoding/binary"
	"path"
	"regexp"
	"slices"
	"strings"
)

var (
	userName = regexp.MustCompile(`^[a-z_][a-z0-9_-]{0,31}$`)
	// The guest takes no other characters.
	cryptHash   = regexp.MustCompile(`^\$(6|5|y|2[aby]|7|gy)\$[A-Za-z0-9./$=,_+-]{8,}$`)
	cryptPrefix = regexp.MustCompile(`^\$(6|5|y|2[aby]|7|gy)\$`)
)

var userKeys = []string{
	"username", "passwd", "sudo", "ssh_authorized_keys", "lock_passwd", "shell",
	"ssh_pwauth", "disable_root", "chpasswd_expire", "groups",
}

// keySynonyms are words of other tools for our keys.
var keySynonyms = map[string]string{
	"name": "username", "user": "username", "login": "username",
	"password": "passwd", "pass": "passwd",
	"ssh_keys": "ssh_authorized_keys", "ssh_key": "ssh_authorized_keys", "authorized_keys": "ssh_authorized_keys",
}

// meantKey is didYouMean for a USER key.
func meantKey(key string) string {
	names := slices.Clone(userKeys)
	for n := range keySynonyms {
		names = append(names, n)
	}
	slices.Sort(names)
	s := suggest(key, names)
	if k, ok := keySynonyms[s]; ok {
		s = k
	}
	if s == "" {
		return ""
	}
	return "; did you mean " + s + "?"
}

// parseUser parses key:value words. A word without a colon may use = instead.
func (p *parser) parseUser(in *instr) {
	ws, ok := p.words(in.line, in.args)
	if !ok {
		return
	}
	u := User{Pos: in.start(), Shell: DefaultShell, DisableRoot: true}
	errs := len(p.errs)
	seen := map[string]word{}
	unclear := false // a word that may be the username was not understood
	for _, w := range ws {
		if p.full() {
			return
		}
		sep := strings.IndexByte(w.text, ':')
		if sep < 0 {
			sep = strings.IndexByte(w.text, '=')
		}
		if sep <= 0 {
			n := p.errorf(in.pos(w.off), "USER %s is not key:value", show(w.text))
			if userName.MatchString(w.text) && len(ws) == 1 {
				n.hint("USER username:%s", w.text)
			} else {
				n.hint(`a value with blanks needs double quotes: ssh_authorized_keys:"ssh-ed25519 AAAA…"`)
			}
			unclear = true
			continue
		}
		key, value := w.text[:sep], w.cut(sep+1)
		if !slices.Contains(userKeys, key) {
			p.errorf(in.pos(w.off), "USER has no key %s%s", show(key), meantKey(key)).
				hint("one of %s", strings.Join(userKeys, ", "))
			unclear = true
			continue
		}
		if _, twice := seen[key]; twice {
			p.errorf(in.pos(w.off), "USER has %s twice", key)
			continue
		}
		seen[key] = value
		p.userKey(in, &u, key, value)
	}
	if _, ok := seen["username"]; !ok && !unclear {
		p.errorf(in.start(), "USER needs a username").hint("USER username:alice")
	}
	if len(p.errs) == errs {
		p.addUser(in, u, seen)
	}
}

func (p *parser) addUser(in *instr, u User, seen map[string]word) {
	namePos := in.pos(seen["username"].off)
	for _, have := range p.file.Users {
		if have.Username == u.Username {
			p.errorf(namePos, "USER %s is given twice; the first is at line %d", u.Username, have.Pos.Line)
			return
		}
	}
	if u.Username == "root" && u.DisableRoot {
		p.errorf(namePos, "USER root contradicts disable_root:true, the default").hint("add disable_root:false, or use another name with sudo:true")
		return
	}
	if u.Username == "root" && u.Sudo {
		p.errorf(in.pos(seen["sudo"].off), "USER root needs no sudo").hint("leave sudo out")
		return
	}
	if len(p.file.Users) == MaxUsers {
		p.errorf(in.start(), "more than %d users", MaxUsers)
		return
	}
	if u.Password != "" {
		p.warnf(in.pos(seen["passwd"].off), "the password of %s is written in the Formfile, and its hash will be readable in the pack: prefer ssh_authorized_keys", u.Username)
	}
	if u.SSHPwauth && u.Password == "" && u.PasswordHash == "" {
		p.warnf(in.pos(seen["ssh_pwauth"].off), "ssh_pwauth has no effect: %s has no passwd", u.Username)
	}
	p.file.Users = append(p.file.Users, u)
}

func (p *parser) userKey(in *instr, u *User, key string, w word) {
	pos := in.pos(w.off)
	switch key {
	case "username":
		if !userName.MatchString(w.text) {
			p.errorf(pos, "username %s: 1–32 characters of a–z, 0–9, _ and -, starting with a letter or _", show(w.text))
		}
		u.Username = w.text
	case "passwd":
		switch {
		case w.text == "":
			p.errorf(pos, "passwd is empty").hint("leave passwd out for an account without one")
		case len(w.text) > 256:
			p.errorf(pos, "passwd is longer than 256 bytes")
		case cryptHash.MatchString(w.text):
			u.PasswordHash = Secret(w.text)
		case cryptPrefix.MatchString(w.text):
			p.errorf(pos, "passwd starts like a crypt(3) hash, and goes on with what no hash has").hint("openssl passwd -6 makes one")
		default:
			u.Password = Secret(w.text)
		}
	case "ssh_authorized_keys":
		u.SSHKeys = p.sshKeys(in, w)
	case "shell":
		if !path.IsAbs(w.text) || path.Clean(w.text) != w.text || strings.ContainsAny(w.text, ": ") || len(w.text) > 255 {
			p.errorf(pos, "shell %s is not an absolute path", show(w.text)).hint("shell:/bin/bash")
		}
		u.Shell = w.text
	case "groups":
		u.Groups = p.groups(in, w)
	default:
		b, ok := parseBool(w.text)
		if !ok {
			p.errorf(pos, "%s must be true or false, not %s%s", key, show(w.text), didYouMean(w.text, []string{"true", "false", "yes", "no"}))
		}
		switch key {
		case "sudo":
			u.Sudo = b
		case "lock_passwd":
			u.LockPassword = b
		case "ssh_pwauth":
			u.SSHPwauth = b
		case "disable_root":
			u.DisableRoot = b
		case "chpasswd_expire":
			u.ExpirePasswd = b
		}
	}
}

func parseBool(s string) (v, ok bool) {
	switch strings.ToLower(s) {
	case "true", "yes", "1", "on":
		return true, true
	case "false", "no", "0", "off":
		return false, true
	}
	return false, false
}

func (p *parser) groups(in *instr, w word) []string {
	var out []string
	off := 0
	for g := range strings.SplitSeq(w.text, ",") {
		if t := strings.TrimSpace(g); !userName.MatchString(t) {
			p.errorf(in.pos(w.at(off)), "%s is not a group name", show(g))
		} else if !slices.Contains(out, t) {
			out = append(out, t)
		}
		if len(out) > MaxUsers {
			p.errorf(in.pos(w.off), "more than %d groups", MaxUsers)
		}
		if len(out) > MaxUsers || p.full() {
			return nil
		}
		off += len(g) + 1
	}
	return out
}

// sshKeys takes a comma list of public keys. One that OpenSSH would ignore is
// kept out of nothing here: it is a warning, because it opens no door.
func (p *parser) sshKeys(in *instr, w word) []string {
	var out []string
	for k := range strings.SplitSeq(w.text, ",") {
		k = strings.TrimSpace(k)
		if k == "" {
			continue
		}
		if len(k) > MaxValueBytes {
			p.errorf(in.pos(w.off), "an SSH key is longer than %d bytes", MaxValueBytes)
			return nil
		}
		if !validSSHKey(k) {
			p.warnf(in.pos(w.off), "%s is not an OpenSSH public key: sshd will ignore it", show(k))
		}
		if out = append(out, k); len(out) > MaxSSHKeys {
			p.errorf(in.pos(w.off), "more than %d SSH keys", MaxSSHKeys)
			return nil
		}
	}
	if len(out) == 0 {
		p.errorf(in.pos(w.off), "ssh_authorized_keys is empty")
	}
	return out
}

// validSSHKey checks "TYPE BASE64 [comment]" where the blob repeats the type.
func validSSHKey(s string) bool {
	f := strings.Fields(s)
	if len(f) < 2 {
		return false
	}
	blob, err := base64.StdEncoding.DecodeString(f[1])
	if err != nil || len(blob) < 4 {
		return false
	}
	n := binary.BigEndian.Uint32(blob)
	return uint64(n) <= uint64(len(blob)-4) && string(blob[4:4+n]) == f[0]
}
