package main

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/formthefog/formation/store"
)

func init() {
	register(measurement{
		Figures: []figure{
			{Name: "fetch-ratio", Unit: "x-of-raw-stream", Target: 0.6},
			{Name: "fetch-durable-ratio", Unit: "x-of-raw-stream-and-fsync", Target: 0.6},
			{Name: "fetch-cpu-ratio", Unit: "x-of-raw-stream", Target: 2.5, AtMost: true},
			{Name: "fetch-bitswap-ratio", Unit: "x-of-raw-stream", Target: 0.45},
			{Name: "fetch-bitswap-durable-ratio", Unit: "x-of-raw-stream-and-fsync", Target: 0.45},
			{Name: "fetch-client-rss", Unit: "MiB", Target: 100, AtMost: true},
			{Name: "fetch-bitswap-client-rss", Unit: "MiB", Target: 100, AtMost: true},
		},
		Rounds: 5,
		Run:    measureFetch,
	})
	register(measurement{
		Figures: []figure{{Name: "fetch-80ms-ratio", Unit: "x-of-raw-stream", Target: 0.9}},
		Rounds:  3,
		Run:     measureFarFetch,
	})
	register(measurement{
		Figures: []figure{
			{Name: "fetch-resume-bytes", Unit: "%", Target: 55, AtMost: true},
			{Name: "fetch-identical-leaves", Unit: "leaves", Target: 0, AtMost: true},
		},
		Rounds: 3,
		Run:    measureResume,
	})
	register(measurement{
		Figures: []figure{{Name: "fetch-client-rss-1gib", Unit: "MiB", Target: 100, AtMost: true}},
		Run:     measureBigFetch,
	})
}

const (
	fetchBytes = 256 << 20
	farTime    = 80 * time.Millisecond // round trip
)

// measureFetch compares, each in its own process and between the same two peers
// over loopback TCP: a libp2p stream copied to a file, a fetch of a pack with an
// image of that size (verified, synced), and the same by bitswap. The stream is
// compared twice: as it ends, and synced too, since a disk slower than the
// stream bounds whatever must be durable.
func measureFetch(ctx context.Context, e *env) (map[string]float64, error) {
	s, err := startServer(ctx, e, fetchBytes)
	if err != nil {
		return nil, err
	}
	raw, err := s.give(ctx, e, peerTask{Role: "raw", Dir: e.Dir})
	if err != nil {
		return nil, errors.Join(err, s.stop())
	}
	fast, err := s.give(ctx, e, peerTask{Role: "fetch", Dir: filepath.Join(e.Dir, "bulk")})
	if err != nil {
		return nil, errors.Join(err, s.stop())
	}
	slow, err := s.give(ctx, e, peerTask{Role: "fetch", Dir: filepath.Join(e.Dir, "bitswap"), How: "bitswap"})
	if err != nil {
		return nil, errors.Join(err, s.stop())
	}
	e.logf("raw stream %.2f s, synced %.2f s (cpu %.2f s), fetch %.2f s (%.2f s), bitswap %.2f s (%.2f s)",
		raw.Seconds, raw.Synced, raw.CPU, fast.Seconds, fast.CPU, slow.Seconds, slow.CPU)
	return map[string]float64{
		"fetch-ratio":                 raw.Seconds / fast.Seconds,
		"fetch-durable-ratio":         raw.Synced / fast.Seconds,
		"fetch-cpu-ratio":             fast.CPU / raw.CPU,
		"fetch-bitswap-ratio":         raw.Seconds / slow.Seconds,
		"fetch-bitswap-durable-ratio": raw.Synced / slow.Seconds,
		"fetch-client-rss":            fast.RSSMiB,
		"fetch-bitswap-client-rss":    slow.RSSMiB,
	}, s.stop()
}

// measureFarFetch does the same with a proxy between the peers that holds every
// byte back for half the round trip.
func measureFarFetch(ctx context.Context, e *env) (map[string]float64, error) {
	s, err := startServer(ctx, e, fetchBytes)
	if err != nil {
		return nil, err
	}
	far, closeProxy, err := delayProxy(ctx, s.Addr, farTime/2)
	if err != nil {
		return nil, errors.Join(err, s.stop())
	}
	raw, err := runPeer(ctx, e, peerTask{Role: "raw", Dir: e.Dir, From: far})
	if err != nil {
		return nil, errors.Join(err, closeProxy(), s.stop())
	}
	fast, err := runPeer(ctx, e, peerTask{Role: "fetch", Dir: filepath.Join(e.Dir, "bulk"), From: far, Pack: s.Pack})
	if err != nil {
		return nil, errors.Join(err, closeProxy(), s.stop())
	}
	e.logf("at %v: raw stream %.2f s, fetch %.2f s", farTime, raw.Seconds, fast.Seconds)
	return map[string]float64{"fetch-80ms-ratio": raw.Seconds / fast.Seconds}, errors.Join(closeProxy(), s.stop())
}

// measureResume kills a fetch with SIGKILL at half of its bytes, counts what the
// next one moves, and what a third one moves when all is there.
func measureResume(ctx context.Context, e *env) (map[string]float64, error) {
	s, err := startServer(ctx, e, fetchBytes)
	if err != nil {
		return nil, err
	}
	// The proxy slows the link, so that "half" is not over before it is noticed.
	slow, closeProxy, err := delayProxy(ctx, s.Addr, farTime/2)
	if err != nil {
		return nil, errors.Join(err, s.stop())
	}
	task := peerTask{Role: "fetch", Dir: filepath.Join(e.Dir, "client"), From: slow, Pack: s.Pack, Abort: 0.5}
	values := map[string]float64{}
	killed, err := runPeer(ctx, e, task)
	if err == nil {
		task.Abort = 0
		var again, third peerAnswer
		if again, err = runPeer(ctx, e, task); err == nil {
			e.logf("killed after %d of %d bytes; then %d more", killed.Bytes, killed.Total, again.Bytes)
			values["fetch-resume-bytes"] = 100 * float64(again.Bytes) / float64(again.Total)
			if third, err = runPeer(ctx, e, task); err == nil {
				values["fetch-identical-leaves"] = float64(third.Leaves)
			}
		}
	}
	return values, errors.Join(err, closeProxy(), s.stop())
}

func measureBigFetch(ctx context.Context, e *env) (map[string]float64, error) {
	s, err := startServer(ctx, e, 1<<30)
	if err != nil {
		return nil, err
	}
	a, err := runPeer(ctx, e, peerTask{Role: "fetch", Dir: filepath.Join(e.Dir, "client"), From: s.Addr, Pack: s.Pack})
	if err != nil {
		return nil, errors.Join(err, s.stop())
	}
	return map[string]float64{"fetch-client-rss-1gib": a.RSSMiB}, s.stop()
}

// server is the peer that holds the pack.
type server struct {
	*child
	peerAnswer
}

// give lets a client do its task with the server's pack. CPU of the answer counts
// both sides.
func (s *server) give(ctx context.Context, e *env, t peerTask) (peerAnswer, error) {
	before, err := cpuTime(s.cmd.Process.Pid)
	if err != nil {
		return peerAnswer{}, err
	}
	t.From, t.Pack = s.Addr, s.Pack
	a, err := runPeer(ctx, e, t)
	if err != nil {
		return a, err
	}
	after, err := cpuTime(s.cmd.Process.Pid)
	a.CPU += (after - before).Seconds()
	return a, err
}

func startServer(ctx context.Context, e *env, size int64) (*server, error) {
	layer := filepath.Join(e.Dir, "layer")
	if err := writeNoise(layer, size); err != nil {
		return nil, err
	}
	c, err := startPeer(ctx, e, peerTask{Role: "serve", Dir: filepath.Join(e.Dir, "server"), Layer: layer})
	if err != nil {
		return nil, err
	}
	a, err := c.answer()
	return &server{c, a}, err
}

// writeNoise makes a file that no compression or deduplication shortens.
func writeNoise(path string, size int64) (err error) {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Sync(), f.Close()) }()
	_, err = io.CopyN(f, rand.NewChaCha8([32]byte{1}), size)
	return err
}

// benchPack makes a pack whose one layer is the file; its base is a few bytes.
func benchPack(ctx context.Context, s *store.Store, layer string) (pack cid.Cid, image string, err error) {
	key := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
	tiny := func(kind string) (store.Entry, error) {
		path := layer + "." + kind
		if err := os.WriteFile(path, []byte(kind), 0o600); err != nil {
			return store.Entry{}, err
		}
		return s.AddImage(ctx, path, kind, "raw")
	}
	kernel, err := tiny("kernel")
	if err != nil {
		return cid.Undef, "", err
	}
	rootfs, err := tiny("rootfs")
	if err != nil {
		return cid.Undef, "", err
	}
	base, err := s.PutBase(ctx, store.Base{Name: "bench", Kernel: kernel, Rootfs: rootfs}, key)
	if err != nil {
		return cid.Undef, "", err
	}
	e, err := s.AddImage(ctx, layer, "layer", "raw")
	if err != nil {
		return cid.Undef, "", err
	}
	if image, err = s.Path(e); err != nil {
		return cid.Undef, "", err
	}
	pack, err = s.PutPack(ctx, store.Root{Name: "bench", Base: base, Layers: []store.Entry{e}}, key)
	return pack, image, err
}

// proxyBuffer is what the link holds in flight in one direction.
const proxyBuffer = 1024 // reads of up to 64 KiB

// delayProxy stands in for a far link: the kernel here has no netem. It returns
// the server's address with the proxy's in its place.
func delayProxy(ctx context.Context, addr string, delay time.Duration) (through string, closeAll func() error, err error) {
	parts := strings.Split(addr, "/") // /ip4/IP/tcp/PORT/p2p/ID
	if len(parts) != 7 {
		return "", nil, fmt.Errorf("address %s", addr)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	target := net.JoinHostPort(parts[2], parts[4])
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return // closed
			}
			out, err := (&net.Dialer{}).DialContext(ctx, "tcp", target)
			if err != nil {
				in.Close()
				return
			}
			go delayed(in, out, delay)
			go delayed(out, in, delay)
		}
	}()
	parts[4] = strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
	return strings.Join(parts, "/"), l.Close, nil
}

// delayed copies from one connection to the other, every byte delay later.
func delayed(from, to net.Conn, delay time.Duration) {
	type late struct {
		data []byte
		due  time.Time
	}
	flight := make(chan late, proxyBuffer)
	go func() {
		defer to.Close()
		for l := range flight {
			time.Sleep(time.Until(l.due)) // the measured quantity, not a wait for something
			if _, err := to.Write(l.data); err != nil {
				break
			}
		}
		for range flight { // let the reader end
		}
	}()
	defer close(flight)
	defer from.Close()
	for {
		buf := make([]byte, 64<<10)
		n, err := from.Read(buf)
		if n > 0 {
			flight <- late{buf[:n], time.Now().Add(delay)}
		}
		if err != nil {
			return
		}
	}
}
