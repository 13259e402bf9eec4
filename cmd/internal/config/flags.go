package config

import (
	"fmt"

	"github.com/spf13/pflag"

	"github.com/formthefog/formation/crdt/stmt"
)

// Bind declares one flag for each key, with c's present values as defaults.
// Parsing writes into c.
func Bind(fs *pflag.FlagSet, c *Config) {
	fs.StringVar(&c.Data, "data", c.Data, "directory of everything this node keeps")
	fs.StringArrayVar(&c.Listen, "listen", c.Listen, "multiaddr to listen on (repeatable; default: tcp and quic-v1 on 51820 or the next free port)")
	fs.StringArrayVar(&c.Bootstrap, "bootstrap", c.Bootstrap, "multiaddr of a peer to connect to (repeatable)")
	fs.StringVar(&c.Join, "join", c.Join, "ticket of the network to join (see form net invite)")
	fs.StringVar(&c.Network, "network", c.Network, "name of an open network to join or begin (default: a private network)")
	fs.StringVar(&c.API, "api", c.API, "the API's unix socket, unix:///PATH")
	fs.StringVar(&c.Web, "web", c.Web, "address of the read-only HTTP API, or off (default: "+DefaultWeb+" or the next free port)")
	fs.StringVar(&c.Metrics, "metrics", c.Metrics, "address of the Prometheus metrics, or off")
	fs.StringVar(&c.Accel, "accel", c.Accel, "acceleration of VMs: auto, kvm or tcg")
	fs.StringVar(&c.VMDriver, "vm-driver", c.VMDriver, "qemu, or fake (no VM is started: for tests)")
	fs.StringVar(&c.VMNet, "vm-net", c.VMNet, "network of VMs: user or bridge")
	fs.StringVar(&c.Bridge, "bridge", c.Bridge, "bridge that --vm-net bridge uses")
	fs.StringArrayVar(&c.AllowEgress, "allow-egress", c.AllowEgress, "network that guests may reach beside the public internet, as 10.1.0.0/16 (repeatable)")
	fs.BoolVar(&c.Ingress, "ingress", c.Ingress, "serve what instances offer to everybody")
	fs.StringVar(&c.IngressHTTP, "ingress-http", c.IngressHTTP, "address of public sites by HTTP, or off")
	fs.StringVar(&c.IngressHTTPS, "ingress-https", c.IngressHTTPS, "address of public sites by HTTPS, or off")
	fs.StringArrayVar(&c.IngressDomain, "ingress-domain", c.IngressDomain, "DNS name under which sites are served, as APP.DOMAIN and APP.OWNER.DOMAIN (repeatable)")
	fs.StringVar(&c.IngressACME, "ingress-acme", c.IngressACME, "directory URL of the ACME authority for certificates, or internal")
	fs.StringVar(&c.IngressEmail, "ingress-email", c.IngressEmail, "email address for that authority")
	fs.StringVar(&c.IngressPorts, "ingress-ports", c.IngressPorts, "LOW-HIGH of the public TCP and UDP ports that are served under their number (default: none)")
	fs.StringVar(&c.Mesh, "mesh", c.Mesh, "this machine's own interface on formnet: auto (with the right to make one), kernel, userspace or off (guests are on the mesh all the same)")
	fs.IntVar(&c.MeshPort, "mesh-port", c.MeshPort, "formnet's UDP port (0: as --listen)")
	fs.StringVar(&c.MeshPrefix, "mesh-prefix", c.MeshPrefix, "prefix of the mesh's IPv4 addresses in a network that this start makes (default: "+stmt.DefaultPrefix4.String()+")")
	fs.StringVar(&c.MeshZone, "mesh-zone", c.MeshZone, "zone of the mesh's names in a network that this start makes (default: "+stmt.DefaultZone+")")
	fs.IntVar(&c.CPUs, "cpus", c.CPUs, "cores offered to instances (0: all)")
	fs.Var(&c.Memory, "memory", "memory offered to instances (0: what the machine can spare)")
	fs.Var(&c.Disk, "disk", "disk offered to instances (0: what the data directory's disk can spare)")
	fs.StringArrayVar(&c.Label, "label", c.Label, "K=V that placement constraints may ask for (repeatable)")
	fs.StringVar(&c.Region, "region", c.Region, "region of this machine")
	fs.StringArrayVar(&c.Accept, "accept", c.Accept, "whose instances may run here: any, members, operator or owner:KEY,… (default: operator; members after --join)")
	fs.StringArrayVar(&c.Operator, "operator", c.Operator, "owner key of whoever runs this node (repeatable)")
	fs.Var(&c.TakeoverDelay, "takeover-delay", "how long a dead node's replica waits before another node runs it (0: 10s)")
	fs.Var(&c.RebalanceAfter, "rebalance-after", "how long another node must be preferred before a replica that runs moves there (0: never)")
	fs.StringVar(&c.LogFormat, "log-format", c.LogFormat, "text or json")
	fs.StringVar(&c.LogLevel, "log-level", c.LogLevel, "debug, info, warn or error")
	fs.BoolVar(&c.StopVMs, "stop-vms", c.StopVMs, "stop the VMs when formd is stopped")
	fs.BoolVar(&c.NoPortmap, "no-portmap", c.NoPortmap, "do not ask the router for a port (UPnP, NAT-PMP)")
	fs.BoolVar(&c.NoMDNS, "no-mdns", c.NoMDNS, "do not look for peers on the LAN")
}

// Resolve is the configuration in force: defaults, then the file (see Find),
// then the flags that were given. It returns the file's path, empty for none.
// The result is validated.
func Resolve(given *pflag.FlagSet, explicit string, env Env) (Config, string, error) {
	c := Default(env)
	path := Find(explicit, env)
	if path != "" {
		var err error
		if c, err = Load(path, c); err != nil {
			return c, path, err
		}
	}
	over := pflag.NewFlagSet("", pflag.ContinueOnError)
	Bind(over, &c)
	var first error
	given.Visit(func(f *pflag.Flag) {
		target := over.Lookup(f.Name)
		if target == nil || first != nil {
			return
		}
		if list, ok := f.Value.(pflag.SliceValue); ok {
			first = target.Value.(pflag.SliceValue).Replace(list.GetSlice())
			return
		}
		if err := over.Set(f.Name, f.Value.String()); err != nil {
			first = fmt.Errorf("--%s: %w", f.Name, err)
		}
	})
	if first != nil {
		return c, path, first
	}
	return c, path, c.Validate()
}
