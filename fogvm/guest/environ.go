package guest

import (
	"fmt"
	"maps"
	"regexp"
	"sort"
	"strings"
)

const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

var envKey = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// environment is Config.Env sorted into scopes. Later entries win.
type environment struct {
	system   map[string]string
	users    map[string]map[string]string
	services map[string]map[string]string
}

func newEnvironment(vars []EnvVar) (environment, error) {
	e := environment{system: map[string]string{}, users: map[string]map[string]string{}, services: map[string]map[string]string{}}
	for _, v := range vars {
		if !envKey.MatchString(v.Key) || strings.ContainsRune(v.Value, 0) {
			return e, fmt.Errorf("environment: bad variable %q", v.Key)
		}
		scope, name, _ := strings.Cut(v.Scope, ":")
		switch {
		case scope == "" || scope == "system":
			e.system[v.Key] = v.Value
		case scope == "user" && userName.MatchString(name):
			put(e.users, name, v)
		case scope == "service" && name != "" && !strings.ContainsAny(name, "/\x00\n") && name[0] != '.':
			put(e.services, name, v)
		default:
			return e, fmt.Errorf("environment: bad scope %q of %s", v.Scope, v.Key)
		}
	}
	return e, nil
}

func put(m map[string]map[string]string, name string, v EnvVar) {
	if m[name] == nil {
		m[name] = map[string]string{}
	}
	m[name][v.Key] = v.Value
}

// forUser is the environment of a process of acc: the system scope, the
// user's, then extra ("K=V").
func (e environment) forUser(acc account, extra ...string) []string {
	out := map[string]string{
		"PATH": defaultPath, "HOME": acc.Home, "USER": acc.Name, "LOGNAME": acc.Name,
		"SHELL": acc.Shell, "LANG": "C.UTF-8",
	}
	for _, m := range []map[string]string{e.system, e.users[acc.Name]} {
		for k, v := range m {
			out[k] = v
		}
	}
	for _, kv := range extra {
		if k, v, ok := strings.Cut(kv, "="); ok {
			out[k] = v
		}
	}
	return list(out)
}

// forEntrypoint adds the service scopes that mean the entrypoint, and then
// secrets ("K=V").
func (e environment) forEntrypoint(acc account, cfg Config, secrets ...string) []string {
	extra := []string{
		"FORMATION_INSTANCE=" + cfg.Instance, "FORMATION_NAME=" + cfg.Name,
		fmt.Sprintf("FORMATION_SLOT=%d", cfg.Slot),
	}
	for _, name := range []string{"entrypoint", cfg.Name} {
		extra = append(extra, list(e.services[name])...)
	}
	return e.forUser(acc, append(extra, secrets...)...)
}

func list(m map[string]string) []string {
	out := make([]string, 0, len(m))
	for k, v := range m {
		out = append(out, k+"="+v)
	}
	sort.Strings(out)
	return out
}

// environmentFile is /etc/environment, which PAM reads for every session. Its
// syntax has no escapes and cuts at a number sign even in quotes: values with
// one or with a line break are left to sshd and the profile.
func (e environment) environmentFile() string {
	can := maps.Clone(e.system)
	maps.DeleteFunc(can, func(_, v string) bool { return strings.Contains(v, "#") })
	return assignments(can, func(v string) string { return `"` + v + `"` })
}

// defaultsFile is /etc/default/NAME of a service, read by shells and systemd.
func (e environment) defaultsFile(service string) string {
	return assignments(e.services[service], shellQuote)
}

func assignments(m map[string]string, quote func(string) string) string {
	var b strings.Builder
	for _, kv := range list(m) {
		k, v, _ := strings.Cut(kv, "=")
		if !strings.Contains(v, "\n") {
			fmt.Fprintf(&b, "%s=%s\n", k, quote(v))
		}
	}
	return b.String()
}

// profile is a script for login shells: all system variables, and each user's.
func (e environment) profile() string {
	var b strings.Builder
	b.WriteString("# Written at each boot from the pack's ENV.\n")
	export := func(indent string, m map[string]string) {
		for _, kv := range list(m) {
			k, v, _ := strings.Cut(kv, "=")
			fmt.Fprintf(&b, "%sexport %s=%s\n", indent, k, shellQuote(v))
		}
	}
	export("", e.system)
	names := make([]string, 0, len(e.users))
	for n := range e.users {
		names = append(names, n)
	}
	sort.Strings(names)
	if len(names) > 0 {
		b.WriteString("case \"$(id -un)\" in\n")
		for _, n := range names {
			fmt.Fprintf(&b, "%s)\n", n)
			export("\t", e.users[n])
			b.WriteString("\t;;\n")
		}
		b.WriteString("esac\n")
	}
	return b.String()
}

func shellQuote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
