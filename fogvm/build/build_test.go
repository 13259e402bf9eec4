package build

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/GehirnInc/crypt/sha512_crypt"

	"github.com/formthefog/formation/store"
	"github.com/formthefog/formation/store/formfile"
)

func TestIgnore(t *testing.T) {
	rules, err := parseIgnore(strings.Join([]string{
		"# comment", "", "*.log", "!keep.log", "/top", "build/", "a/b", "docs/**/draft?", "**/deep", "x[0-9]y", "x[!a]z", `\#hash`, `sp\ `, "tail/**",
	}, "\n"))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		path string
		dir  bool
		want bool
	}{
		{"a.log", false, true}, {"s/a.log", false, true}, {"keep.log", false, false}, {"s/keep.log", false, false},
		{"top", false, true}, {"s/top", false, false},
		{"build", true, true}, {"build", false, false}, {"s/build", true, true},
		{"a/b", false, true}, {"s/a/b", false, false},
		{"docs/draft1", false, true}, {"docs/x/y/draft1", false, true}, {"docs/draft12", false, false},
		{"deep", false, true}, {"x/deep", false, true},
		{"x1y", false, true}, {"xay", false, false}, {"xbz", false, true}, {"xaz", false, false},
		{"#hash", false, true}, {"# comment", false, false},
		{"sp ", false, true}, {"tail/a/b", false, true}, {"tail", true, false},
	} {
		if got := rules.match(c.path, c.dir); got != c.want {
			t.Errorf("%q (dir %v): ignored %v, want %v", c.path, c.dir, got, c.want)
		}
	}
	if !rules.matchAny("build/x/y", false) {
		t.Error("what is below an ignored directory is not ignored")
	}
	for bad, want := range map[string]string{
		"[a": ".formignore:1:1: ", "x[": ".formignore:1:2: ", "[z-a]": ".formignore:1:1: ", "ok\n# [\n!/é/x[9-0]y/": ".formignore:3:6: ",
		strings.Repeat("a\n", maxIgnoreRules+1): ".formignore:2001:1: ",
	} {
		_, err := parseIgnore(bad)
		var ce *ContextError
		if !errors.As(err, &ce) || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%.20q: got %v, want %s…", bad, err, want)
		}
	}
	if rules, err := parseIgnore("\ufeffsecret\n"); err != nil || !rules.match("secret", false) {
		t.Errorf("the first pattern after a byte order mark does not count: %v", err)
	}
}

func FuzzIgnore(f *testing.F) {
	for _, s := range []string{"*.log\n!a", "[!a-z]/**/x", `\`, "**", "/", "a[]b]", "[\\]"} {
		f.Add(s, "a/b.log")
	}
	f.Fuzz(func(t *testing.T, src, path string) {
		rules, err := parseIgnore(src)
		if err == nil {
			rules.matchAny(path, true)
		}
	})
}

func TestAccounts(t *testing.T) {
	base, err := readAccounts(
		strings.NewReader("root:x:0:0:root:/root:/bin/bash\nbroken\n+::::::\nwww-data:x:33:33::/:/bin/sh\nold:x:1001:100::/:/bin/sh\n"),
		strings.NewReader("root:x:0:\nwww-data:x:33:\nusers:x:100:\nclash:x:1002:\n"))
	if err != nil {
		t.Fatal(err)
	}
	add := assignUIDs([]formfile.User{{Username: "bob"}, {Username: "www-data"}, {Username: "eve"}}, base)
	for _, c := range []struct {
		chown    string
		uid, gid int
		bad      bool
	}{
		{"bob", 1000, 1000, false}, {"eve", 1003, 1003, false}, {"www-data", 33, 33, false}, {"old", 1001, 100, false},
		{"bob:users", 1000, 100, false}, {"eve:bob", 1003, 1000, false}, {"5:6", 5, 6, false}, {"5", 5, 5, false}, {"root:7", 0, 7, false},
		{"mallory", 0, 0, true}, {"bob:mallory", 0, 0, true},
	} {
		uid, gid, err := base.owner(c.chown, add)
		if uid != c.uid || gid != c.gid || (err != nil) != c.bad {
			t.Errorf("%s: %d:%d, %v; want %d:%d", c.chown, uid, gid, err, c.uid, c.gid)
		}
	}
}

func TestMissing(t *testing.T) {
	words := []string{"tre.", "tree", "tree=1.0", "tree:amd64", "libc+:amd64", "g++", "tre"}
	got, err := missing(words, strings.NewReader("tree\ng++\nlibc\ntrek\n"))
	if want := []int{0, 4, 6}; err != nil || !slices.Equal(got, want) {
		t.Errorf("got %v, %v; want %v", got, err, want)
	}
}

func TestEnviron(t *testing.T) {
	got := environ([]string{"A=1", "B=x=y"}, []string{"C=", "A=2"}, nil)
	if want := []string{"A=2", "B=x=y", "C="}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestHashPassword(t *testing.T) {
	key := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{1}, 32))
	other := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{2}, 32))
	user := formfile.User{Username: "bob", Password: "hunter2"}
	hash := func(k ed25519.PrivateKey, pack string, u formfile.User) string {
		t.Helper()
		h, err := hashPassword(k, pack, u)
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	first := hash(key, "a", user)
	if first != hash(key, "a", user) {
		t.Error("the hash does not repeat")
	}
	if err := sha512_crypt.New().Verify(first, []byte("hunter2")); err != nil {
		t.Errorf("%s does not verify: %v", first, err)
	}
	salt := func(h string) string { return strings.Split(h, "$")[3] }
	eve := user
	eve.Username = "eve"
	for what, h := range map[string]string{"key": hash(other, "a", user), "pack": hash(key, "b", user), "user": hash(key, "a", eve)} {
		if salt(h) == salt(first) {
			t.Errorf("the salt does not depend on the %s", what)
		}
	}
}

func TestTail(t *testing.T) {
	var all tail
	for i := range 3000 {
		if _, err := all.Write([]byte(strings.Repeat("x", i%50) + "\n")); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := all.Write([]byte("last \xff line\n")); err != nil {
		t.Fatal(err)
	}
	s := all.String()
	if len(s) > maxTail+8 || !strings.HasSuffix(s, "\nlast \ufffd line\n") || !strings.HasPrefix(s, "x") {
		t.Errorf("%d bytes, from %q to %q", len(s), s[:20], s[len(s)-20:])
	}
}

func TestTextReporter(t *testing.T) {
	var b bytes.Buffer
	r := TextReporter(&b)
	r.StepStarted(StepInfo{1, 2, "INSTALL python3"})
	r.Output([]byte("Reading package lists...\nno newline"))
	r.StepDone(StepInfo{1, 2, ""}, StepOutcome{LayerSize: 12 << 20, Duration: 1234 * time.Millisecond})
	r.StepStarted(StepInfo{2, 2, "WORKDIR /app"})
	r.StepDone(StepInfo{2, 2, ""}, StepOutcome{Cached: true})
	want := "[1/2] INSTALL python3\nReading package lists...\nno newline\n[1/2] done: 12.0 MiB, 1.2s\n[2/2] WORKDIR /app\n[2/2] done: no changes, cached\n"
	if b.String() != want {
		t.Errorf("got:\n%s\nwant:\n%s", b.String(), want)
	}
}

// TestKeys: two steps that can differ in what they give have different keys,
// and what cannot matter does not change a key.
func TestKeys(t *testing.T) {
	base := cidOf([]byte("base"))
	key := func(text string) string {
		t.Helper()
		f, err := formfile.Parse("Formfile", []byte("NAME a\nNOCOPY\n"+text))
		if err != nil {
			t.Fatal(err)
		}
		plan := planSteps(f)
		return plan[len(plan)-1].key(base, "prev", accounts{})
	}
	ref := key("RUN make all")
	for _, same := range []string{"ENV --scope=user:bob A=1\nRUN make all", "RUN   make all", "VCPU 2\nRUN make all\nENTRYPOINT x"} {
		if key(same) != ref {
			t.Errorf("%q changes the key", same)
		}
	}
	for _, other := range []string{"RUN make", "RUN make  all", `RUN ["make", "all"]`, "ENV A=1\nRUN make all", "INSTALL make all"} {
		if key(other) == ref {
			t.Errorf("%q has the same key", other)
		}
	}
	if a, b := key("INSTALL make"), key("ENV A=1\nINSTALL make"); a != b {
		t.Error("ENV changes the key of INSTALL, which does not see it")
	}
	copies, err := formfile.Parse("Formfile", []byte("NAME a\nCOPY . /\n"))
	if err != nil {
		t.Fatal(err)
	}
	s := planSteps(copies)[0]
	s.set = &copySet{}
	bob := func(uid, gid int) accounts { return accounts{Users: map[string]account{"bob": {uid, gid}}} }
	if ref := s.key(base, "prev", bob(1, 1)); ref == s.key(base, "prev", bob(2, 1)) || ref == s.key(base, "prev", bob(1, 2)) {
		t.Error("who owns the homes that COPY may make does not change its key")
	}
	layers := []store.Entry{{SHA256: []byte("x")}, {SHA256: []byte("y")}}
	if mergeKey(base, layers, 2) == mergeKey(cidOf([]byte("other")), layers, 2) {
		t.Error("the merge of layers does not depend on the base below them")
	}
}

// FuzzAccounts: whatever an image's passwd and group say, what is read has names,
// and no more of them than there are lines.
func FuzzAccounts(f *testing.F) {
	f.Add("root:x:0:0:root:/root:/bin/sh\nbad\n:::\n", "root:x:0:\nadm:x:4:root\n")
	f.Add("a:x:99999999999999999999:0:", "a:x:-1:")
	f.Fuzz(func(t *testing.T, passwd, group string) {
		a, err := readAccounts(strings.NewReader(passwd), strings.NewReader(group))
		if err == nil && (len(a.Users) > strings.Count(passwd, "\n")+1 || len(a.Groups) > strings.Count(group, "\n")+1) {
			t.Fatalf("%d users and %d groups", len(a.Users), len(a.Groups))
		}
	})
}
