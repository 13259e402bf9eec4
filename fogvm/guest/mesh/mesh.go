package mesh

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/formthefog/formation/fogvm/guest"
	"github.com/formthefog/formation/store/whole"
	"github.com/formthefog/formation/wg"
	"github.com/formthefog/formation/wg/dns"
	"github.com/formthefog/formation/wg/keyfile"
)

// Interface is the guest's WireGuard interface.
type Interface interface {
	wg.Device
	// Address gives it its own addresses, and routes to the prefixes of a space.
	Address(own []netip.Addr, space wg.Space) error
	Close() error
}

// Config is what a [Mesh] needs; all but Names.
type Config struct {
	Dir  string // on the guest's disk
	Open func(private wg.Key) (Interface, error)
	// Names has the guest ask the server about names, at an address that the
	// interface has, until ctx ends. nil: the mesh's names mean nothing in the guest.
	Names func(ctx context.Context, s *dns.Server, at netip.Addr) error
	Log   *slog.Logger
}

// Mesh implements [guest.Mesh].
type Mesh struct {
	cfg     Config
	started chan struct{} // closed when the rest is set

	mu      sync.Mutex
	where   map[wg.Key]netip.AddrPort
	hearing net.Conn // the stream that is heard

	// Set by Start; verifier, saved, refused, last and said are under mu.
	pin      Pin
	public   wg.Key
	space    wg.Space
	dev      Interface
	peers    *wg.Mesh
	names    *answerer // nil without Config.Names
	problem  func(string)
	verifier *Verifier
	saved    [sha256.Size]byte
	refused  uint64
	last     error  // why something was refused last
	said     string // as the last problem
}

// New makes a Mesh that has not joined.
func New(cfg Config) *Mesh {
	return &Mesh{cfg: cfg, started: make(chan struct{}), where: map[wg.Key]netip.AddrPort{}}
}

// Start implements [guest.Mesh]. It may be called once.
func (m *Mesh) Start(ctx context.Context, cfg guest.Config, problem func(string)) (string, error) {
	pin, err := pinOf(cfg)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(m.cfg.Dir, 0o700); err != nil {
		return "", fmt.Errorf("mesh: %w", err)
	}
	if err := hold(m.cfg.Dir, pin); err != nil {
		return "", err
	}
	key, err := keyfile.Load(filepath.Join(m.cfg.Dir, keyFile)) // peers know it: what cannot be read is not made anew
	if err != nil {
		return "", fmt.Errorf("mesh: key: %w", err)
	}
	space, err := wg.NewSpace(pin.network(), pin.Full().Prefix4)
	if err != nil {
		return "", err
	}
	verifier := NewVerifier(pin)
	if err := m.load(verifier); err != nil {
		return "", err
	}
	dev, err := m.cfg.Open(key)
	if err != nil {
		return "", err
	}
	var names *answerer
	if m.cfg.Names != nil {
		if names, err = newAnswerer(pin, space); err != nil {
			return "", errors.Join(err, dev.Close())
		}
	}
	peers, err := wg.New(wg.Config{Device: dev, Space: space, Log: m.cfg.Log})
	if err != nil {
		return "", errors.Join(err, dev.Close())
	}
	m.mu.Lock()
	m.pin, m.public, m.space, m.dev, m.peers, m.problem, m.verifier = pin, key.PublicKey(), space, dev, peers, problem, verifier
	m.names, m.saved = names, digest(verifier.Lasting())
	m.apply()
	m.mu.Unlock()
	close(m.started)
	if names != nil {
		go m.serve(ctx)
	}
	go func() {
		// It tells its problems in the log, and tries again.
		_ = peers.Run(ctx)
		if err := dev.Close(); err != nil {
			m.cfg.Log.Warn("mesh: interface", "error", err)
		}
	}()
	return m.public.String(), nil
}

// Locate implements [guest.Mesh].
func (m *Mesh) Locate(where []guest.Location) {
	next := make(map[wg.Key]netip.AddrPort, len(where))
	for _, l := range where[:min(len(where), guest.MaxLocations)] {
		key, err := wgtypes.ParseKey(l.Key)
		if err == nil && guest.MeshVirtual.Contains(l.At.Addr()) && l.At.Port() != 0 {
			next[key] = l.At
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.where = next
	if m.verifier != nil {
		m.apply()
	}
}

// Hear implements [guest.Mesh]. A later stream ends an earlier one.
func (m *Mesh) Hear(ctx context.Context, stream net.Conn) error {
	select {
	case <-m.started:
	case <-ctx.Done():
		return nil
	}
	m.mu.Lock()
	if m.hearing != nil {
		m.hearing.Close()
	}
	m.hearing = stream
	m.verifier.Begin()
	m.mu.Unlock()
	defer func() {
		m.mu.Lock()
		if m.hearing == stream {
			m.hearing = nil
		}
		m.mu.Unlock()
	}()
	return m.hear(ctx, stream)
}

func (m *Mesh) hear(ctx context.Context, stream net.Conn) error {
	pace, whole := newPace(time.Now()), false
	for {
		news, err := guest.ReadNews(stream)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		wait := time.NewTimer(pace.take(len(news.Statements)+1, time.Now()))
		select {
		case <-wait.C:
		case <-ctx.Done():
			wait.Stop()
			return nil
		}
		if !m.tell(stream, news) {
			return nil
		}
		if !news.End {
			continue
		}
		if news.Since && !whole {
			return fmt.Errorf("%w: changes of what was not told", guest.ErrFrame)
		}
		whole = true
		report, err := m.end(news.Since)
		if err != nil {
			m.cfg.Log.Warn("mesh: what was heard is not kept", "error", err)
		}
		if err := guest.WriteMeshReport(stream, report); err != nil {
			return err
		}
	}
}

// tell takes what a stream says; false: it is heard no more.
func (m *Mesh) tell(stream net.Conn, news guest.News) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.hearing != stream {
		return false
	}
	for _, n := range news.Gone {
		m.verifier.Gone(n)
	}
	for _, raw := range news.Statements {
		if err := m.verifier.Tell(raw); err != nil {
			m.refused++
			m.last = err
		}
	}
	return true
}

// end ends a round: what follows from it is programmed, and kept.
func (m *Mesh) end(since bool) (guest.MeshReport, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.verifier.End(since)
	n := m.apply()
	report := guest.MeshReport{Peers: n, Held: m.verifier.Held(), Refused: m.refused}
	report.Sum, report.Again, report.All = m.verifier.Acknowledge()
	if m.last != nil {
		report.Problem = m.last.Error()
	}
	return report, m.save()
}

// apply programs whom the guest talks with. m.mu is held.
func (m *Mesh) apply() int {
	parties := m.verifier.Parties()
	own, claimed := m.verifier.Own()
	self, theirs := addresses(m.space, m.pin, own, parties, m.verifier.state.View().Rank)
	local := self
	if m.names != nil {
		m.setNames(self, parties, theirs)
		local = append(slices.Clone(self), m.names.at)
	}
	err := m.dev.Address(local, m.space)
	if claimed && own.MeshKey != "" && own.MeshKey != m.public.String() {
		err = errors.Join(err, errors.New("the node claims another key for this guest than its own"))
	}
	err = errors.Join(err, m.peers.Set(peersOf(parties, theirs, m.where)))
	text := ""
	if err != nil {
		text = err.Error()
	}
	if text != m.said {
		m.said = text
		m.problem(text)
	}
	return len(parties)
}

// load tells the verifier what was kept.
func (m *Mesh) load(v *Verifier) error {
	f, err := os.Open(filepath.Join(m.cfg.Dir, heldFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("mesh: %w", err)
	}
	defer f.Close()
	for {
		news, err := guest.ReadNews(f)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("mesh: %s: %w", heldFile, err)
		}
		for _, raw := range news.Statements {
			if err := v.Tell(raw); err != nil {
				m.cfg.Log.Warn("mesh: a kept statement", "error", err)
			}
		}
	}
}

// save keeps what must not be forgotten, when that has changed. m.mu is held.
func (m *Mesh) save() error {
	lasting := m.verifier.Lasting()
	sum := digest(lasting)
	if sum == m.saved {
		return nil
	}
	var b bytes.Buffer
	for len(lasting) > 0 {
		n := min(len(lasting), guest.MaxNews)
		if err := guest.WriteNews(&b, guest.News{Statements: lasting[:n]}); err != nil {
			return err
		}
		lasting = lasting[n:]
	}
	if err := whole.Write(filepath.Join(m.cfg.Dir, heldFile), b.Bytes(), 0o600); err != nil {
		return err
	}
	m.saved = sum
	return nil
}

func digest(raws [][]byte) [sha256.Size]byte {
	h := sha256.New()
	for _, raw := range raws {
		h.Write(raw)
	}
	return [sha256.Size]byte(h.Sum(nil))
}

var _ guest.Mesh = (*Mesh)(nil)
