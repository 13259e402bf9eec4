package guest

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// accounts is the text of the four account files; applying users to it is pure.
type accounts struct {
	passwd, shadow, group, gshadow string
}

// account is one resolved line of passwd with its groups.
type account struct {
	Name   string
	UID    int
	GID    int
	Home   string
	Shell  string
	Groups []int // supplementary
}

var (
	userName = regexp.MustCompile(`^[a-z_][a-z0-9_-]{0,31}$`)
	hashText = regexp.MustCompile(`^[A-Za-z0-9./$=,_+-]*$`)
)

const (
	firstUID = 1000
	lastUID  = 59999
)

// apply adds or updates users. shell is the shell of users that name none.
// Lines it does not know are kept as they are. sudoGroup is the group of Sudo
// users, made when missing.
func (a accounts) apply(users []User, shell string) (accounts, error) {
	passwd, shadow := lines(a.passwd), lines(a.shadow)
	group, gshadow := lines(a.group), lines(a.gshadow)
	for _, u := range users {
		if !userName.MatchString(u.Name) || u.Name == "root" && u.Sudo {
			return a, fmt.Errorf("user %q: not a valid login name", u.Name)
		}
		if !hashText.MatchString(u.PasswordHash) {
			return a, fmt.Errorf("user %s: malformed password hash", u.Name)
		}
		if u.UID != 0 && (u.UID < firstUID || u.UID > lastUID) {
			return a, fmt.Errorf("user %s: number %d is not between %d and %d", u.Name, u.UID, firstUID, lastUID)
		}
		if find(passwd, u.Name) >= 0 {
			continue
		}
		uid := u.UID
		if uid == 0 {
			uid = freeID(passwd, group)
		}
		gid := uid
		if i := find(group, u.Name); i >= 0 {
			var err error
			if gid, err = strconv.Atoi(field(group[i], 2)); err != nil {
				return a, fmt.Errorf("group %s: malformed line", u.Name)
			}
		} else {
			group = append(group, fmt.Sprintf("%s:x:%d:", u.Name, gid))
			gshadow = append(gshadow, u.Name+":!::")
		}
		passwd = append(passwd, fmt.Sprintf("%s:x:%d:%d::/home/%s:%s", u.Name, uid, gid, u.Name, shell))
	}
	// After all users have their numbers: a group that is new takes none of them.
	for _, u := range users {
		i := find(passwd, u.Name)
		if u.Shell != "" {
			if !strings.HasPrefix(u.Shell, "/") || strings.ContainsAny(u.Shell, ":\n") {
				return a, fmt.Errorf("user %s: shell %q is not an absolute path", u.Name, u.Shell)
			}
			passwd[i] = setField(passwd[i], 6, u.Shell)
		}
		shadow = setShadow(shadow, u)
		for _, g := range groupsOf(u) {
			if !userName.MatchString(g) {
				return a, fmt.Errorf("user %s: bad group name %q", u.Name, g)
			}
			if find(group, g) < 0 {
				group = append(group, fmt.Sprintf("%s:x:%d:", g, freeID(passwd, group)))
			}
			if find(gshadow, g) < 0 {
				gshadow = append(gshadow, g+":!::")
			}
			group = addMember(group, g, u.Name)
			gshadow = addMember(gshadow, g, u.Name)
		}
	}
	return accounts{passwd: text(passwd), shadow: text(shadow), group: text(group), gshadow: text(gshadow)}, nil
}

func groupsOf(u User) []string {
	groups := slices.Clone(u.Groups)
	if u.Sudo && !slices.Contains(groups, "sudo") {
		groups = append(groups, "sudo")
	}
	return groups
}

// setShadow writes the user's password line. Without a hash the field is "*",
// which unlike "!" does not lock key logins where sshd checks for locks.
func setShadow(shadow []string, u User) []string {
	hash := u.PasswordHash
	switch {
	case hash == "":
		hash = "*"
	case u.LockPasswd:
		hash = "!" + hash
	}
	// Days since 1970 of the last change: 0 means "change at first login"; any
	// past day will do otherwise, a fixed one keeps the image reproducible.
	changed := "19000"
	if u.PasswordExpire && u.SSHPasswordAuth && u.PasswordHash != "" {
		changed = "0"
	}
	line := fmt.Sprintf("%s:%s:%s:0:99999:7:::", u.Name, hash, changed)
	if i := find(shadow, u.Name); i >= 0 {
		shadow[i] = line
		return shadow
	}
	return append(shadow, line)
}

// lookup resolves a login name or a numeric UID.
func (a accounts) lookup(name string) (account, error) {
	for _, line := range lines(a.passwd) {
		if field(line, 0) != name && field(line, 2) != name {
			continue
		}
		uid, err1 := strconv.Atoi(field(line, 2))
		gid, err2 := strconv.Atoi(field(line, 3))
		if err1 != nil || err2 != nil {
			return account{}, fmt.Errorf("user %s: malformed passwd line", name)
		}
		acc := account{Name: field(line, 0), UID: uid, GID: gid, Home: field(line, 5), Shell: field(line, 6)}
		for _, g := range lines(a.group) {
			if id, err := strconv.Atoi(field(g, 2)); err == nil && id != gid && slices.Contains(strings.Split(field(g, 3), ","), acc.Name) {
				acc.Groups = append(acc.Groups, id)
			}
		}
		return acc, nil
	}
	return account{}, fmt.Errorf("no user %q in the guest", name)
}

func lines(s string) []string {
	return slices.DeleteFunc(strings.Split(s, "\n"), func(l string) bool { return l == "" })
}

func text(l []string) string { return strings.Join(l, "\n") + "\n" }

func find(list []string, name string) int {
	return slices.IndexFunc(list, func(l string) bool { return strings.HasPrefix(l, name+":") })
}

func field(line string, i int) string {
	parts := strings.Split(line, ":")
	if i >= len(parts) {
		return ""
	}
	return parts[i]
}

func setField(line string, i int, value string) string {
	parts := strings.Split(line, ":")
	for len(parts) <= i {
		parts = append(parts, "")
	}
	parts[i] = value
	return strings.Join(parts, ":")
}

func addMember(list []string, group, user string) []string {
	i := find(list, group)
	members := slices.DeleteFunc(strings.Split(field(list[i], 3), ","), func(m string) bool { return m == "" })
	if !slices.Contains(members, user) {
		list[i] = setField(list[i], 3, strings.Join(append(members, user), ","))
	}
	return list
}

// freeID is the lowest number from firstUID on that is neither a user's nor a
// group's, so that a new user's group can have its number.
func freeID(passwd, group []string) int {
	for id := firstUID; id < lastUID; id++ {
		if !uses(passwd, id) && !uses(group, id) {
			return id
		}
	}
	return lastUID
}

func uses(list []string, id int) bool {
	s := strconv.Itoa(id)
	return slices.ContainsFunc(list, func(l string) bool { return field(l, 2) == s })
}

// lookupGroup is the number of a group.
func (a accounts) lookupGroup(name string) (int, error) {
	groups := lines(a.group)
	i := find(groups, name)
	if i < 0 {
		return 0, fmt.Errorf("no group %q in the guest", name)
	}
	return strconv.Atoi(field(groups[i], 2))
}
