package guest

import (
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func baseAccounts() accounts {
	return accounts{
		passwd:  "root:x:0:0:root:/root:/bin/bash\nwww-data:x:33:33::/var/www:/usr/sbin/nologin\n",
		shadow:  "root:*:19000:0:99999:7:::\n",
		group:   "root:x:0:\nsudo:x:27:\nwww-data:x:33:\n",
		gshadow: "root:*::\nsudo:*::\n",
	}
}

func TestApplyUsers(t *testing.T) {
	got, err := baseAccounts().apply([]User{
		{Name: "bigdog", PasswordHash: "$6$salt$hash", Sudo: true, Groups: []string{"docker"}},
		{Name: "cat", Shell: "/bin/zsh", LockPasswd: true, PasswordHash: "$6$x$y"},
		{Name: "www-data", Groups: []string{"sudo"}},
	}, "/bin/bash")
	if err != nil {
		t.Fatal(err)
	}
	want := accounts{
		passwd: "root:x:0:0:root:/root:/bin/bash\nwww-data:x:33:33::/var/www:/usr/sbin/nologin\n" +
			"bigdog:x:1000:1000::/home/bigdog:/bin/bash\ncat:x:1001:1001::/home/cat:/bin/zsh\n",
		shadow: "root:*:19000:0:99999:7:::\nbigdog:$6$salt$hash:19000:0:99999:7:::\n" +
			"cat:!$6$x$y:19000:0:99999:7:::\nwww-data:*:19000:0:99999:7:::\n",
		group:   "root:x:0:\nsudo:x:27:bigdog,www-data\nwww-data:x:33:\nbigdog:x:1000:\ncat:x:1001:\ndocker:x:1002:bigdog\n",
		gshadow: "root:*::\nsudo:*::bigdog,www-data\nbigdog:!::\ncat:!::\ndocker:!::bigdog\n",
	}
	if got != want {
		t.Errorf("got\n%+v\nwant\n%+v", got, want)
	}
	acc, err := got.lookup("bigdog")
	if err != nil || acc.UID != 1000 || acc.GID != 1000 || len(acc.Groups) != 2 || acc.Home != "/home/bigdog" {
		t.Errorf("lookup: %+v, %v", acc, err)
	}
	if _, err := got.lookup("nobody-here"); err == nil {
		t.Error("an unknown user was found")
	}
}

// New users get the numbers that files of the pack belong to, and a group that
// is new as well takes none of them.
func TestApplyUsersByNumber(t *testing.T) {
	got, err := baseAccounts().apply([]User{
		{Name: "alice", UID: 1001, Groups: []string{"docker"}},
		{Name: "bob", UID: 1000},
		{Name: "sudo", UID: 1002}, // a group of the base has the name
		{Name: "www-data", UID: 1003},
	}, "/bin/sh")
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string][2]int{"alice": {1001, 1001}, "bob": {1000, 1000}, "sudo": {1002, 27}, "www-data": {33, 33}} {
		if acc, err := got.lookup(name); err != nil || [2]int{acc.UID, acc.GID} != want {
			t.Errorf("%s: %+v, %v; want %v", name, acc, err, want)
		}
	}
	if gid, err := got.lookupGroup("docker"); err != nil || gid != 1003 {
		t.Errorf("docker: %d, %v", gid, err)
	}
}

func TestApplyUsersRefuses(t *testing.T) {
	for name, u := range map[string]User{
		"line break in name": {Name: "a\nroot::0:0"},
		"colon in name":      {Name: "a:x"},
		"empty name":         {},
		"colon in hash":      {Name: "a", PasswordHash: "x:0:0"},
		"relative shell":     {Name: "a", Shell: "sh"},
		"colon in shell":     {Name: "a", Shell: "/bin/sh:"},
		"bad group":          {Name: "a", Groups: []string{"x,y"}},
		"root's number":      {Name: "a", UID: -1},
		"a system number":    {Name: "a", UID: 33},
	} {
		before := baseAccounts()
		if got, err := before.apply([]User{u}, "/bin/sh"); err == nil || got != before {
			t.Errorf("%s: accepted", name)
		}
	}
}

// TestApplyUsersTwice: a reboot changes nothing, and no two users share a UID.
func TestApplyUsersTwice(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		users := rapid.SliceOfNDistinct(rapid.Custom(func(t *rapid.T) User {
			return User{
				Name:   rapid.StringMatching(`[a-z][a-z0-9]{0,5}`).Draw(t, "name"),
				Groups: rapid.SliceOfN(rapid.SampledFrom([]string{"docker", "sudo", "adm"}), 0, 3).Draw(t, "groups"),
				Sudo:   rapid.Bool().Draw(t, "sudo"),
			}
		}), 0, 6, func(u User) string { return u.Name }).Draw(t, "users")
		for i := range users {
			if users[i].Name == "root" {
				users[i].Name = "toor"
			}
		}
		once, err := baseAccounts().apply(users, "/bin/sh")
		if err != nil {
			t.Fatal(err)
		}
		twice, err := once.apply(users, "/bin/sh")
		if err != nil || twice != once {
			t.Fatalf("second time differs: %v\n%+v\n%+v", err, once, twice)
		}
		seen := map[string]bool{}
		for _, l := range lines(once.passwd) {
			if uid := field(l, 2); seen[uid] {
				t.Fatalf("UID %s twice in\n%s", uid, once.passwd)
			} else {
				seen[uid] = true
			}
		}
	})
}

func TestPasswordExpiry(t *testing.T) {
	for _, c := range []struct {
		u    User
		want string
	}{
		{User{Name: "a", PasswordHash: "$6$h", PasswordExpire: true, SSHPasswordAuth: true}, "a:$6$h:0:"},
		{User{Name: "a", PasswordHash: "$6$h", PasswordExpire: true}, "a:$6$h:19000:"},
	} {
		got, err := accounts{}.apply([]User{c.u}, "/bin/sh")
		if err != nil || !strings.HasPrefix(got.shadow, c.want) {
			t.Errorf("%+v: %q, %v", c.u, got.shadow, err)
		}
	}
}
