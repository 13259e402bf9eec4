package build

import (
	"bufio"
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/GehirnInc/crypt/sha512_crypt"

	"github.com/formthefog/formation/store/formfile"
)

// firstUID is where Debian starts to number people.
const firstUID = 1000

// accounts are the names of an image, for COPY --chown.
type accounts struct {
	Users  map[string]account `json:"users"`
	Groups map[string]int     `json:"groups"`
}

type account struct {
	UID int `json:"uid"`
	GID int `json:"gid"`
}

// readAccounts parses passwd(5) and group(5) texts; lines that are not of
// their form are skipped, as the C library does.
func readAccounts(passwd, group io.Reader) (accounts, error) {
	a := accounts{Users: map[string]account{}, Groups: map[string]int{}}
	err := eachRecord(passwd, func(f []string) {
		uid, uerr := strconv.Atoi(f[2])
		if len(f) < 4 || uerr != nil {
			return
		}
		if gid, gerr := strconv.Atoi(f[3]); gerr == nil {
			a.Users[f[0]] = account{uid, gid}
		}
	})
	if err != nil {
		return a, fmt.Errorf("read passwd: %w", err)
	}
	err = eachRecord(group, func(f []string) {
		if gid, gerr := strconv.Atoi(f[2]); gerr == nil {
			a.Groups[f[0]] = gid
		}
	})
	if err != nil {
		return a, fmt.Errorf("read group: %w", err)
	}
	return a, nil
}

func eachRecord(r io.Reader, f func(fields []string)) error {
	s := bufio.NewScanner(r)
	for s.Scan() {
		if fields := strings.Split(s.Text(), ":"); len(fields) >= 3 {
			f(fields)
		}
	}
	return s.Err()
}

// assignUIDs numbers the Formfile's users, and the guest does as the pack says:
// those the base knows keep their number, the others get the free ones from
// firstUID in the file's order, before any group of theirs. A new user's own
// group is that of its name, if there is one, else has its number.
func assignUIDs(users []formfile.User, base accounts) accounts {
	taken := map[int]bool{}
	for _, u := range base.Users {
		taken[u.UID] = true
	}
	for _, g := range base.Groups {
		taken[g] = true
	}
	out := accounts{Users: map[string]account{}, Groups: map[string]int{}}
	next := firstUID
	for _, u := range users {
		if have, ok := base.Users[u.Username]; ok {
			out.Users[u.Username] = have
			continue
		}
		for taken[next] {
			next++
		}
		taken[next] = true
		gid := next
		if g, ok := base.Groups[u.Username]; ok {
			gid = g
		}
		out.Users[u.Username] = account{next, gid}
		out.Groups[u.Username] = gid
	}
	return out
}

// owner resolves "user[:group]" in an image whose names are img, to which the
// guest will add those of add.
func (img accounts) owner(chown string, add accounts) (uid, gid int, err error) {
	name, group, hasGroup := strings.Cut(chown, ":")
	if n, nerr := strconv.Atoi(name); nerr == nil {
		uid, gid = n, n
	} else if a, ok := add.Users[name]; ok {
		uid, gid = a.UID, a.GID
	} else if a, ok := img.Users[name]; ok {
		uid, gid = a.UID, a.GID
	} else {
		return 0, 0, fmt.Errorf("--chown=%s: neither the image nor a USER of the Formfile has the name %s", chown, name)
	}
	if !hasGroup {
		return uid, gid, nil
	}
	if n, nerr := strconv.Atoi(group); nerr == nil {
		return uid, n, nil
	}
	if g, ok := add.Groups[group]; ok {
		return uid, g, nil
	}
	if g, ok := img.Groups[group]; ok {
		return uid, g, nil
	}
	return 0, 0, fmt.Errorf("--chown=%s: neither the image nor a USER of the Formfile has the group %s", chown, group)
}

// hashRounds makes guessing a password from a pack, which members can read,
// cost about 50 ms a try.
const hashRounds = 50_000

// hashPassword gives the sha512-crypt hash of a user's password. Its salt is
// derived from the author's key, so that builds repeat and nobody else can
// prepare tables for it.
func hashPassword(key ed25519.PrivateKey, pack string, u formfile.User) (string, error) {
	secret, err := hkdf.Key(sha256.New, key.Seed(), nil, "formation/passwd-salt/1", 32)
	if err != nil {
		return "", fmt.Errorf("derive salt: %w", err)
	}
	mac := hmac.New(sha256.New, secret)
	for _, s := range []string{pack, u.Username, string(u.Password)} {
		fmt.Fprintf(mac, "%d:%s", len(s), s)
	}
	// Twelve bytes are sixteen characters, the longest salt; crypt's alphabet
	// has . where base64 has +.
	salt := strings.ReplaceAll(base64.StdEncoding.EncodeToString(mac.Sum(nil)[:12]), "+", ".")
	hash, err := sha512_crypt.New().Generate([]byte(u.Password), []byte(fmt.Sprintf("$6$rounds=%d$%s", hashRounds, salt)))
	if err != nil {
		return "", fmt.Errorf("hash password of %s: %w", u.Username, err)
	}
	return hash, nil
}
