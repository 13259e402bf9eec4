package main

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/formthefog/formation/cmd/form/internal/agent"
	"github.com/formthefog/formation/cmd/form/internal/cli"
	"github.com/formthefog/formation/cmd/form/internal/kit"
	"github.com/formthefog/formation/cmd/form/internal/swarm"
	"github.com/formthefog/formation/cmd/internal/api"
	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/stmt"
	"github.com/formthefog/formation/wg"
)

// meshWait is for how long a new connection waits for the mesh, and meshGrace for
// how long when the way to the host is there already. Tests on slow machines change
// them.
var (
	meshWait  = 3 * time.Second
	meshGrace = time.Second
)

// meshPatience is for how long --via mesh waits.
const meshPatience = 30 * time.Second

// via is by which way a connection to a guest goes.
type via string

const (
	viaAuto   via = "auto"
	viaMesh   via = "mesh"
	viaStream via = "stream"
)

func (v *via) String() string { return string(*v) }
func (v *via) Type() string   { return "WAY" }

func (v *via) Set(s string) error {
	if w := via(s); w != viaAuto && w != viaMesh && w != viaStream {
		return fmt.Errorf("%q is not auto, mesh or stream", s)
	}
	*v = via(s)
	return nil
}

// addVia adds the flag.
func (a *app) addVia(f *pflag.FlagSet) {
	a.via = viaAuto
	f.Var(&a.via, "via", "auto: the mesh where it answers, else a stream to the replica's host; mesh; stream")
}

// viaMesh says whether the mesh is to be tried for a replica.
func (a *app) triesMesh(r api.Replica) (bool, error) {
	off := a.getenv("FORM_AGENT") == "off"
	switch {
	case a.via == viaMesh && off:
		return false, cli.Errorf(api.ExitUsage, "--via mesh needs the agent, and FORM_AGENT is off").Hint("without it: --via stream")
	case a.via == viaMesh:
		return true, nil
	}
	return a.via == viaAuto && !off && r.MeshKey != nil, nil
}

// device is this machine's on the mesh.
type ownDevice struct {
	key     ed25519.PrivateKey
	mesh    wg.Key // private
	owner   stmt.Key
	network stmt.NetworkID
	stmt.Settings
	lent bool // the key is a device's that speaks for the owner: only the owner can list it
}

func (d ownDevice) identity() agent.Identity {
	return agent.Identity{Network: d.network, Settings: d.Settings, Owner: d.owner, Device: stmt.KeyOf(d.key)}
}

// deviceKeys are the devices that this machine is.
func (a *app) deviceKeys() (keys []stmt.Key, err error) {
	for _, path := range []string{a.dir().Device(), a.dir().Interface()} {
		key, err := kit.LoadDevice(path)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
			continue // none, or root's
		}
		if err != nil {
			return nil, err
		}
		keys = append(keys, stmt.KeyOf(key))
	}
	return keys, nil
}

// errNoDevice: this machine has no device, and makes none unasked.
var errNoDevice = errors.New("this machine is no device on the mesh")

// device is the device of this machine, made and listed where there is none yet.
func (a *app) device(ctx context.Context, c *swarm.Conn) (d ownDevice, err error) {
	if d.owner, err = a.owner(); err != nil {
		return d, err
	}
	if d.network, d.Settings, err = c.Settled(ctx); err != nil {
		return d, err
	}
	key, err := a.key()
	if err != nil {
		return d, err
	}
	if d.lent = stmt.KeyOf(key) != d.owner; d.lent {
		d.key = key
		d.mesh, err = kit.MeshKey(key)
		return d, err
	}
	path := a.dir().Device()
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) && a.passing() && a.via != viaMesh {
		return d, errNoDevice
	}
	var made bool
	if d.key, made, err = kit.MakeDevice(path); err != nil {
		return d, err
	}
	if d.mesh, err = kit.MeshKey(d.key); err != nil || !made {
		return d, err
	}
	return d, a.list(ctx, c, d, deviceName(os.Hostname))
}

// passing says that the key is not the kit's: a job's, which would make a device of
// every machine that it runs on.
func (a *app) passing() bool {
	k, err := a.kit()
	return err != nil || k.Owner == "" || a.getenv("FORM_KEY_FILE") != ""
}

// deviceName is a machine's name as one of a device, "" when it cannot be.
func deviceName(hostname func() (string, error)) string {
	name, err := hostname()
	if err != nil {
		return ""
	}
	name, _, _ = strings.Cut(strings.ToLower(name), ".")
	name = strings.Trim(strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			return r
		}
		return '-'
	}, name), "-")
	return strings.Trim(name[:min(len(name), 48)], "-")
}

// list has the owner's document list a device with its mesh key; one that is
// listed so is left alone.
func (a *app) list(ctx context.Context, c *swarm.Conn, d ownDevice, name string) error {
	self := stmt.KeyOf(d.key)
	want := crdt.Device{Key: self, Name: name, MeshKey: stmt.Key(d.mesh.PublicKey())}
	if d.lent {
		return cli.Errorf(api.ExitNotAllowed, "this key is not the owner's, so it cannot list itself on the mesh").
			Hint("the owner does: form key device add %s --mesh %x", self, want.MeshKey[:])
	}
	au, err := a.author(ctx, c)
	if err != nil {
		return err
	}
	if i := slices.IndexFunc(au.Devices(), func(o crdt.Device) bool { return o.Key == self }); i >= 0 {
		old := au.Devices()[i]
		if old.MeshKey == want.MeshKey {
			return nil
		}
		want.Name = old.Name
	}
	raws, err := au.SetDevice(want)
	switch {
	case errors.Is(err, crdt.ErrInvalid):
		return cli.Errorf(api.ExitNotAllowed, "%w", err).Hint("make this machine a new device: remove its key, %s", a.dir().Device())
	case errors.Is(err, crdt.ErrQuota):
		return cli.Errorf(api.ExitNotAllowed, "%w", err).Hint("remove one that is not used any more: form key device ls, form key device rm KEY")
	case err != nil:
		return cannotSign("list this machine as a device", "", err)
	}
	_, err = c.API().Submit(ctx, raws)
	return err
}

// launch is what an agent is told. It comes on its standard input, because it holds
// secrets.
type launch struct {
	Socket  string   `json:"socket,omitempty"`
	Peers   []string `json:"peers,omitempty"`
	Ticket  string   `json:"ticket,omitempty"`
	Network string   `json:"network"`
	stmt.Settings
	Owner stmt.Key `json:"owner"`
	Seed  []byte   `json:"seed"` // of the device's key
}

// agentOf is where the agent of a device is, running.
func (a *app) agentOf(ctx context.Context, d ownDevice) (agent.Place, error) {
	place, err := agent.PlaceOf(d.identity(), a.getenv)
	if err != nil {
		return place, err
	}
	return place, place.Ensure(ctx, func(ctx context.Context) error {
		w, err := a.way()
		if err != nil {
			return err
		}
		self, err := os.Executable()
		if err != nil {
			return fmt.Errorf("find this program: %w", err)
		}
		l := launch{Socket: w.socket, Peers: w.peers, Network: d.network.String(), Settings: d.Settings, Owner: d.owner, Seed: d.key.Seed()}
		if w.ticket != nil {
			l.Ticket = w.ticket.String()
		}
		// Whose agent it is shows in a list of processes.
		config, err := filepath.Abs(a.dir().Config)
		if err != nil {
			return fmt.Errorf("agent: %w", err)
		}
		return agent.Start(ctx, []string{self, "--config", config, "net", "agent", "run"}, l, filepath.Join(a.dir().Cache, "agent.log"))
	})
}

// meshPath reaches a replica over the mesh. The device is listed again where the
// nodes do not know it.
func (a *app) meshPath(ctx context.Context, c *swarm.Conn, d ownDevice, t agent.Target, hasty bool) (*agent.Path, error) {
	reach := func() (*agent.Path, error) {
		place, err := a.agentOf(ctx, d)
		if err != nil {
			return nil, err
		}
		return agent.Reach(ctx, place.Socket(), t, hasty)
	}
	p, err := reach()
	if !errors.Is(err, agent.ErrUnlisted) || ctx.Err() != nil {
		return p, err
	}
	if err := a.list(ctx, c, d, deviceName(os.Hostname)); err != nil {
		return nil, err
	}
	return reach()
}

// target is a replica as the agent finds it; an address that was typed has to be
// its.
func target(i api.Instance, r api.Replica, h host) agent.Target {
	t := agent.Target{Instance: i.ID, Slot: r.Slot, Node: r.Node}
	if at, err := netip.ParseAddr(h.name); err == nil {
		t.Address = at
	}
	return t
}

// dialReplica connects to a port of one replica by the way that was asked for. By
// auto the mesh and the way to the replica's host are looked for at once, and one
// connection is made to the guest, by the mesh if that answers in time.
func (a *app) dialReplica(ctx context.Context, c *swarm.Conn, i api.Instance, r api.Replica, h host, port int) (net.Conn, error) {
	stream := func() (net.Conn, error) {
		return c.Proxy(ctx, r.Node, api.ProxyRequest{Instance: i.ID, Slot: r.Slot, Port: port})
	}
	mesh, err := a.triesMesh(r)
	if err != nil {
		return nil, err
	}
	if !mesh {
		return stream()
	}
	d, err := a.device(ctx, c)
	if err != nil && a.via == viaAuto && ctx.Err() == nil {
		a.logger().Debug("no mesh: not a device", "err", err)
		return stream()
	}
	if err != nil {
		return nil, err
	}
	conn, err := a.dialMesh(ctx, c, d, target(i, r, h), port)
	switch {
	case err == nil:
		return conn, nil
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case errors.Is(err, agent.ErrRefused) && a.via == viaMesh:
		return nil, cli.Errorf(api.ExitFailed, "nothing listens on port %d of %s/%d on the mesh", port, i.Name, r.Slot).
			Hint("what listens on another address is reached by its host: --via stream")
	case a.via == viaMesh:
		return nil, meshError(i, r, err)
	}
	// Refused as well: a program may listen where streams end, and not on the mesh.
	a.logger().Debug("no mesh: by a stream", "err", err)
	return stream()
}

func meshError(i api.Instance, r api.Replica, err error) error {
	var known *cli.Error
	if errors.As(err, &known) {
		return err
	}
	e := cli.Errorf(api.ExitUnreachable, "%s/%d is not reached over the mesh: %w", i.Name, r.Slot, err)
	if r.MeshKey == nil {
		e.Hint("its guest has no key on the mesh: it is still booting, or its base has no WireGuard")
	}
	return e.Hint("by its host: --via stream")
}

// errSlow: the way to the replica's host was there, and the mesh was not.
var errSlow = errors.New("the mesh did not answer in time")

// dialMesh connects over the mesh. By auto it gives up when the host is reached by
// libp2p and the mesh does not answer soon after, at once if it did not lately.
func (a *app) dialMesh(ctx context.Context, c *swarm.Conn, d ownDevice, t agent.Target, port int) (net.Conn, error) {
	wait := meshPatience
	if a.via == viaAuto {
		wait = meshWait
	}
	ctx, cancel := context.WithTimeoutCause(ctx, wait, errSlow)
	defer cancel()
	type reached struct {
		path *agent.Path
		err  error
	}
	paths := make(chan reached, 1)
	reach := func(hasty bool) {
		p, err := a.meshPath(ctx, c, d, t, hasty)
		paths <- reached{p, err}
	}
	go reach(a.via == viaAuto)
	var host chan error // nil: nobody asks for it, or it has said
	var noHost error
	if a.via == viaAuto {
		host = make(chan error, 1)
		go func() { host <- c.Reach(ctx, t.Node) }()
	}
	var grace <-chan time.Time
	for {
		select {
		case r := <-paths:
			if errors.Is(r.err, agent.ErrSilent) {
				if host != nil {
					noHost, host = <-host, nil
				}
				if noHost != nil { // the mesh is the only way
					go reach(false)
					continue
				}
			}
			if r.err != nil {
				return nil, r.err
			}
			return r.path.Dial(ctx, uint16(port))
		case err := <-host:
			if noHost, host = err, nil; err == nil {
				grace = time.After(meshGrace)
			}
		case <-grace:
			cancel()
			if r := <-paths; r.err == nil {
				return nil, errors.Join(errSlow, r.path.Close())
			}
			return nil, errSlow
		}
	}
}
