package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/client"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/relay"
	ma "github.com/multiformats/go-multiaddr"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/tun"
	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/formthefog/formation/wg/embedded"
)

// meshEnv tells a child process of bench that it is a device, and of what name.
const meshEnv = "FORMATION_BENCH_MESH"

// meshMain is the child: our device with wireguard-go's own socket, configured by
// the socket of every WireGuard device.
func meshMain() bool {
	name := os.Getenv(meshEnv)
	if name == "" {
		return false
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := serveDevice(ctx, name); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
	return true
}

func serveDevice(ctx context.Context, name string) error {
	key, err := wgtypes.GeneratePrivateKey()
	if err != nil {
		return err
	}
	dev, err := tun.CreateTUN(name, 1420)
	if err != nil {
		return err
	}
	d, err := embedded.Open(embedded.Config{TUN: dev, Bind: conn.NewStdNetBind(), Key: key})
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Serve(ctx)
}

// command is a device of that name as a process: wireguard-go as its authors
// build it, or ours.
func (v *meshEnd) command(ctx context.Context, e *env, way, name string) (*exec.Cmd, error) {
	if way == meshOurs {
		self, err := os.Executable()
		if err != nil {
			return nil, err
		}
		cmd := v.ns.Command(context.WithoutCancel(ctx), self)
		cmd.Env = append(os.Environ(), meshEnv+"="+name)
		return cmd, nil
	}
	program := filepath.Join(e.Dir, "wireguard-go")
	if _, err := os.Stat(program); err != nil {
		if out, err := exec.CommandContext(ctx, "go", "build", "-o", program, "golang.zx2c4.com/wireguard").CombinedOutput(); err != nil {
			return nil, fmt.Errorf("build wireguard-go: %w: %s", err, out)
		}
	}
	return v.ns.Command(context.WithoutCancel(ctx), program, "--foreground", name), nil
}

// openProcess runs a device in the end's namespace; it is called there. A name is
// one device's in all namespaces, because of the socket by which it is configured.
func (v *meshEnd) openProcess(ctx context.Context, e *env, way, name string) error {
	cmd, err := v.command(ctx, e, way, name)
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	v.end = append(v.end, func() {
		_ = cmd.Process.Signal(syscall.SIGTERM) // it may have ended
		_ = cmd.Wait()                          // by the signal
	})
	client, err := wgctrl.New()
	if err != nil {
		return err
	}
	v.end = append(v.end, func() { client.Close() })
	port := meshPort
	for until := time.Now().Add(20 * time.Second); ; {
		err := client.ConfigureDevice(name, wgtypes.Config{PrivateKey: &v.key, ListenPort: &port})
		if err == nil {
			break
		}
		if time.Now().After(until) {
			return fmt.Errorf("the device does not answer: %w", err)
		}
		if err := pause(ctx, 20*time.Millisecond); err != nil {
			return err
		}
	}
	v.device = programDevice{client, name}
	return v.link(name)
}

type programDevice struct {
	client *wgctrl.Client
	name   string
}

func (d programDevice) Configure(changes []wgtypes.PeerConfig) error {
	return d.client.ConfigureDevice(d.name, wgtypes.Config{Peers: changes})
}

// relayedHost opens streams to the other end through a relay.
type relayedHost struct {
	host.Host
	other peer.ID
}

const meshProtocol protocol.ID = "/formation/bench/wg"

// relayBetween gives both ends libp2p hosts that reach each other through a third
// alone, which relays without limits, as a node does for members. All are on
// loopback: a goroutine of libp2p's cannot be in a namespace of its own.
func relayBetween(ctx context.Context, ends [2]*meshEnd) (end func(), err error) {
	var hosts []host.Host
	end = func() {
		for _, h := range hosts {
			h.Close()
		}
	}
	defer func() {
		if err != nil {
			end()
		}
	}()
	add := func(opts ...libp2p.Option) (host.Host, error) {
		h, err := libp2p.New(append(opts, libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"), libp2p.ResourceManager(&network.NullResourceManager{}))...)
		if err == nil {
			hosts = append(hosts, h)
		}
		return h, err
	}
	third, err := add(libp2p.ForceReachabilityPublic(), libp2p.EnableRelayService(relay.WithInfiniteLimits()))
	if err != nil {
		return nil, err
	}
	at := peer.AddrInfo{ID: third.ID(), Addrs: third.Addrs()}
	for _, v := range ends {
		h, err := add(libp2p.EnableRelay())
		if err != nil {
			return nil, err
		}
		v.relayed = &relayedHost{Host: h}
		if err := h.Connect(ctx, at); err != nil {
			return nil, err
		}
		if _, err := client.Reserve(ctx, h, at); err != nil {
			return nil, err
		}
	}
	circuit, err := ma.NewMultiaddr(fmt.Sprintf("%s/p2p/%s/p2p-circuit", third.Addrs()[0], third.ID()))
	if err != nil {
		return nil, err
	}
	a, b := ends[0].relayed, ends[1].relayed
	a.other, b.other = b.ID(), a.ID()
	return end, a.Connect(network.WithAllowLimitedConn(ctx, "bench"), peer.AddrInfo{ID: b.ID(), Addrs: []ma.Multiaddr{circuit}})
}

func (h *relayedHost) OpenStream(ctx context.Context, _ peer.ID) (io.ReadWriteCloser, error) {
	s, err := h.NewStream(network.WithAllowLimitedConn(ctx, "bench"), h.other, meshProtocol)
	if err != nil {
		return nil, err
	}
	if _, err := s.Conn().RemoteMultiaddr().ValueForProtocol(ma.P_CIRCUIT); err != nil {
		return nil, errors.Join(errors.New("the stream is not relayed"), s.Reset())
	}
	return s, nil
}

func (h *relayedHost) serve(accept func(io.ReadWriteCloser)) {
	h.SetStreamHandler(meshProtocol, func(s network.Stream) { accept(s) })
}
