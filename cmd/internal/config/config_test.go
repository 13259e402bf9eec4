package config

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
	"pgregory.net/rapid"

	"github.com/formthefog/formation/crdt/stmt"
)

func env(root bool, kv ...string) Env {
	m := map[string]string{"HOME": "/home/u"}
	for i := 0; i < len(kv); i += 2 {
		m[kv[i]] = kv[i+1]
	}
	return Env{Root: root, Getenv: func(k string) string { return m[k] }}
}

// The commented example names every key, and loads.
func TestExampleFile(t *testing.T) {
	const path = "../../../docs/formd.toml"
	c, err := Load(path, Default(env(true)))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range Keys() {
		if !strings.Contains("\n"+string(b), "\n"+k+" = ") {
			t.Errorf("the example does not show %q", k)
		}
	}
}

func TestEveryFlagIsAKeyAndTheReverse(t *testing.T) {
	fs := pflag.NewFlagSet("", pflag.ContinueOnError)
	c := Default(env(true))
	Bind(fs, &c)
	var flags []string
	fs.VisitAll(func(f *pflag.Flag) { flags = append(flags, f.Name) })
	keys := Keys()
	slices.Sort(keys)
	slices.Sort(flags)
	if !slices.Equal(keys, flags) {
		t.Errorf("keys  %v\nflags %v", keys, flags)
	}
}

func TestDefaultsDependOnWhoRuns(t *testing.T) {
	for _, tc := range []struct {
		name              string
		env               Env
		wantData, wantAPI string
	}{
		{"root", env(true), "/var/lib/formd", "unix:///run/formd/api.sock"},
		{"user", env(false, "XDG_STATE_HOME", "/s", "XDG_RUNTIME_DIR", "/r"), "/s/formd", "unix:///r/formd/api.sock"},
		{"bare user", env(false), "/home/u/.local/state/formd", "unix:///home/u/.local/state/formd/api.sock"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := Default(tc.env)
			if c.Data != tc.wantData || c.API != tc.wantAPI {
				t.Errorf("data %s, api %s", c.Data, c.API)
			}
			if err := c.Validate(); err != nil {
				t.Errorf("the default is invalid: %v", err)
			}
		})
	}
}

func TestBadFilesSayWhere(t *testing.T) {
	for _, tc := range []struct{ name, text, want string }{
		{"unknown key", "data = \"/x\"\nlabels = []\n", "f.toml:2:1: unknown key \"labels\"; did you mean \"label\"?"},
		{"underscore", "log_level = \"info\"\n", "did you mean \"log-level\"?"},
		{"two unknown", "foo = 1\nbar = 2\n", "f.toml:2:1: unknown key \"bar\""},
		{"table", "[p2p]\nport = 1\n", "unknown key"},
		{"type", "data = 5\n", "f.toml:1:8:"},
		{"size", "memory = \"lots\"\n", "\"lots\" is not a size"},
		{"syntax", "data = \n", "f.toml:1:"},
		{"twice", "data = \"a\"\ndata = \"b\"\n", "f.toml:2:"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "f.toml")
			if err := os.WriteFile(path, []byte(tc.text), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := Load(path, Default(env(true)))
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want it to contain %q", err, tc.want)
			}
		})
	}
}

func TestValidateNamesTheKey(t *testing.T) {
	for key, f := range map[string]func(*Config){
		"api":                                func(c *Config) { c.API = "tcp://1" },
		"web":                                func(c *Config) { c.Web = "3002" },
		"metrics":                            func(c *Config) { c.Metrics = "127.0.0.1:99999" },
		"accel":                              func(c *Config) { c.Accel = "xen" },
		"vm-driver":                          func(c *Config) { c.VMDriver = "" },
		"vm-net":                             func(c *Config) { c.VMNet = "tap" },
		"mesh":                               func(c *Config) { c.Mesh = "on" },
		"mesh-prefix":                        func(c *Config) { c.MeshPrefix = "10.0.0.0" },
		"mesh-prefix: prefix 192.168.0.0/16": func(c *Config) { c.MeshPrefix = "192.168.0.0/16" },
		"mesh-zone":                          func(c *Config) { c.MeshZone = "cloud" },
		"mesh-port":                          func(c *Config) { c.MeshPort = 70000 },
		"mesh-port: 7 is":                    func(c *Config) { c.Listen, c.MeshPort = []string{"/ip4/0.0.0.0/udp/8/quic-v1"}, 7 },
		"cpus":                               func(c *Config) { c.CPUs = -1 },
		"memory":                             func(c *Config) { c.Memory = 1 },
		"disk":                               func(c *Config) { c.Disk = 1 },
		"allow-egress":                       func(c *Config) { c.AllowEgress = []string{"10.0.0.0/33"} },
		"label":                              func(c *Config) { c.Label = []string{"formd.accept=any"} },
		"accept":                             func(c *Config) { c.Accept = []string{"everyone"} },
		"operator":                           func(c *Config) { c.Operator = []string{"me"} },
		"listen":                             func(c *Config) { c.Listen = []string{"0.0.0.0:1"} },
		"join":                               func(c *Config) { c.Join, c.Network = "form1", "n" },
		"log-level":                          func(c *Config) { c.LogLevel = "loud" },
		"log-format":                         func(c *Config) { c.LogFormat = "xml" },
		"takeover-delay":                     func(c *Config) { c.TakeoverDelay = -1 },
		"rebalance-after":                    func(c *Config) { c.RebalanceAfter = -1 },
		"data":                               func(c *Config) { c.Data = "" },
	} {
		c := Default(env(true))
		f(&c)
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), key) {
			t.Errorf("%s: got %v", key, err)
		}
	}
	for _, bad := range []Config{
		{VMNet: "bridge"}, {Mesh: "tap"}, {Join: "form1nonsense"},
		{Listen: []string{"/ip4/127.0.0.1"}}, {Listen: []string{"/nonsense"}}, {Listen: []string{"/dns4/x/tcp/1"}}, {Listen: []string{"/ip4/127.0.0.1/udp/1"}},
		{Bootstrap: []string{"/ip4/192.0.2.1/tcp/1"}}, {Bootstrap: []string{"/nonsense"}},
	} {
		c := Default(env(true))
		c.Join, c.Listen, c.Bootstrap = bad.Join, bad.Listen, bad.Bootstrap
		c.VMNet, c.Mesh = cmp.Or(bad.VMNet, c.VMNet), cmp.Or(bad.Mesh, c.Mesh)
		if err := c.Validate(); err == nil {
			t.Errorf("formd would refuse it, and the check accepts it: %+v", bad)
		}
	}
	c := Default(env(true))
	c.Listen = []string{"/ip4/0.0.0.0/tcp/0", "/ip6/::/udp/51820/quic-v1"}
	c.Bootstrap = []string{"/ip4/192.0.2.1/tcp/1/p2p/12D3KooWQYhTNQdmr3ArTeUHRYzFg94BKyTkoWBDWez9kSCVe2Xo"}
	if err := c.Validate(); err != nil {
		t.Errorf("good addresses: %v", err)
	}
	c.Accel, c.Mesh = "x", "y"
	if err := c.Validate(); err == nil || strings.Count(err.Error(), "\n") != 1 {
		t.Errorf("two errors are told at once; got %v", err)
	}
}

func TestFlagsWinOverTheFileOverDefaults(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f.toml")
	text := "memory = \"2G\"\nlabel = [\"a=1\", \"b=2\"]\nregion = \"file\"\naccept = [\"any\"]\nstop-vms = true\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	fs := pflag.NewFlagSet("", pflag.ContinueOnError)
	var ignored Config
	Bind(fs, &ignored)
	args := []string{"--region", "flag", "--label", "c=3", "--label", "d=4", "--takeover-delay", "3s", "--stop-vms=false"}
	if err := fs.Parse(args); err != nil {
		t.Fatal(err)
	}
	c, from, err := Resolve(fs, path, env(true))
	if err != nil || from != path {
		t.Fatal(from, err)
	}
	want := Default(env(true))
	want.Memory, want.Region, want.Label, want.Accept = 2<<30, "flag", []string{"c=3", "d=4"}, []string{"any"}
	want.TakeoverDelay = Duration(3 * time.Second)
	if !reflect.DeepEqual(c, want) {
		t.Errorf("got  %+v\nwant %+v", c, want)
	}
}

func TestFind(t *testing.T) {
	home := t.TempDir()
	file := filepath.Join(home, "formd", "formd.toml")
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		explicit string
		env      Env
		want     string
	}{
		{"/x", env(true, "SECRET_PATH", "/y"), "/x"},
		{"", env(true, "SECRET_PATH", "/y"), "/y"},
		{"", env(false, "XDG_CONFIG_HOME", home), file},
		{"", env(false, "XDG_CONFIG_HOME", "/nowhere"), ""},
	} {
		if got := Find(tc.explicit, tc.env); got != tc.want && got != "/etc/formd/formd.toml" {
			t.Errorf("Find(%q) = %q, want %q", tc.explicit, got, tc.want)
		}
	}
}

func TestEncodeLoads(t *testing.T) {
	c := Default(env(true))
	c.Memory, c.Label, c.TakeoverDelay = 3<<30, []string{"a=1"}, Duration(4*time.Second)
	b, err := Encode(c)
	if err != nil {
		t.Fatal(err)
	}
	got, err := Parse(b, Config{})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []*[]string{&got.Listen, &got.Bootstrap, &got.Accept, &got.AllowEgress, &got.IngressDomain, &got.Operator} {
		if len(*p) == 0 {
			*p = nil
		}
	}
	if !reflect.DeepEqual(got, c) {
		t.Errorf("got  %+v\nwant %+v", got, c)
	}
}

func TestParseSize(t *testing.T) {
	for text, want := range map[string]Size{
		"0": 0, "12": 12, "1K": 1 << 10, "512M": 512 << 20, "512m": 512 << 20, "4G": 4 << 30, "4GiB": 4 << 30, "4GB": 4 << 30,
		"2T": 2 << 40, " 7 ": 7, "15E": 0, "-1": 0, "1.5G": 0, "": 0, "G": 0, "99999999999G": 0, "0x10": 0, "1 G": 0,
	} {
		got, err := ParseSize(text)
		bad := want == 0 && text != "0"
		if got != want || (err != nil) != bad {
			t.Errorf("ParseSize(%q) = %d, %v; want %d", text, got, err, want)
		}
	}
}

func TestSizeTextIsExact(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := Size(rapid.Uint64().Draw(t, "size") >> rapid.IntRange(0, 63).Draw(t, "shift"))
		if got, err := ParseSize(s.String()); got != s || err != nil {
			t.Fatalf("%d is written %q and read as %d, %v", s, s, got, err)
		}
	})
}

func TestParseAccept(t *testing.T) {
	a, b := stmt.Key{1}, stmt.Key{2}
	for _, tc := range []struct {
		words []string
		want  string // the String of the result, or error
	}{
		{nil, ""},
		{[]string{"any"}, "any"},
		{[]string{"operator,members"}, "members,operator"},
		{[]string{"owner:" + a.String() + "," + b.String(), "members"}, ""},
		{[]string{"owner:" + a.String() + ",owner:" + a.String()}, "owner:" + a.String()},
		{[]string{a.String()}, "error"},
		{[]string{"owner:x"}, "error"},
		{[]string{""}, "error"},
		{[]string{"any,"}, "error"},
	} {
		got, err := ParseAccept(tc.words)
		switch {
		case (err != nil) != (tc.want == "error"):
			t.Errorf("%q: %v", tc.words, err)
		case err == nil && tc.want != "" && got.String() != tc.want:
			t.Errorf("%q = %s, want %s", tc.words, got, tc.want)
		}
		if err == nil && !got.IsZero() {
			again, err := ParseAccept([]string{got.String()})
			if err != nil || !reflect.DeepEqual(again, got) {
				t.Errorf("%q is written %q and read as %+v, %v", tc.words, got, again, err)
			}
		}
	}
}

func TestParseLabels(t *testing.T) {
	got, err := ParseLabels([]string{"disk=ssd", "rack=", "a/b.c-d_e=x=y"})
	if err != nil || got["disk"] != "ssd" || got["a/b.c-d_e"] != "x=y" || len(got) != 3 {
		t.Errorf("%v, %v", got, err)
	}
	for _, bad := range [][]string{{"x"}, {"=v"}, {"A=1"}, {"a=1", "a=2"}, {"formd.x=1"}, {"a=" + strings.Repeat("x", 64)}, make([]string, 33)} {
		if _, err := ParseLabels(bad); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
}

func TestParseNetworks(t *testing.T) {
	got, err := ParseNetworks([]string{"10.1.0.0/16", "fd00::/8", "192.0.2.7", "0.0.0.0/0"})
	if text := fmt.Sprint(got); err != nil || text != "[10.1.0.0/16 fd00::/8 192.0.2.7/32 0.0.0.0/0]" {
		t.Errorf("%s, %v", text, err)
	}
	for _, bad := range [][]string{{""}, {"10.1.0.1/16"}, {"10.0.0.0/33"}, {"lan"}, {"fe80::1%eth0"}, {"127.0.0.1"}, {"127.0.0.0/8"}, {"::1/128"}, make([]string, 65)} {
		if got, err := ParseNetworks(bad); err == nil {
			t.Errorf("%q is accepted: %v", bad, got)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("data = \"/x\"\nlisten = [\"/ip4/0.0.0.0/tcp/1\"]\n")
	f.Add("memory = \"4G\"\ntakeover-delay = \"3s\"\n[x]\n")
	f.Fuzz(func(t *testing.T, text string) {
		c, err := Parse([]byte(text), Default(env(true)))
		if err != nil {
			return
		}
		if c.Validate() != nil {
			return
		}
		b, err := Encode(c)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Parse(b, Config{}); err != nil {
			t.Fatalf("what was read cannot be read again: %v\n%s", err, b)
		}
	})
}
