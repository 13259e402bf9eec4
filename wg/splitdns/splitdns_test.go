package splitdns

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/formthefog/formation/wg/wgtest"
)

// machine is a folder of fake commands that write down how they are called, and
// an /etc.
type machine struct {
	t        *testing.T
	dir      string
	resolver *Resolver
	want     Want
}

// newMachine has those commands and nothing else; what each does after it has
// written itself down is a line of shell.
func newMachine(t *testing.T, commands map[string]string) *machine {
	t.Helper()
	m := &machine{t: t, dir: t.TempDir(), want: Want{Interface: "lo", Servers: []netip.Addr{netip.MustParseAddr("10.128.0.53"), netip.MustParseAddr("fd5b::35")},
		Domains: []string{"dev.formation.cloud", "128.10.in-addr.arpa"}}}
	for _, d := range []string{"bin", "etc"} {
		if err := os.Mkdir(m.at(d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, does := range commands {
		// PATH has no more than the fakes: only what the shell itself can do.
		m.write("bin/"+name, fmt.Sprintf("#!/bin/sh\nin=\nwhile read -r l; do in=\"$in <$l>\"; done\necho \"%s $*$in\" >>%s\n%s\n", name, m.at("calls"), strings.ReplaceAll(does, "ETC", m.at("etc"))), 0o755)
	}
	t.Setenv("PATH", m.at("bin"))
	m.again()
	return m
}

func (m *machine) at(name string) string { return filepath.Join(m.dir, name) }

func (m *machine) write(name, text string, mode os.FileMode) {
	m.t.Helper()
	if err := os.WriteFile(m.at(name), []byte(text), mode); err != nil {
		m.t.Fatal(err)
	}
}

// again is the next process.
func (m *machine) again() {
	m.t.Helper()
	var err error
	if m.resolver, err = New(Config{State: m.at("set"), Etc: m.at("etc")}); err != nil {
		m.t.Fatal(err)
	}
}

// calls returns, and forgets, how the commands were called.
func (m *machine) calls() string {
	m.t.Helper()
	b, err := os.ReadFile(m.at("calls"))
	if errors.Is(err, os.ErrNotExist) {
		return ""
	}
	if err == nil {
		err = os.Remove(m.at("calls"))
	}
	if err != nil {
		m.t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

// remembers says whether something is to be taken back.
func (m *machine) remembers() bool {
	_, err := os.Stat(m.at("set"))
	return err == nil
}

func (m *machine) set() (string, error) { return m.resolver.Set(context.Background(), m.want) }
func (m *machine) undo() error          { return m.resolver.Undo(context.Background()) }

const (
	asked    = "resolvectl dns\n"
	resolved = asked + "resolvectl dns lo 10.128.0.53 fd5b::35\nresolvectl domain lo ~dev.formation.cloud ~128.10.in-addr.arpa\nresolvectl default-route lo false"
	added    = "resolvconf -a tun0.lo <nameserver 10.128.0.53> <nameserver fd5b::35>"
)

// first makes a resolvconf put what it is told first.
const first = `echo "nameserver 10.128.0.53" >ETC/resolv.conf`

func TestSet(t *testing.T) {
	for _, tt := range []struct {
		name     string
		commands map[string]string
		etc      map[string]string
		by       string // "": the error is err
		err      string
		calls    string
		undo     string // calls of Undo after that
	}{
		{name: "resolved, by its own file", commands: map[string]string{"resolvectl": ""}, etc: map[string]string{"resolv.conf": "search x\nnameserver 127.0.0.53\n"},
			by: "systemd-resolved", calls: resolved, undo: "resolvectl revert lo"},
		{name: "resolved, by the C library's switch", commands: map[string]string{"resolvectl": ""}, etc: map[string]string{"nsswitch.conf": "passwd: files\nhosts: files resolve [!UNAVAIL=return] dns\n"},
			by: "systemd-resolved", calls: resolved, undo: "resolvectl revert lo"},
		{name: "resolved before resolvconf", commands: map[string]string{"resolvectl": "", "resolvconf": first}, etc: map[string]string{"resolv.conf": "nameserver 127.0.0.53\n"},
			by: "systemd-resolved", calls: resolved, undo: "resolvectl revert lo"},
		{name: "resolved that nobody asks", commands: map[string]string{"resolvectl": ""}, etc: map[string]string{"resolv.conf": "nameserver 192.0.2.1\n", "nsswitch.conf": "hosts: files dns\n#hosts: resolve\n"},
			err: "splitdns: " + errNobody.Error(), calls: strings.TrimSpace(asked)},
		{name: "resolved that does not run", commands: map[string]string{"resolvectl": "exit 1", "resolvconf": first}, etc: map[string]string{"resolv.conf": "nameserver 127.0.0.53\n"},
			by: "resolvconf", calls: asked + added, undo: "resolvconf -d tun0.lo"},
		{name: "resolved that refuses", commands: map[string]string{"resolvectl": `case "$1" in domain) echo denied; exit 1;; esac`, "resolvconf": first}, etc: map[string]string{"resolv.conf": "nameserver 127.0.0.53\n"},
			by: "resolvconf", calls: strings.Replace(resolved, "resolvectl default-route lo false", "resolvectl revert lo\n"+added, 1), undo: "resolvconf -d tun0.lo"},
		{name: "openresolv", commands: map[string]string{"resolvconf": first}, by: "resolvconf", calls: added, undo: "resolvconf -d tun0.lo"},
		{name: "resolvconf that puts another first", commands: map[string]string{"resolvconf": `echo "nameserver 192.0.2.1" >ETC/resolv.conf`},
			err: "splitdns: resolvconf: it puts other servers before 10.128.0.53: 192.0.2.1", calls: added + "\nresolvconf -d tun0.lo"},
		{name: "resolvconf that fails", commands: map[string]string{"resolvconf": `case "$1" in -a) echo broken; exit 3;; esac`},
			err: "splitdns: resolvconf: resolvconf -a tun0.lo: exit status 3: broken", calls: added + "\nresolvconf -d tun0.lo"},
		{name: "nobody", err: "splitdns: " + errNobody.Error()},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := newMachine(t, tt.commands)
			for name, text := range tt.etc {
				m.write("etc/"+name, text, 0o644)
			}
			by, err := m.set()
			if text := fmt.Sprint(err); by != tt.by || (err != nil) != (tt.err != "") || err != nil && text != tt.err {
				t.Errorf("by %q, error %v", by, err)
			}
			if got := m.calls(); got != tt.calls {
				t.Errorf("calls:\n%s\nwant:\n%s", got, tt.calls)
			}
			if m.remembers() != (tt.by != "") {
				t.Errorf("remembers: %v", m.remembers())
			}
			m.again() // as after a crash
			if err := m.undo(); err != nil || m.calls() != tt.undo || m.remembers() {
				t.Errorf("taken back: %v", err)
			}
			if err := m.undo(); err != nil || m.calls() != "" {
				t.Errorf("taken back twice: %v", err)
			}
		})
	}
}

// What cannot be taken back is tried again, and nothing else is set until then.
func TestUndoThatFails(t *testing.T) {
	m := newMachine(t, map[string]string{"resolvconf": first + "\n" + `case "$1" in -d) [ -e ETC/free ];; esac`})
	if _, err := m.set(); err != nil {
		t.Fatal(err)
	}
	m.again()
	if err := m.undo(); err == nil || !m.remembers() {
		t.Errorf("undo: %v", err)
	}
	if by, err := m.set(); err == nil || !m.remembers() {
		t.Errorf("set by %q: %v", by, err)
	}
	m.write("etc/free", "", 0o644)
	m.calls()
	if by, err := m.set(); err != nil || by != "resolvconf" || m.calls() != "resolvconf -d tun0.lo\n"+added {
		t.Errorf("set by %q: %v", by, err)
	}
}

func TestResolvedForgetsAnInterfaceThatIsGone(t *testing.T) {
	m := newMachine(t, map[string]string{"resolvectl": "exit 1"})
	m.write("set", `{"method":"systemd-resolved","interface":"form9"}`, 0o600)
	if err := m.undo(); err != nil || m.calls() != "" || m.remembers() {
		t.Errorf("undo: %v", err)
	}
}

func TestRecordsThatCannotBe(t *testing.T) {
	for _, text := range []string{"", "{", `{"method":"magic","interface":"lo"}`, `{"method":"resolvconf","interface":"-a"}`, `{"method":"resolvconf"}`,
		`{"method":"resolvconf","interface":"lo"}` + strings.Repeat(" ", maxRecord)} {
		m := newMachine(t, map[string]string{"resolvconf": first})
		m.write("set", text, 0o600)
		if _, err := m.set(); err == nil || m.calls() != "" || !m.remembers() {
			t.Errorf("%.60q: %v", text, err)
		}
	}
}

// A process in a network of its own leaves the machine's resolver alone.
func TestInANamespace(t *testing.T) {
	if os.Getenv("FORMATION_SPLITDNS_INSIDE") != "" {
		m := newMachine(t, map[string]string{"resolvconf": first})
		if by, err := m.set(); !errors.Is(err, ErrUnsupported) || by != "" || m.calls() != "" || m.remembers() {
			t.Errorf("set by %q: %v", by, err)
		}
		return
	}
	ns := wgtest.NewNamespace(t, "splitdns")
	cmd := ns.Command(t.Context(), os.Args[0], "-test.run=^TestInANamespace$")
	cmd.Env = append(os.Environ(), "FORMATION_SPLITDNS_INSIDE=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

func TestWantsThatCannotBe(t *testing.T) {
	m := newMachine(t, map[string]string{"resolvconf": first})
	for _, change := range []func(*Want){
		func(w *Want) { w.Interface = "" }, func(w *Want) { w.Interface = "-x" }, func(w *Want) { w.Interface = "a b" }, func(w *Want) { w.Interface = "a/../b" },
		func(w *Want) { w.Servers = nil }, func(w *Want) { w.Servers = []netip.Addr{{}} }, func(w *Want) { w.Servers = []netip.Addr{netip.MustParseAddr("fe80::1%eth0")} },
		func(w *Want) { w.Domains = nil }, func(w *Want) { w.Domains = []string{"a\nnameserver 192.0.2.66"} }, func(w *Want) { w.Domains = []string{"-x"} }, func(w *Want) { w.Domains = []string{"~."} },
	} {
		w := m.want
		change(&w)
		if _, err := m.resolver.Set(t.Context(), w); err == nil || m.calls() != "" || m.remembers() {
			t.Errorf("%+v: %v", w, err)
		}
	}
	if _, err := New(Config{}); err == nil {
		t.Error("a resolver that cannot remember")
	}
}

// A disk that does not keep the record keeps anything from being set.
func TestNothingIsSetThatIsNotRemembered(t *testing.T) {
	m := newMachine(t, map[string]string{"resolvconf": first})
	r, err := New(Config{State: m.at("no/such/folder"), Etc: m.at("etc")})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Set(t.Context(), m.want); err == nil || m.calls() != "" {
		t.Errorf("set: %v", err)
	}
}

func TestWhatSomebodyCanDo(t *testing.T) {
	const servers = "server=/dev.formation.cloud/10.128.0.53 server=/dev.formation.cloud/fd5b::35"
	m := newMachine(t, nil)
	for resolvConf, want := range map[string]string{
		"nameserver 192.0.2.1\n":                                    "or resolvconf, or tell dnsmasq: " + servers,
		"# Generated by NetworkManager\nnameserver 192.0.2.1\n":     "dnsmasq.d/form.conf: " + servers,
		"# Generated by NetworkManager\nsearch x\nnameserver ::1\n": "to which NetworkManager then leaves it",
	} {
		m.write("etc/resolv.conf", resolvConf, 0o644)
		if by, err := m.set(); !errors.Is(err, ErrUnsupported) || by != "" || m.remembers() {
			t.Errorf("set by %q: %v", by, err)
		}
		if got := m.resolver.Manual(m.want); !strings.Contains(got, want) {
			t.Errorf("with %q: %s", resolvConf, got)
		}
	}
}
