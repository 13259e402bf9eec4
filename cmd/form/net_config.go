package main

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/formthefog/formation/cmd/form/internal/agent"
	"github.com/formthefog/formation/cmd/form/internal/cli"
	"github.com/formthefog/formation/cmd/form/internal/swarm"
	"github.com/formthefog/formation/cmd/internal/api"
	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/stmt"
	"github.com/formthefog/formation/wg"
)

func newNetConfig(a *app) *cobra.Command {
	var name, peersOf, dns, rotated string
	c := &cobra.Command{
		Use: "config", Short: "print a WireGuard configuration for a phone, a router, any machine",
		Long: `Makes a new device of yours and prints its configuration as wg-quick and every
WireGuard app take it: your replicas as they are now, each at its host. The private
key is in it and nowhere else, so keep it like a key.

The names of the mesh are answered to devices by the nodes that you run, where they
have an interface on the mesh, in your scope; replicas answer themselves alone, so
without such a node there is nobody to ask. A node refuses all other names. As
WireGuard knows no names by which it could tell them apart, a DNS line has a phone or
wg-quick ask there about every name, and nothing else on the internet is found any
more: it is there with --dns all only. --dns mesh is for wg-quick on a machine with
systemd-resolved, which is told to ask there about the mesh's names alone. Elsewhere
tell the machine's resolver about the address that a comment gives.

When replicas have moved, --peers NAME prints the peers of a device anew, as
wg syncconf and wg addconf take them. form key device rm KEY ends a device.

--rotate NAME gives a device that was made so a new private key, and prints its
configuration: the addresses stay. Replicas go over to the new key as soon as it is
used, and leave the old one after a quarter of a minute in any case.`,
		Example: `  form net config --device phone | qrencode -t ansiutf8
  form net config --device router >/etc/wireguard/fog.conf && wg-quick up fog`,
		Args: noArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if peersOf != "" && name != "" {
				return cli.Errorf(api.ExitUsage, "--device makes a device, and --peers is about one that there is")
			}
			if dns != "" && dns != dnsAll && dns != dnsMesh {
				return cli.Errorf(api.ExitUsage, "--dns: %q is neither all nor mesh", dns)
			}
			if dns != "" && peersOf != "" {
				return cli.Errorf(api.ExitUsage, "--dns is about the interface, and --peers prints peers alone")
			}
			if rotated != "" && (name != "" || peersOf != "") {
				return cli.Errorf(api.ExitUsage, "--rotate names the device itself")
			}
			return a.withAuthor(cmd.Context(), func(c *swarm.Conn, au *crdt.Author) error {
				if peersOf != "" {
					return a.runNetPeers(cmd.Context(), c, au, peersOf)
				}
				if rotated != "" {
					return a.runNetRotate(cmd.Context(), c, au, rotated, dns)
				}
				return a.runNetConfig(cmd.Context(), c, au, name, dns)
			})
		},
	}
	c.Flags().StringVar(&name, "device", "", "a name for the device (a DNS label)")
	c.Flags().StringVar(&rotated, "rotate", "", "give a device that there is a new key: its name or key")
	c.Flags().StringVar(&peersOf, "peers", "", "print the peers of a device that there is: its name or key")
	c.Flags().StringVar(&dns, "dns", "", "ask a node about names: mesh (those of the mesh, by systemd-resolved) or all")
	return c
}

// What of a device's questions about names goes to a node, with --dns.
const (
	dnsAll  = "all"
	dnsMesh = "mesh"
)

// wgConfig is a device's configuration.
type wgConfig struct {
	Device     stmt.Key `json:"device"`
	Name       string   `json:"name,omitempty"`
	PrivateKey string   `json:"private_key,omitempty"`
	Addresses  []string `json:"addresses"`
	MTU        int      `json:"mtu"`
	Nameserver string   `json:"nameserver,omitempty"` // who answers about the zone
	Zone       string   `json:"zone"`
	Peers      []wgPeer `json:"peers"` // never null

	dns string // of --dns
}

type wgPeer struct {
	Name       string   `json:"name"` // the replica
	PublicKey  string   `json:"public_key"`
	AllowedIPs []string `json:"allowed_ips"`
	Endpoint   string   `json:"endpoint,omitempty"`
}

func (a *app) runNetConfig(ctx context.Context, c *swarm.Conn, au *crdt.Author, name, dns string) error {
	// Only the public half of the device's own key is ever of use: it opens no session.
	public, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return fmt.Errorf("make a device: %w", err)
	}
	return a.keyed(ctx, c, au, crdt.Device{Key: stmt.Key(public), Name: name}, dns)
}

// runNetRotate gives a device another WireGuard key. Those that form is follow from
// their own keys, and so do not take one.
func (a *app) runNetRotate(ctx context.Context, c *swarm.Conn, au *crdt.Author, device, dns string) error {
	d, err := deviceOf(au, device)
	if err != nil {
		return err
	}
	if d.MeshKey.IsZero() {
		return cli.Errorf(api.ExitUsage, "%s has no place on the mesh", d.Key).Hint("a device that has: form net config --device NAME")
	}
	own, err := a.deviceKeys()
	if err != nil {
		return err
	}
	if slices.Contains(own, d.Key) {
		return cli.Errorf(api.ExitUsage, "%s is this machine's own device: its WireGuard key follows from the device's", d.Key).
			Hint("for another key make it another device: form net agent stop, form key device rm %s, and remove %s or %s", d.Key, a.dir().Device(), a.dir().Interface())
	}
	return a.keyed(ctx, c, au, d, dns)
}

// keyed gives a device a new WireGuard key, lists it so and answers its configuration.
func (a *app) keyed(ctx context.Context, c *swarm.Conn, au *crdt.Author, d crdt.Device, dns string) error {
	key, err := wgtypes.GeneratePrivateKey()
	if err != nil {
		return fmt.Errorf("make a key: %w", err)
	}
	d.MeshKey = stmt.Key(key.PublicKey())
	raws, err := au.SetDevice(d)
	switch {
	case errors.Is(err, crdt.ErrInvalid):
		return cli.Errorf(api.ExitUsage, "%w", err)
	case errors.Is(err, crdt.ErrQuota):
		return cli.Errorf(api.ExitNotAllowed, "%w", err).Hint("remove one that is not used any more: form key device ls, form key device rm KEY")
	case err != nil:
		return cannotSign("make a device", "", err)
	}
	if _, err := c.API().Submit(ctx, raws); err != nil {
		return err
	}
	v, err := a.wgConfig(ctx, c, au.Owner(), d)
	if err != nil {
		return err
	}
	v.PrivateKey, v.dns = key.String(), dns
	if dns != "" && v.Nameserver == "" {
		a.p.Warn("nobody answers this device about names: you run no node that has an interface on the mesh, so --dns %s changes nothing", dns)
	}
	a.p.Note("the private key is in this configuration and nowhere else; form key device rm %s ends it", d.Key)
	return a.p.Answer(v, func(w io.Writer) { fmt.Fprint(w, v) })
}

func (a *app) runNetPeers(ctx context.Context, c *swarm.Conn, au *crdt.Author, device string) error {
	d, err := deviceOf(au, device)
	if err != nil {
		return err
	}
	v, err := a.wgConfig(ctx, c, au.Owner(), d)
	if err != nil {
		return err
	}
	return a.p.Answer(v, func(w io.Writer) { fmt.Fprint(w, v.peers()) })
}

// deviceOf is the owner's device that a name or a key means.
func deviceOf(au *crdt.Author, device string) (crdt.Device, error) {
	devices := au.Devices()
	i := slices.IndexFunc(devices, func(d crdt.Device) bool { return !d.Node && (d.Key.String() == device || d.Name == device) })
	if i < 0 {
		return crdt.Device{}, cli.Errorf(api.ExitNotFound, "no device %q", device).Hint("which there are: form key device ls")
	}
	return devices[i], nil
}

// wgConfig is the configuration of a device that is listed, without its key. Who
// its peers are is proved here; where they are is what the nodes say.
func (a *app) wgConfig(ctx context.Context, c *swarm.Conn, owner stmt.Key, d crdt.Device) (wgConfig, error) {
	network, settings, err := c.Settled(ctx)
	if err != nil {
		return wgConfig{}, err
	}
	space, err := wg.NewSpace(network, settings.Full().Prefix4)
	if err != nil {
		return wgConfig{}, err
	}
	t, err := swarm.Testimony(ctx, c.API(), owner)
	if err != nil {
		return wgConfig{}, err
	}
	id := agent.Identity{Network: network, Settings: settings, Owner: owner, Device: d.Key}
	known, err := agent.Judge(id, wg.Key(d.MeshKey), space, t)
	if err != nil {
		return wgConfig{}, err
	}
	nodes, err := c.API().Nodes(ctx)
	if err != nil {
		return wgConfig{}, err
	}
	v := wgConfig{Device: d.Key, Name: d.Name, Addresses: []string{id.Address(space).String() + "/128", id.Address4(space).String() + "/32"}, MTU: agent.MTU, Zone: settings.Full().Zone, Peers: []wgPeer{}}
	for _, p := range known.Peers {
		peer := wgPeer{Name: p.String(), PublicKey: wg.Key(p.Key).String(), AllowedIPs: []string{p.Address6.String() + "/128"}}
		if p.Address4.IsValid() {
			peer.AllowedIPs = append(peer.AllowedIPs, p.Address4.String()+"/32")
		}
		if peer.Endpoint = endpoint(p, nodes); peer.Endpoint == "" {
			a.p.Warn("%s: its host %s says no UDP address, so it is not reached before it reaches out", peer.Name, short(p.Node))
		}
		v.Peers = append(v.Peers, peer)
		if p.IsNode() && v.Nameserver == "" {
			v.Nameserver = p.Address6.String()
		}
	}
	if len(v.Peers) == 0 {
		a.p.Warn("no replica is on the mesh yet\nhint: later: form net config --peers %s", d.Key)
	}
	return v, nil
}

// endpoint is where a replica's host takes the datagrams for it: where its claim
// says, else where the node is. Either may say anything at all, and the answer is
// text in a file that programs obey.
func endpoint(p agent.Peer, nodes []api.Node) string {
	if at, err := netip.ParseAddrPort(p.Endpoint); err == nil && usable(at) {
		return at.String()
	}
	i := slices.IndexFunc(nodes, func(n api.Node) bool { return n.Key == p.Node })
	if i < 0 {
		return ""
	}
	for _, at := range swarm.UDPAddrs(nodes[i].Addrs) {
		if usable(at) {
			return at.String()
		}
	}
	return ""
}

func usable(at netip.AddrPort) bool {
	a := at.Addr()
	return at.Port() != 0 && a.Zone() == "" && !a.IsUnspecified() && !a.IsMulticast()
}

// String is the configuration as wg-quick reads it.
func (v wgConfig) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "# Formation device %s %s\n[Interface]\nPrivateKey = %s\nAddress = %s\nMTU = %d\n", v.Name, v.Device, v.PrivateKey, strings.Join(v.Addresses, ", "), v.MTU)
	switch {
	case v.Nameserver == "":
	case v.dns == dnsAll:
		fmt.Fprintf(&b, "DNS = %s, %s\n", v.Nameserver, v.Zone)
	case v.dns == dnsMesh:
		fmt.Fprintf(&b, "PostUp = resolvectl dns %%i %s; resolvectl domain %%i '~%s'; resolvectl default-route %%i false\n", v.Nameserver, v.Zone)
	default:
		fmt.Fprintf(&b, "# %s answers about names below %s, and refuses others\n", v.Nameserver, v.Zone)
	}
	return b.String() + v.peers()
}

func (v wgConfig) peers() string {
	var b strings.Builder
	for _, p := range v.Peers {
		fmt.Fprintf(&b, "\n# %s\n[Peer]\nPublicKey = %s\nAllowedIPs = %s\n", p.Name, p.PublicKey, strings.Join(p.AllowedIPs, ", "))
		if p.Endpoint != "" {
			fmt.Fprintf(&b, "Endpoint = %s\n", p.Endpoint)
		}
		b.WriteString("PersistentKeepalive = 25\n")
	}
	return b.String()
}
