package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime/debug"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/tun/netstack"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/formthefog/formation/wg"
	"github.com/formthefog/formation/wg/embedded"
)

func init() {
	register(measurement{
		Figures: []figure{{Name: "mesh-peers-rss", Unit: "MiB", Target: 40, AtMost: true}},
		Rounds:  3,
		Run:     measurePeers,
	})
}

const meshPeers = 1000

// measurePeers is how much memory a thousand peers add to a device in this
// process, which has nobody to talk with.
func measurePeers(ctx context.Context, e *env) (_ map[string]float64, err error) {
	space, err := wg.NewSpace([32]byte{1}, netip.Prefix{})
	if err != nil {
		return nil, err
	}
	key, err := wgtypes.GeneratePrivateKey()
	if err != nil {
		return nil, err
	}
	device, _, err := netstack.CreateNetTUN([]netip.Addr{space.Address6(nil)}, nil, 1280)
	if err != nil {
		return nil, err
	}
	dev, err := embedded.Open(embedded.Config{TUN: device, Bind: conn.NewStdNetBind(), Key: key})
	if err != nil {
		return nil, err
	}
	defer dev.Close()
	mesh, err := wg.New(wg.Config{Device: dev, Space: space})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- mesh.Run(ctx) }()
	defer func() {
		cancel()
		err = errors.Join(err, <-done)
	}()
	before, err := settledMiB()
	if err != nil {
		return nil, err
	}
	if err := mesh.Set(strangers(space)); err != nil {
		return nil, err
	}
	for until := time.Now().Add(time.Minute); ; {
		peers, err := dev.Peers()
		if err != nil {
			return nil, err
		}
		if len(peers) == meshPeers {
			break
		}
		if time.Now().After(until) {
			return nil, fmt.Errorf("%d peers after a minute", len(peers))
		}
		if err := pause(ctx, 50*time.Millisecond); err != nil {
			return nil, err
		}
	}
	after, err := settledMiB()
	e.logf("a device: %.1f MiB, with %d peers %.1f MiB", before, meshPeers, after)
	return map[string]float64{"mesh-peers-rss": after - before}, err
}

// strangers are peers with the two addresses that everybody has.
func strangers(space wg.Space) []wg.Peer {
	out := make([]wg.Peer, meshPeers)
	for i := range out {
		id := binary.BigEndian.AppendUint32(nil, uint32(i))
		out[i] = wg.Peer{Key: wg.Key{1, byte(i >> 8), byte(i)}, Addresses: []netip.Addr{space.Address6(id), space.Candidate4(id, 0)},
			Endpoint: netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(1 + i%250)}), uint16(1000+i))}
	}
	return out
}

// settledMiB is this process's memory without what it has let go.
func settledMiB() (float64, error) {
	debug.FreeOSMemory()
	return residentMiB(os.Getpid())
}
