// Package splitdns has this machine ask the mesh about the mesh's names, and
// everybody else about all others.
//
// It is done by whoever looks after the machine's resolver: systemd-resolved, else
// resolvconf (openresolv or Debian's). Where there is neither nothing is done, and
// [Resolver.Manual] says what somebody can do.
//
// Guarantees: /etc/resolv.conf is never written here; the machine's resolver is
// left alone by a process in a network namespace that is not init's; what is set is in a file
// before it is set, so that [Resolver.Undo] takes it back, also what a process set
// that was killed; what turns out to have no effect is taken back at once.
//
// Not guaranteed: that a program asks the machine's resolver at all, as browsers
// with a DNS of their own do not. With resolvconf the mesh is asked first about
// every name and refuses those that are not its own, whereupon the C library of
// GNU asks the next; that of Alpine asks all at once and believes the first.
package splitdns

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/formthefog/formation/store/whole"
)

// Config says where things are.
type Config struct {
	State string // the file that remembers what is set
	Etc   string // "" is /etc
}

// Want is which questions go where.
type Want struct {
	Interface string       // whose they are
	Servers   []netip.Addr // who answers, at port 53
	Domains   []string     // "dev.formation.cloud", without a dot at its end
}

func (w Want) check() error {
	if err := checkInterface(w.Interface); err != nil {
		return err
	}
	if len(w.Servers) == 0 || len(w.Domains) == 0 {
		return errors.New("no servers, or no domains")
	}
	for _, s := range w.Servers {
		if !s.IsValid() || s.Zone() != "" {
			return fmt.Errorf("server %s", s)
		}
	}
	for _, d := range w.Domains {
		if d == "" || strings.ContainsAny(d, " \t\n") || d[0] == '-' || d[0] == '~' {
			return fmt.Errorf("domain %.80q", d)
		}
	}
	return nil
}

// checkInterface refuses what a command would take for something else.
func checkInterface(name string) error {
	if name == "" || len(name) > 15 || strings.ContainsAny(name, "/ \t\n") || name[0] == '-' || name[0] == '.' || name[0] == '~' {
		return fmt.Errorf("%.40q is no interface", name)
	}
	return nil
}

// Resolver is this machine's. Its methods must be called by one goroutine at a
// time.
type Resolver struct{ cfg Config }

// New makes a Resolver and touches nothing.
func New(cfg Config) (*Resolver, error) {
	if cfg.State == "" {
		return nil, errors.New("splitdns: no file to remember in")
	}
	if cfg.Etc == "" {
		cfg.Etc = "/etc"
	}
	return &Resolver{cfg}, nil
}

// ErrUnsupported says that nobody here can be told to ask two servers about two
// kinds of names, or nobody of this network.
var ErrUnsupported = errors.New("this machine's resolver cannot be told")

var (
	errNobody    = fmt.Errorf("%w: neither systemd-resolved nor resolvconf looks after it", ErrUnsupported)
	errElsewhere = fmt.Errorf("%w: it serves another network namespace than this process's", ErrUnsupported)
)

// Manual is what somebody can do where [ErrUnsupported] is the answer.
func (r *Resolver) Manual(w Want) string {
	servers := make([]string, len(w.Servers))
	for i, s := range w.Servers {
		servers[i] = fmt.Sprintf("server=/%s/%s", w.Domains[0], s)
	}
	const inForm = "names work in form itself; for other programs install systemd-resolved"
	if networkManager(r.cfg.Etc) {
		return inForm + ", to which NetworkManager then leaves it, or have NetworkManager run dnsmasq (dns=dnsmasq in [main] of NetworkManager.conf) and put into /etc/NetworkManager/dnsmasq.d/form.conf: " + strings.Join(servers, " ")
	}
	return inForm + " or resolvconf, or tell dnsmasq: " + strings.Join(servers, " ")
}

// Set has questions go where w says, instead of where an earlier Set said. It
// returns who looks after that. The error is [ErrUnsupported] when nobody does;
// nothing is set then.
func (r *Resolver) Set(ctx context.Context, w Want) (by string, err error) {
	if err := w.check(); err != nil {
		return "", fmt.Errorf("splitdns: %w", err)
	}
	if err := r.Undo(ctx); err != nil {
		return "", err
	}
	if !sameNetworkAsInit() {
		return "", fmt.Errorf("splitdns: %w", errElsewhere)
	}
	var failed []error
	for _, m := range methods {
		if !m.there(ctx, r.cfg.Etc) {
			continue
		}
		err := r.set(ctx, m, w)
		if err == nil {
			return m.name, nil
		}
		failed = append(failed, fmt.Errorf("splitdns: %s: %w", m.name, err))
	}
	if len(failed) == 0 {
		failed = append(failed, fmt.Errorf("splitdns: %w", errNobody))
	}
	return "", errors.Join(failed...)
}

func (r *Resolver) set(ctx context.Context, m method, w Want) error {
	if err := r.remember(record{Method: m.name, Interface: w.Interface}); err != nil {
		return err
	}
	err := m.set(ctx, r.cfg.Etc, w)
	if err != nil {
		return errors.Join(err, r.Undo(context.WithoutCancel(ctx)))
	}
	return nil
}

// Undo takes back what was set last, whoever set it; when it cannot, it can be
// called again. Nothing set is no error.
func (r *Resolver) Undo(ctx context.Context) error {
	rec, err := r.recall()
	if err != nil || rec == (record{}) {
		return err
	}
	i := slices.IndexFunc(methods, func(m method) bool { return m.name == rec.Method })
	if i < 0 {
		return fmt.Errorf("splitdns: %s was written by another version: cannot take back %q of %q", r.cfg.State, rec.Method, rec.Interface)
	}
	if err := methods[i].undo(ctx, r.cfg.Etc, rec.Interface); err != nil {
		return fmt.Errorf("splitdns: take back what %s was told: %w", rec.Method, err)
	}
	if err := os.Remove(r.cfg.State); err != nil {
		return fmt.Errorf("splitdns: %w", err)
	}
	return nil
}

// record is what the file says.
type record struct {
	Method    string `json:"method"`
	Interface string `json:"interface"`
}

// maxRecord bounds the file.
const maxRecord = 4096

func (r *Resolver) remember(rec record) error {
	b, err := json.Marshal(rec)
	if err != nil {
		return err
	}
	err = whole.Write(r.cfg.State, b, 0o600)
	if err != nil {
		return fmt.Errorf("remember what is set: %w", err)
	}
	return nil
}

func (r *Resolver) recall() (rec record, err error) {
	info, err := os.Stat(r.cfg.State)
	if errors.Is(err, fs.ErrNotExist) {
		return record{}, nil
	}
	if err == nil && info.Size() > maxRecord {
		err = fmt.Errorf("%d bytes", info.Size())
	}
	var b []byte
	if err == nil {
		b, err = os.ReadFile(r.cfg.State)
	}
	if err == nil {
		err = json.Unmarshal(b, &rec)
	}
	if err == nil {
		err = checkInterface(rec.Interface)
	}
	if err != nil {
		return record{}, fmt.Errorf("splitdns: read %s: %w", r.cfg.State, err)
	}
	return rec, nil
}

// commandTime is for how long a command may run.
const commandTime = 10 * time.Second

// run runs a command; what it said is in the error.
func run(ctx context.Context, stdin string, argv ...string) error {
	ctx, cancel := context.WithTimeout(ctx, commandTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.WaitDelay = time.Second
	cmd.Stdin = strings.NewReader(stdin)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %.400s", strings.Join(argv, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

func has(command string) bool {
	_, err := exec.LookPath(command)
	return err == nil
}

// gone says whether an interface is no longer there, and with it what
// systemd-resolved knew of it.
func gone(name string) bool {
	_, err := net.InterfaceByName(name)
	return err != nil
}

// networkManager says whether resolv.conf is NetworkManager's own work.
func networkManager(etc string) bool {
	// What cannot be read says nothing.
	b, _ := os.ReadFile(filepath.Join(etc, "resolv.conf"))
	return strings.Contains(string(b), "# Generated by NetworkManager")
}

// nameservers are those that resolv.conf names, in order.
func nameservers(etc string) []string {
	// What cannot be read names none.
	b, _ := os.ReadFile(filepath.Join(etc, "resolv.conf"))
	var out []string
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) >= 2 && f[0] == "nameserver" {
			out = append(out, f[1])
		}
	}
	return out
}

// sameNetworkAsInit says whether the machine's resolver serves the network that
// this process is in: init's, or where that cannot be seen none that has a name.
func sameNetworkAsInit() bool {
	const own = "/proc/thread-self/ns/net"
	mine, err1 := os.Readlink(own)
	init, err2 := os.Readlink("/proc/1/ns/net")
	if err1 == nil && err2 == nil {
		return mine == init
	}
	self, err := os.Stat(own)
	if err != nil {
		return true // there are no namespaces
	}
	// What cannot be listed names none.
	named, _ := filepath.Glob("/run/netns/*")
	return !slices.ContainsFunc(named, func(path string) bool {
		other, err := os.Stat(path)
		return err == nil && os.SameFile(self, other)
	})
}
