package guest

import (
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"unicode"

	"golang.org/x/crypto/ssh"
)

// MaxReason bounds a Status.Reason in bytes: reasons travel in signed claims,
// which have a bound of their own.
const MaxReason = 256

// maxKeyText is more than any line of a key an honest guest reports.
const maxKeyText = 1 << 10

// checked is what a host may believe and pass on of a guest's word: keys are
// exactly keys, in their canonical form, and text is short and printable. A
// field that is not is left empty and named by the error.
func (s Status) checked() (Status, error) {
	var err1, err2 error
	s.SSHHostKey, err1 = checkedHostKey(s.SSHHostKey)
	s.MeshKey, err2 = checkedMeshKey(s.MeshKey)
	s.Reason, s.MeshProblem = ClipReason(s.Reason), ClipReason(s.MeshProblem)
	return s, errors.Join(err1, err2)
}

// checkedHostKey is "ssh-ed25519 BASE64", the comment dropped, or nothing.
func checkedHostKey(line string) (string, error) {
	if line == "" {
		return "", nil
	}
	if len(line) > maxKeyText || strings.ContainsAny(line, "\r\n") {
		return "", fmt.Errorf("SSH host key of %d bytes is not one line", len(line))
	}
	key, _, options, _, err := ssh.ParseAuthorizedKey([]byte(line))
	if err != nil {
		return "", fmt.Errorf("SSH host key: %w", err)
	}
	if key.Type() != ssh.KeyAlgoED25519 || len(options) > 0 {
		return "", fmt.Errorf("SSH host key: want a plain %s, got %s", ssh.KeyAlgoED25519, key.Type())
	}
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key))), nil
}

// checkedMeshKey is the 44 characters of a WireGuard public key, or nothing.
func checkedMeshKey(text string) (string, error) {
	if text == "" {
		return "", nil
	}
	key, err := base64.StdEncoding.Strict().DecodeString(text[:min(len(text), maxKeyText)])
	if err != nil || len(key) != 32 || len(text) != base64.StdEncoding.EncodedLen(32) {
		return "", fmt.Errorf("mesh key of %d bytes is not the base64 of 32", len(text))
	}
	return text, nil
}

// ClipReason makes any text a Status.Reason: one line of printable UTF-8 of at
// most MaxReason bytes, of which the end is kept.
func ClipReason(s string) string {
	// Cut before as well, since the text may be long, and after, since what
	// replaces a byte may be longer than it.
	s = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(clip(s, 2*MaxReason), "?"))
	return strings.ToValidUTF8(clip(s, MaxReason), "")
}

// clip cuts s to at most n bytes, keeping its end: of an output's tail the end
// is what matters.
func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return "…" + s[len(s)-n+3:]
}
