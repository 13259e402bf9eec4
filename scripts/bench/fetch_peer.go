package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	rcmgr "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/formthefog/formation/p2p/exchange"
	"github.com/formthefog/formation/store"
)

// peerEnv tells a child process of bench that it is a peer, and which.
const peerEnv = "FORMATION_BENCH_PEER"

const (
	benchNetwork = "bench"
	rawProtocol  = "/formd/bench-raw/1"
)

// peerTask is what a child process is to do.
type peerTask struct {
	Role  string // serve | raw | fetch
	Dir   string // the store's folder; for raw, where the file goes
	Layer string // serve: file that becomes the pack's only big layer (moved)
	From  string // multiaddr of the server, with /p2p/
	Pack  string
	How   string  // fetch: "" or "bitswap"
	Abort float64 // fetch: kill this process at that part of the bytes
}

// peerAnswer is the one line a child prints; a server prints it when ready.
type peerAnswer struct {
	Addr    string
	Pack    string
	Seconds float64
	Synced  float64 // raw: seconds until the file was on disk as well
	Bytes   int64   // moved over the network
	Leaves  int64
	Total   int64
	RSSMiB  float64 // peak
	CPU     float64 // seconds this process worked for it
}

// peerMain runs a child's task, if this process is one.
func peerMain() (isPeer bool) {
	raw := os.Getenv(peerEnv)
	if raw == "" {
		return false
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var t peerTask
	err := json.Unmarshal([]byte(raw), &t)
	if err == nil {
		err = t.run(ctx)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench peer:", err)
		os.Exit(1)
	}
	return true
}

func (t peerTask) run(ctx context.Context) error {
	h, err := benchHost()
	if err != nil {
		return err
	}
	defer h.Close()
	switch t.Role {
	case "serve":
		return t.serve(ctx, h)
	case "raw":
		return t.raw(ctx, h)
	case "fetch":
		return t.fetch(ctx, h)
	}
	return fmt.Errorf("role %q", t.Role)
}

// benchHost is a host as formd has it: default limits, and exchange's on top.
func benchHost() (host.Host, error) {
	var limits rcmgr.PartialLimitConfig
	exchange.Limits(&limits, benchNetwork)
	rm, err := rcmgr.NewResourceManager(rcmgr.NewFixedLimiter(limits.Build(rcmgr.DefaultLimits.AutoScale())))
	if err != nil {
		return nil, err
	}
	return libp2p.New(libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"), libp2p.Transport(tcp.NewTCPTransport),
		libp2p.ResourceManager(rm), libp2p.DisableRelay(), libp2p.DisableMetrics())
}

// openPeer opens a store and an exchange over it; both end with ctx.
func openPeer(ctx context.Context, h host.Host, dir string) (*store.Store, func() error, error) {
	s, err := store.Open(store.Config{Dir: dir})
	if err != nil {
		return nil, nil, err
	}
	x, err := exchange.New(exchange.Config{Host: h, Network: benchNetwork, Blocks: s.Blocks(), Source: s.Source()})
	if err != nil {
		return nil, nil, errors.Join(err, s.Close())
	}
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- x.Run(ctx) }()
	for !x.Running() {
		select {
		case err := <-ended:
			cancel()
			return nil, nil, errors.Join(err, s.Close())
		case <-time.After(time.Millisecond):
		}
	}
	s.SetFetcher(x)
	return s, func() error {
		cancel()
		return errors.Join(<-ended, s.Close())
	}, nil
}

func (t peerTask) serve(ctx context.Context, h host.Host) error {
	s, closePeer, err := openPeer(ctx, h, t.Dir)
	if err != nil {
		return err
	}
	pack, image, err := benchPack(ctx, s, t.Layer)
	if err != nil {
		return errors.Join(err, closePeer())
	}
	h.SetStreamHandler(rawProtocol, func(st network.Stream) {
		if err := sendFile(st, image); err != nil {
			fmt.Fprintln(os.Stderr, "bench peer: raw:", err)
		}
	})
	if err := answer(peerAnswer{Addr: fmt.Sprintf("%s/p2p/%s", h.Addrs()[0], h.ID()), Pack: pack.String()}); err != nil {
		return errors.Join(err, closePeer())
	}
	<-ctx.Done()
	return closePeer()
}

func sendFile(st network.Stream, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return errors.Join(err, st.Reset())
	}
	defer f.Close()
	if _, err := io.CopyBuffer(struct{ io.Writer }{st}, struct{ io.Reader }{f}, make([]byte, 1<<20)); err != nil {
		return errors.Join(err, st.Reset())
	}
	return st.Close()
}

// raw copies the server's image over one libp2p stream into a file.
func (t peerTask) raw(ctx context.Context, h host.Host) error {
	from, err := connect(ctx, h, t.From)
	if err != nil {
		return err
	}
	f, err := os.Create(filepath.Join(t.Dir, "raw"))
	if err != nil {
		return err
	}
	defer f.Close()
	start, cpu := time.Now(), ownCPU()
	st, err := h.NewStream(ctx, from, rawProtocol)
	if err != nil {
		return err
	}
	n, err := io.CopyBuffer(struct{ io.Writer }{f}, struct{ io.Reader }{st}, make([]byte, 1<<20))
	if err != nil {
		return err
	}
	took, worked := time.Since(start), ownCPU()-cpu
	if err := f.Sync(); err != nil {
		return err
	}
	return answer(peerAnswer{
		Seconds: took.Seconds(), Synced: time.Since(start).Seconds(), Bytes: n, Total: n, CPU: worked,
	})
}

func (t peerTask) fetch(ctx context.Context, h host.Host) error {
	s, closePeer, err := openPeer(ctx, h, t.Dir)
	if err != nil {
		return err
	}
	from, err := connect(ctx, h, t.From)
	if err != nil {
		return errors.Join(err, closePeer())
	}
	c, err := cid.Decode(t.Pack)
	if err != nil {
		return errors.Join(err, closePeer())
	}
	var last store.Progress
	start, cpu := time.Now(), ownCPU()
	err = s.Fetch(ctx, c, store.FetchOptions{From: []peer.ID{from}, Bitswap: t.How == "bitswap", Progress: func(p store.Progress) {
		last = p
		if t.Abort > 0 && float64(p.Fetched) >= t.Abort*float64(p.Total) && p.Total > 0 {
			_ = answer(peerAnswer{Bytes: p.Fetched, Total: p.Total})
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL) // as rude as it gets
		}
	}})
	took, worked := time.Since(start), ownCPU()-cpu
	if err != nil {
		return errors.Join(err, closePeer())
	}
	rss, err := peakRSS()
	if err != nil {
		return errors.Join(err, closePeer())
	}
	a := peerAnswer{Seconds: took.Seconds(), Bytes: last.Fetched, Leaves: last.Blocks, Total: last.Total, RSSMiB: rss, CPU: worked}
	return errors.Join(answer(a), closePeer())
}

func connect(ctx context.Context, h host.Host, addr string) (peer.ID, error) {
	m, err := ma.NewMultiaddr(addr)
	if err != nil {
		return "", err
	}
	info, err := peer.AddrInfoFromP2pAddr(m)
	if err != nil {
		return "", err
	}
	return info.ID, h.Connect(ctx, *info)
}

func answer(a peerAnswer) error { return json.NewEncoder(os.Stdout).Encode(a) }

// ownCPU is the time this process has worked, in seconds.
func ownCPU() float64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return math.NaN()
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()).Seconds()
}

// peakRSS is this process's highest resident set in MiB.
func peakRSS() (float64, error) {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, err
	}
	for l := range strings.Lines(string(status)) {
		var kib float64
		if _, err := fmt.Sscanf(l, "VmHWM: %f kB", &kib); err == nil {
			return kib / 1024, nil
		}
	}
	return 0, errors.New("no VmHWM in /proc/self/status")
}

// child is a running peer process.
type child struct {
	cmd *exec.Cmd
	out *bufio.Reader
}

func startPeer(ctx context.Context, e *env, t peerTask) (*child, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	task, err := json.Marshal(t)
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, exe)
	cmd.Env = append(os.Environ(), peerEnv+"="+string(task))
	cmd.Stderr = e.Log
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	return &child{cmd: cmd, out: bufio.NewReader(out)}, cmd.Start()
}

// answer waits for the child's line.
func (c *child) answer() (a peerAnswer, err error) {
	line, err := c.out.ReadBytes('\n')
	if err != nil {
		return a, fmt.Errorf("peer ended without an answer: %w", errors.Join(err, c.cmd.Wait()))
	}
	return a, json.Unmarshal(line, &a)
}

func (c *child) stop() error {
	if err := c.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	return c.cmd.Wait()
}

// runPeer runs a client to its end.
func runPeer(ctx context.Context, e *env, t peerTask) (peerAnswer, error) {
	c, err := startPeer(ctx, e, t)
	if err != nil {
		return peerAnswer{}, err
	}
	a, err := c.answer()
	if err != nil {
		return a, err
	}
	if err := c.cmd.Wait(); err != nil && t.Abort == 0 {
		return a, err
	}
	return a, nil
}
