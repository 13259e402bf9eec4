package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/tun"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/formthefog/formation/wg/carrier"
	"github.com/formthefog/formation/wg/embedded"
	"github.com/formthefog/formation/wg/link"
	"github.com/formthefog/formation/wg/wgtest"
)

func init() {
	register(measurement{
		Figures: []figure{
			{Name: "mesh-userspace-ratio", Unit: "x", Target: 0.9},
			{Name: "mesh-shared-ratio", Unit: "x", Target: 0.85},
			{Name: "mesh-stream-ratio", Unit: "x", Target: 0.15},
			{Name: "mesh-relay-ratio", Unit: "x", Target: 0.15},
		},
		Rounds: 5,
		Run:    measureMesh,
	})
}

const (
	meshWindow = 3 * time.Second
	meshWarm   = 500 * time.Millisecond // handshake, paths, TCP's start
)

// Ways to carry a mesh.
const (
	meshProgram = "program" // wireguard-go, a process at each end
	meshOurs    = "ours"    // our device, a process at each end
	meshAlone   = "alone"   // our devices, both in this process
	meshShared  = "shared"  // they with the socket that QUIC shares
	meshStream  = "stream"  // they over a stream of TCP
	meshRelay   = "relay"   // they over a stream of libp2p through a third host
)

// measureMesh sends over WireGuard between two network namespaces, with one TCP
// connection, in each way.
func measureMesh(ctx context.Context, e *env) (map[string]float64, error) {
	if os.Getuid() != 0 {
		return nil, errors.New("network namespaces need root")
	}
	rates := map[string]float64{}
	for _, way := range []string{meshProgram, meshOurs, meshAlone, meshShared, meshStream, meshRelay} {
		r, err := meshRate(ctx, e, way)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", way, err)
		}
		e.logf("mesh %s: %.0f Mbit/s", way, r/1e6)
		rates[way] = r
	}
	return map[string]float64{
		"mesh-userspace-ratio": rates[meshOurs] / rates[meshProgram], "mesh-shared-ratio": rates[meshShared] / rates[meshAlone],
		"mesh-stream-ratio": rates[meshStream] / rates[meshAlone], "mesh-relay-ratio": rates[meshRelay] / rates[meshAlone],
	}, nil
}

// meshEnd is a node of the measurement.
type meshEnd struct {
	ns      *wgtest.NetNS
	home    netip.Addr // on the cable
	address netip.Addr // in the mesh
	key     wgtypes.Key
	device  peered
	carrier *carrier.Carrier
	socket  *carrier.Socket
	relayed *relayedHost // in meshRelay
	end     []func()
}

// peered is a device that can be given peers.
type peered interface {
	Configure([]wgtypes.PeerConfig) error
}

const meshPort = 51820

func meshRate(ctx context.Context, e *env, way string) (rate float64, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var ends [2]*meshEnd
	for i := range ends {
		ns, err := wgtest.AddNetNS(ctx, fmt.Sprint("bench", i))
		if err != nil {
			return 0, err
		}
		defer func() { err = errors.Join(err, ns.Remove()) }()
		ends[i] = &meshEnd{ns: ns, home: netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)}), address: netip.AddrFrom16([16]byte{0: 0xfd, 15: byte(i + 1)})}
		if ends[i].key, err = wgtypes.GeneratePrivateKey(); err != nil {
			return 0, err
		}
	}
	if err := wgtest.Connect(ctx, ends[0].ns, "eth0", "192.0.2.1/24", ends[1].ns, "eth0", "192.0.2.2/24"); err != nil {
		return 0, err
	}
	if way == meshRelay {
		end, err := relayBetween(ctx, ends)
		if err != nil {
			return 0, err
		}
		defer end()
	}
	for i, v := range ends {
		defer v.close()
		open := func() error { return v.open(ctx, way, ends[1-i]) }
		if way == meshProgram || way == meshOurs {
			open = func() error { return v.openProcess(ctx, e, way, fmt.Sprint("formb", i)) }
		}
		if err := v.ns.Do(open); err != nil {
			return 0, err
		}
	}
	for i, v := range ends {
		o := ends[1-i]
		at := netip.AddrPortFrom(o.home, meshPort)
		if way != meshAlone && way != meshProgram && way != meshOurs {
			at = carrier.Address(o.id())
		}
		if err := v.device.Configure([]wgtypes.PeerConfig{{PublicKey: o.key.PublicKey(), Endpoint: net.UDPAddrFromAddrPort(at), AllowedIPs: wgtest.Routes(o.address)}}); err != nil {
			return 0, err
		}
	}
	return transferRate(ctx, ends[0], ends[1])
}

func (v *meshEnd) id() peer.ID { return peer.ID(v.home.String()) }

// open makes the end's device; it is called in the end's namespace.
func (v *meshEnd) open(ctx context.Context, way string, other *meshEnd) error {
	dev, err := tun.CreateTUN("form0", 1420)
	if err != nil {
		return err
	}
	bind := conn.NewStdNetBind()
	if way != meshAlone {
		if err := v.openCarrier(ctx, way, other); err != nil {
			return errors.Join(err, dev.Close())
		}
		bind = v.carrier.Bind()
	}
	d, err := embedded.Open(embedded.Config{TUN: dev, Bind: bind, Key: v.key, Port: meshPort})
	if err != nil {
		return err
	}
	v.device, v.end = d, append(v.end, d.Close)
	return v.link("form0")
}

func (v *meshEnd) link(name string) error {
	_, err := link.Set(link.Config{Name: name, MTU: 1280, Addresses: []netip.Addr{v.address}, Prefixes: []netip.Prefix{netip.MustParsePrefix("fd00::/64")}})
	return err
}

func (v *meshEnd) openCarrier(ctx context.Context, way string, other *meshEnd) (err error) {
	if v.socket, err = carrier.Listen(meshPort, netip.Addr{}); err != nil {
		return err
	}
	l, err := net.Listen("tcp", netip.AddrPortFrom(v.home, meshPort).String())
	if err != nil {
		return err
	}
	context.AfterFunc(ctx, func() { l.Close() })
	tells := []netip.AddrPort{netip.AddrPortFrom(v.home, meshPort)}
	if way != meshShared {
		tells = nil
	}
	var streams carrier.Streams = dialer{v.ns, other}
	if v.relayed != nil {
		streams = v.relayed
	}
	began := time.Now()
	v.carrier, err = carrier.New(carrier.Config{Socket: v.socket, Streams: streams,
		Addresses: func() []netip.AddrPort { return tells }, Now: func() time.Duration { return time.Since(began) }})
	if err != nil {
		return err
	}
	v.carrier.Stations(v.key.PublicKey(), nil)
	v.carrier.Hosts([]peer.ID{other.id()})
	go func() { _ = v.carrier.Run(ctx) }() // it returns nil
	if v.relayed != nil {
		v.relayed.serve(func(c io.ReadWriteCloser) { v.carrier.Accept(other.id(), c) })
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return // the measurement is over
			}
			go v.carrier.Accept(other.id(), c)
		}
	}()
	return nil
}

// dialer opens streams of plain TCP.
type dialer struct {
	ns *wgtest.NetNS
	to *meshEnd
}

func (d dialer) OpenStream(ctx context.Context, _ peer.ID) (c io.ReadWriteCloser, err error) {
	err = d.ns.Do(func() (err error) {
		c, err = new(net.Dialer).DialContext(ctx, "tcp", netip.AddrPortFrom(d.to.home, meshPort).String())
		return err
	})
	return c, err
}

func (v *meshEnd) close() {
	for _, end := range v.end {
		end()
	}
	if v.socket != nil {
		v.socket.Close()
	}
}

// transferRate is how many bits a second one TCP connection carries from a to b.
func transferRate(ctx context.Context, a, b *meshEnd) (float64, error) {
	var l net.Listener
	if err := b.ns.Do(func() (err error) {
		l, err = net.Listen("tcp", netip.AddrPortFrom(b.address, 5201).String())
		return err
	}); err != nil {
		return 0, err
	}
	defer l.Close()
	counted := make(chan float64, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		counted <- countBits(c)
	}()
	var c net.Conn
	if err := a.ns.Do(func() (err error) {
		c, err = (&net.Dialer{Timeout: 20 * time.Second}).DialContext(ctx, "tcp", l.Addr().String())
		return err
	}); err != nil {
		return 0, err
	}
	buf := make([]byte, 128<<10)
	for end := time.Now().Add(meshWarm + meshWindow + meshWarm); time.Now().Before(end); {
		if _, err := c.Write(buf); err != nil {
			break // the other end has seen enough
		}
	}
	c.Close()
	select {
	case r := <-counted:
		return r, nil
	case <-ctx.Done():
		return 0, ctx.Err()
	case <-time.After(10 * time.Second):
		return 0, errors.New("nothing arrived")
	}
}

// countBits reads for a while, past the start, and returns bits a second.
func countBits(c net.Conn) float64 {
	buf := make([]byte, 128<<10)
	first := time.Now()
	var start time.Time
	total := 0
	for {
		n, err := c.Read(buf)
		now := time.Now()
		if start.IsZero() && now.Sub(first) > meshWarm {
			start = now
		} else if !start.IsZero() {
			total += n
		}
		if err != nil || !start.IsZero() && now.Sub(start) > meshWindow {
			if start.IsZero() {
				return 0
			}
			return float64(total) * 8 / now.Sub(start).Seconds()
		}
	}
}
