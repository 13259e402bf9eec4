// Package config is formd's configuration: the TOML file, the flags that
// override it and the values they share.
//
// Guarantees: every flag of `formd run` is a key of the file under the same
// name and the reverse; unknown keys and values out of range are errors that
// name file, line and column or the key; nothing on the host is touched before
// all of it has been checked.
//
// Not guaranteed: that a valid configuration can be carried out (a port may be
// taken, KVM may be missing); formd says so when it starts.
package config

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/pelletier/go-toml/v2"

	"github.com/formthefog/formation/cmd/internal/spell"
	"github.com/formthefog/formation/crdt/stmt"
)

// maxFile bounds a configuration file, in bytes.
const maxFile = 1 << 20

// Off turns an optional listener off.
const Off = "off"

// Config is the whole configuration. The zero value of a field means its
// default where the comment names one. Keys are the flags' names.
type Config struct {
	Data      string   `toml:"data"`      // directory of everything this node keeps
	Listen    []string `toml:"listen"`    // multiaddrs; empty: tcp and quic on DefaultPort, or the next free one
	Bootstrap []string `toml:"bootstrap"` // multiaddrs with /p2p/…
	Join      string   `toml:"join"`      // ticket
	Network   string   `toml:"network"`   // name of an open network; empty: a private one
	API       string   `toml:"api"`       // unix:///path
	Web       string   `toml:"web"`       // host:port of the read-only HTTP API, or off; empty: DefaultWeb or the next free port
	Metrics   string   `toml:"metrics"`   // host:port of Prometheus metrics, or off
	Accel     string   `toml:"accel"`     // auto, kvm or tcg
	VMDriver  string   `toml:"vm-driver"` // qemu or fake
	VMNet     string   `toml:"vm-net"`    // user or bridge
	Bridge    string   `toml:"bridge"`    // bridge of vm-net=bridge
	// AllowEgress are networks that guests reach beside the public internet.
	AllowEgress []string `toml:"allow-egress"`
	// Ingress serves public sites and ports of instances to everybody.
	Ingress       bool     `toml:"ingress"`
	IngressHTTP   string   `toml:"ingress-http"`   // host:port, or off
	IngressHTTPS  string   `toml:"ingress-https"`  // host:port, or off
	IngressDomain []string `toml:"ingress-domain"` // DNS names under which sites are served
	IngressACME   string   `toml:"ingress-acme"`   // directory URL of an ACME authority, or internal
	IngressEmail  string   `toml:"ingress-email"`  // for that authority
	IngressPorts  string   `toml:"ingress-ports"`  // LOW-HIGH of plain ports; empty: none
	Mesh          string   `toml:"mesh"`           // this machine's own interface on formnet: auto, kernel, userspace or off
	MeshPort      int      `toml:"mesh-port"`      // 0: as Listen's UDP port
	MeshPrefix    string   `toml:"mesh-prefix"`    // of a new network's IPv4 addresses; empty: as usual, or as the network has it
	MeshZone      string   `toml:"mesh-zone"`      // of a new network's names; empty: likewise
	CPUs          int      `toml:"cpus"`           // offered cores; 0: all of the machine
	Memory        Size     `toml:"memory"`         // offered bytes; 0: what the machine can spare
	Disk          Size     `toml:"disk"`           // offered bytes; 0: what the data directory's disk can spare
	Label         []string `toml:"label"`          // K=V
	Region        string   `toml:"region"`
	Accept        []string `toml:"accept"`   // whose instances may run here; empty: operator, or members after a join
	Operator      []string `toml:"operator"` // owner keys of whoever runs this node

	TakeoverDelay Duration `toml:"takeover-delay"` // how long a dead node's slot waits; 0: 10 s
	// RebalanceAfter is how long another node must be preferred before a replica
	// that runs moves there; 0: never.
	RebalanceAfter Duration `toml:"rebalance-after"`
	LogFormat      string   `toml:"log-format"` // text or json
	LogLevel       string   `toml:"log-level"`  // debug, info, warn or error
	StopVMs        bool     `toml:"stop-vms"`   // SIGTERM stops the VMs too
	NoPortmap      bool     `toml:"no-portmap"` // no UPnP or NAT-PMP
	NoMDNS         bool     `toml:"no-mdns"`    // no discovery on the LAN
}

// DefaultPort is where libp2p listens unless told otherwise, TCP and UDP, as
// the seed's documentation has it.
const DefaultPort = 51820

// LetsEncrypt is the ACME directory that certificates come from unless told
// otherwise; Internal is an authority of the node's own.
const (
	LetsEncrypt = "https://acme-v02.api.letsencrypt.org/directory"
	Internal    = "internal"
)

// DefaultWeb is the read-only HTTP API's address, as the seed has it.
const DefaultWeb = "127.0.0.1:3002"

// Env is what defaults depend on outside the file.
type Env struct {
	Root   bool
	Getenv func(string) string
}

// HostEnv is the running process's Env.
func HostEnv() Env { return Env{Root: os.Geteuid() == 0, Getenv: os.Getenv} }

// Default is the configuration of `formd run` without file and flags.
func Default(env Env) Config {
	return Config{
		Data:           defaultData(env),
		API:            "unix://" + DefaultSocket(env),
		Metrics:        Off,
		Accel:          "auto",
		VMDriver:       "qemu",
		VMNet:          "user",
		Bridge:         "br0",
		Mesh:           "auto",
		RebalanceAfter: Duration(5 * time.Minute),
		IngressHTTP:    "0.0.0.0:80",
		IngressHTTPS:   "0.0.0.0:443",
		IngressACME:    LetsEncrypt,
		LogFormat:      "text",
		LogLevel:       "info",
	}
}

func defaultData(env Env) string {
	if env.Root {
		return "/var/lib/formd"
	}
	if d := env.Getenv("XDG_STATE_HOME"); d != "" {
		return filepath.Join(d, "formd")
	}
	return filepath.Join(env.Getenv("HOME"), ".local", "state", "formd")
}

// DefaultSocket is the API socket's path when nothing names another.
func DefaultSocket(env Env) string {
	if env.Root {
		return "/run/formd/api.sock"
	}
	if d := env.Getenv("XDG_RUNTIME_DIR"); d != "" {
		return filepath.Join(d, "formd", "api.sock")
	}
	return filepath.Join(defaultData(env), "api.sock")
}

// Find is the path of the configuration file: explicit, else SECRET_PATH (the
// seed's name), else /etc/formd/formd.toml, else the user's. Empty when there
// is none; an explicitly named file is returned whether it exists or not.
func Find(explicit string, env Env) string {
	if explicit != "" {
		return explicit
	}
	if p := env.Getenv("SECRET_PATH"); p != "" {
		return p
	}
	user := env.Getenv("XDG_CONFIG_HOME")
	if user == "" {
		user = filepath.Join(env.Getenv("HOME"), ".config")
	}
	for _, p := range []string{"/etc/formd/formd.toml", filepath.Join(user, "formd", "formd.toml")} {
		if _, err := os.Stat(p); err == nil {
			return p
		}
	}
	return ""
}

// MissingError says that a file that was named is not there. It is an
// fs.ErrNotExist.
type MissingError struct{ Path string }

func (e *MissingError) Error() string { return fmt.Sprintf("config: %s does not exist", e.Path) }

// Unwrap is fs.ErrNotExist.
func (e *MissingError) Unwrap() error { return fs.ErrNotExist }

// Load reads a file over base. It does not Validate. Without a file the error is
// a *MissingError.
func Load(path string, base Config) (Config, error) {
	info, err := os.Stat(path)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return base, &MissingError{path}
		}
		return base, fmt.Errorf("config: %w", err)
	}
	if info.Size() > maxFile {
		return base, fmt.Errorf("config: %s has %d bytes; at most %d are allowed", path, info.Size(), maxFile)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return base, fmt.Errorf("config: %w", err)
	}
	c, err := Parse(b, base)
	if err != nil {
		return base, located(path, err)
	}
	return c, nil
}

// Parse reads TOML over base. Unknown keys are errors.
func Parse(b []byte, base Config) (Config, error) {
	dec := toml.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	c := base
	if err := dec.Decode(&c); err != nil {
		return base, err
	}
	return c, nil
}

// located prefixes a TOML error with file:line:column, one line each.
func located(path string, err error) error {
	var strict *toml.StrictMissingError
	if errors.As(err, &strict) {
		var lines []string
		for i := range strict.Errors {
			row, col := strict.Errors[i].Position()
			key := strings.Join(strict.Errors[i].Key(), ".")
			line := fmt.Sprintf("%s:%d:%d: unknown key %q", path, row, col, key)
			if near := spell.Nearest(strings.ReplaceAll(key, "_", "-"), Keys()); near != "" {
				line += fmt.Sprintf("; did you mean %q?", near)
			}
			lines = append(lines, line)
		}
		return errors.New(strings.Join(lines, "\n"))
	}
	var dec *toml.DecodeError
	if errors.As(err, &dec) {
		row, col := dec.Position()
		return fmt.Errorf("%s:%d:%d: %s", path, row, col, strings.TrimPrefix(dec.Error(), "toml: "))
	}
	return fmt.Errorf("%s: %w", path, err)
}

// Encode writes c as TOML, the keys in the order of Config.
func Encode(c Config) ([]byte, error) {
	b, err := toml.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	return b, nil
}

// Validate checks every value and reports all errors at once.
func (c Config) Validate() error {
	var errs []error
	bad := func(key, format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s: %s", key, fmt.Sprintf(format, args...)))
	}
	oneOf := func(key, v string, words ...string) {
		for _, w := range words {
			if v == w {
				return
			}
		}
		bad(key, "%q is not one of %s", v, strings.Join(words, ", "))
	}
	if c.Data == "" {
		bad("data", "must name a directory")
	}
	if !strings.HasPrefix(c.API, "unix://") || len(c.API) == len("unix://") {
		bad("api", "%q is not unix:///PATH", c.API)
	} else if len(c.API)-len("unix://") > 107 {
		// sun_path holds 108 bytes with its terminator (unix(7)).
		bad("api", "the socket's path has %d bytes; the system allows 107", len(c.API)-len("unix://"))
	}
	for key, v := range map[string]string{"web": c.Web, "metrics": c.Metrics} {
		if v == "" && key == "web" {
			continue
		}
		if err := checkHostPort(v); err != nil {
			bad(key, "%v", err)
		}
	}
	c.validateIngress(bad)
	oneOf("accel", c.Accel, "auto", "kvm", "tcg")
	oneOf("vm-driver", c.VMDriver, "qemu", "fake")
	// What this version does not do yet is refused here, before anything is made.
	if c.VMNet == "bridge" {
		bad("vm-net", "%q is not available yet: use user", c.VMNet)
	} else {
		oneOf("vm-net", c.VMNet, "user")
	}
	if _, err := ParseNetworks(c.AllowEgress); err != nil {
		bad("allow-egress", "%v", err)
	}
	oneOf("mesh", c.Mesh, "auto", "kernel", "userspace", Off)
	if _, err := netip.ParsePrefix(c.MeshPrefix); err != nil && c.MeshPrefix != "" {
		bad("mesh-prefix", "%q is no network such as 100.64.0.0/10", c.MeshPrefix)
	} else if err := (stmt.Settings{Prefix4: c.prefix4()}).Check(); err != nil {
		bad("mesh-prefix", "%v", err)
	}
	if err := (stmt.Settings{Zone: c.MeshZone}).Check(); err != nil {
		bad("mesh-zone", "%v", err)
	}
	oneOf("log-format", c.LogFormat, "text", "json")
	oneOf("log-level", c.LogLevel, "debug", "info", "warn", "error")
	if c.MeshPort < 0 || c.MeshPort > 65535 {
		bad("mesh-port", "%d is not a port", c.MeshPort)
	}
	if c.CPUs < 0 || c.CPUs > 4096 {
		bad("cpus", "%d is not between 0 and 4096", c.CPUs)
	}
	if c.Memory != 0 && (c.Memory < 128<<20 || c.Memory > 64<<40) {
		bad("memory", "%s is not between 128M and 64T", c.Memory)
	}
	if c.Disk != 0 && (c.Disk < 1<<30 || c.Disk > 1<<50) {
		bad("disk", "%s is not between 1G and 1024T", c.Disk)
	}
	if _, err := ParseLabels(c.Label); err != nil {
		bad("label", "%v", err)
	}
	if len(c.Region) > 63 {
		bad("region", "has %d bytes; at most 63 are allowed", len(c.Region))
	}
	if _, err := ParseAccept(c.Accept); err != nil {
		bad("accept", "%v", err)
	}
	if len(c.Operator) > stmt.MaxOperators {
		bad("operator", "has %d keys; at most %d are allowed", len(c.Operator), stmt.MaxOperators)
	}
	for _, k := range c.Operator {
		if _, err := stmt.ParseKey(k); err != nil {
			bad("operator", "%v", err)
		}
	}
	quic := ""
	for _, a := range c.Listen {
		if !isListen(a) {
			bad("listen", "%q is neither /ip4|ip6/ADDRESS/tcp/PORT nor /ip4|ip6/ADDRESS/udp/PORT/quic-v1", a)
		} else if parts := strings.Split(a, "/"); parts[3] == "udp" && quic == "" {
			quic = parts[4]
		}
	}
	if quic != "" && quic != "0" && c.MeshPort != 0 && quic != strconv.Itoa(c.MeshPort) {
		bad("mesh-port", "%d is not the QUIC port that listen names, %s: both share one", c.MeshPort, quic)
	}
	for _, a := range c.Bootstrap {
		if _, err := peer.AddrInfoFromString(a); err != nil {
			bad("bootstrap", "%q is no multiaddr that ends in /p2p/PEER", a)
		}
	}
	if c.Join != "" {
		if _, err := stmt.ParseTicket(c.Join); err != nil {
			bad("join", "%v", err)
		}
	}
	if c.Join != "" && c.Network != "" {
		bad("join", "a ticket names its network: leave network out")
	}
	if len(c.Network) > 63 {
		bad("network", "the name has %d bytes; at most 63 are allowed", len(c.Network))
	}
	if c.TakeoverDelay < 0 || c.TakeoverDelay.Seconds() > 3600 {
		bad("takeover-delay", "%s is not between 0s and 1h", c.TakeoverDelay)
	}
	if c.RebalanceAfter < 0 || c.RebalanceAfter.Seconds() > 7*24*3600 {
		bad("rebalance-after", "%s is not between 0s (never) and 168h", c.RebalanceAfter)
	}
	return errors.Join(errs...)
}

// Settings are those of the network that is asked for, of a valid Config.
func (c Config) Settings() stmt.Settings {
	return stmt.Settings{Prefix4: c.prefix4(), Zone: c.MeshZone}
}

func (c Config) prefix4() netip.Prefix {
	p, err := netip.ParsePrefix(c.MeshPrefix)
	if err != nil {
		return netip.Prefix{} // none, or refused by Validate
	}
	return p
}

// Socket is the API socket's path.
func (c Config) Socket() string { return strings.TrimPrefix(c.API, "unix://") }
