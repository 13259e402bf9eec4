package keystore

import (
	"bytes"
	"crypto/ed25519"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func unhex(t *testing.T, s string) []byte {
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// The published vectors of SLIP-0010 for ed25519.
func TestDerive(t *testing.T) {
	const seed1 = "000102030405060708090a0b0c0d0e0f"
	const seed2 = "fffcf9f6f3f0edeae7e4e1dedbd8d5d2cfccc9c6c3c0bdbab7b4b1aeaba8a5a29f9c999693908d8a8784817e7b7875726f6c696663605d5a5754514e4b484542"
	for _, c := range []struct {
		seed            string
		path            []uint32
		private, public string
	}{
		{seed1, nil, "2b4be7f19ee27bbf30c667b642d5f4aa69fd169872f8fc3059c08ebae2eb19e7", "a4b2856bfec510abab89753fac1ac0e1112364e7d250545963f135f2a33188ed"},
		{seed1, []uint32{0}, "68e0fe46dfb67e368c75379acec591dad19df3cde26e63b93a8e704f1dade7a3", "8c8a13df77a28f3445213a0f432fde644acaa215fc72dcdf300d5efaa85d350c"},
		{seed1, []uint32{0, 1}, "b1d0bad404bf35da785a64ca1ac54b2617211d2777696fbffaf208f746ae84f2", "1932a5270f335bed617d5b935c80aedb1a35bd9fc1e31acafd5372c30f5c1187"},
		{seed2, nil, "171cb88b1b3c1db25add599712e36245d75bc65a1a5c9e18d76f9f2b1eab4012", "8fe9693f8fa62a4305a140b9764c5ee01e455963744fe18204b4fb948249308a"},
	} {
		key := derive(unhex(t, c.seed), c.path)
		if got := hex.EncodeToString(key.Seed()); got != c.private {
			t.Errorf("%s %v: private %s, want %s", c.seed, c.path, got, c.private)
		}
		if got := hex.EncodeToString(key.Public().(ed25519.PublicKey)); got != c.public {
			t.Errorf("%s %v: public %s, want %s", c.seed, c.path, got, c.public)
		}
	}
}

const words = "abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon about"

func TestWords(t *testing.T) {
	key, err := FromMnemonic(words, "")
	if err != nil {
		t.Fatal(err)
	}
	// What is on paper must give the same key for ever. Computed by another
	// implementation (PBKDF2 and HMAC by hand, openssl).
	const want = "b74c709bf5ebc83105d31a4f71d1226c8f2d4dba92f964950b5bc1d226bc19c2"
	if got := hex.EncodeToString(key.Public().(ed25519.PublicKey)); got != want {
		t.Errorf("public key %s, want %s", got, want)
	}
	if k, err := FromMnemonic("  "+strings.ToUpper(words)+"\n", ""); err != nil || !k.Equal(key) {
		t.Errorf("case and spacing change the key (%v)", err)
	}
	if k, err := FromMnemonic(words, "x"); err != nil || k.Equal(key) {
		t.Errorf("a passphrase does not change the key (%v)", err)
	}
	for _, n := range []int{12, 24} {
		w, err := NewMnemonic(n)
		if err != nil || len(strings.Fields(w)) != n {
			t.Fatalf("NewMnemonic(%d): %d words, %v", n, len(strings.Fields(w)), err)
		}
		if _, err := FromMnemonic(w, ""); err != nil {
			t.Errorf("new words are not valid: %v", err)
		}
		again, err := NewMnemonic(n)
		if err != nil || again == w {
			t.Errorf("the same words twice (%v)", err)
		}
	}
	if _, err := NewMnemonic(15); !errors.Is(err, ErrWords) {
		t.Errorf("NewMnemonic(15): %v", err)
	}
	for _, bad := range []string{"", "abandon", strings.Replace(words, "about", "abandon", 1), strings.Replace(words, "about", "abuot", 1), words + " " + words + " x"} {
		_, err := FromMnemonic(bad, "")
		if !errors.Is(err, ErrWords) {
			t.Errorf("FromMnemonic(%q): %v, want ErrWords", bad, err)
		}
		if err != nil && strings.Contains(err.Error(), "abuot") {
			t.Errorf("the error shows a word: %v", err)
		}
	}
}

func give(password string) func() ([]byte, error) {
	return func() ([]byte, error) { return []byte(password), nil }
}

func TestSaveLoad(t *testing.T) {
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, password := range []string{"", "correct horse"} {
		file := filepath.Join(t.TempDir(), "key")
		if err := os.WriteFile(file, []byte("old"), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := Save(file, key, []byte(password)); err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(file)
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("mode %v, %v", info.Mode(), err)
		}
		ask := give(password)
		if password == "" {
			ask = func() ([]byte, error) { t.Error("asked for a password of a plain file"); return nil, nil }
		}
		if got, err := Load(file, ask); err != nil || !got.Equal(key) {
			t.Errorf("password %q: Load: %v", password, err)
		}
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if hidden := !bytes.Contains(b, []byte("PRIVATE KEY")); hidden != (password != "") {
			t.Errorf("password %q: encrypted %v", password, hidden)
		}
		left, err := os.ReadDir(filepath.Dir(file))
		if err != nil || len(left) != 1 {
			t.Errorf("left over: %v, %v", left, err)
		}
	}
}

func TestLoadErrors(t *testing.T) {
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	good, err := encode(key, []byte("right"), 10) // cheap: it is opened often here
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(file, good, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{"wrong", ""} {
		if _, err := Load(file, give(p)); !errors.Is(err, ErrPassword) {
			t.Errorf("password %q: %v, want ErrPassword", p, err)
		}
	}
	stop := errors.New("nobody is there")
	if _, err := Load(file, func() ([]byte, error) { return nil, stop }); !errors.Is(err, stop) {
		t.Errorf("the error of password is lost: %v", err)
	}
	for name, b := range map[string][]byte{
		"empty": nil, "text": []byte("hello"), "cut": good[:len(good)-60], "too large": bytes.Repeat([]byte("x"), MaxFile+1),
		"flipped": bytes.Replace(good, good[len(good)-50:len(good)-48], []byte("zz"), 1), "two": append(bytes.Clone(good), good...),
	} {
		if err := os.WriteFile(file, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Load(file, give("right")); !errors.Is(err, ErrFormat) && !errors.Is(err, ErrPassword) {
			t.Errorf("%s: %v, want ErrFormat", name, err)
		}
	}
	if _, err := Load(filepath.Join(t.TempDir(), "none"), nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	if err := Save(filepath.Join(t.TempDir(), "no", "folder"), key, nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no folder: %v", err)
	}
}

func TestImport(t *testing.T) {
	fromWords, err := FromMnemonic(words, "p")
	if err != nil {
		t.Fatal(err)
	}
	if k, err := Import("\n"+words+" ", "p"); err != nil || !k.Equal(fromWords) {
		t.Errorf("words: %v", err)
	}
	seed := hex.EncodeToString(fromWords.Seed())
	for _, text := range []string{seed, strings.ToUpper(seed), " " + seed + "\n"} {
		if k, err := Import(text, ""); err != nil || !k.Equal(fromWords) {
			t.Errorf("seed %q: %v", text, err)
		}
	}
	for _, bad := range []string{"", seed[:62], seed + "00", seed[:63] + "x"} {
		if _, err := Import(bad, ""); !errors.Is(err, ErrWords) || bad != "" && strings.Contains(err.Error(), bad) {
			t.Errorf("Import(%q): %v, want ErrWords that does not quote it", bad, err)
		}
	}
	if _, err := Import(seed, "p"); !errors.Is(err, ErrWords) {
		t.Errorf("a passphrase with a raw seed: %v", err)
	}
}

func TestLoadRefusesExposedFiles(t *testing.T) {
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "key")
	if err := Save(file, key, nil); err != nil {
		t.Fatal(err)
	}
	for mode, want := range map[os.FileMode]error{
		0o600: nil, 0o400: nil,
		0o640: ErrExposed, 0o644: ErrExposed, 0o604: ErrExposed, 0o620: ErrExposed,
	} {
		if err := os.Chmod(file, mode); err != nil {
			t.Fatal(err)
		}
		_, err := Load(file, nil)
		if !errors.Is(err, want) {
			t.Errorf("mode %v: %v, want %v", mode, err, want)
		}
		if want != nil && !strings.Contains(err.Error(), "chmod 600") {
			t.Errorf("mode %v: no remedy in %q", mode, err)
		}
	}
}

// FuzzDecode: a key file is refused, or is one key.
func FuzzDecode(f *testing.F) {
	b, err := encode(ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize)), nil, 0)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add(bytes.Repeat(b, 2))
	f.Add([]byte("-----BEGIN PRIVATE KEY-----\n-----END PRIVATE KEY-----\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		key, err := decode(b)
		if err != nil {
			if !errors.Is(err, ErrFormat) {
				t.Fatalf("an error of another kind: %v", err)
			}
			return
		}
		again, err := encode(key, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		if same, err := decode(again); err != nil || !same.Equal(key) {
			t.Fatalf("it is another key after writing: %v", err)
		}
	})
}
