package main

import (
	"context"
	"crypto/ed25519"
	"errors"
	"io"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/formthefog/formation/cmd/form/internal/cli"
	"github.com/formthefog/formation/cmd/form/internal/kit"
	"github.com/formthefog/formation/cmd/form/internal/swarm"
	"github.com/formthefog/formation/cmd/internal/api"
	"github.com/formthefog/formation/cmd/internal/config"
	"github.com/formthefog/formation/crdt/stmt"
	"github.com/formthefog/formation/store"
)

// app is one run of form: what every verb needs.
type app struct {
	p      *cli.Printer
	stdin  io.Reader
	stdout io.Writer
	stderr io.Writer
	getenv func(string) string
	flags  globalFlags

	running bool // a verb has begun: errors are no longer about the command line
	opened  ed25519.PrivateKey
	typed   string       // the password, if a person typed it
	used    *stmt.Ticket // of the latest connect; nil for none
	via     via          // of the verbs that reach into guests

	assumeYes bool // take defaults instead of asking
}

// globalFlags are the flags that every verb has.
type globalFlags struct {
	api     string
	peers   []string
	ticket  string
	config  string
	json    bool
	quiet   bool
	debug   bool
	timeout time.Duration
}

// interactive says whether a person can be asked.
func (a *app) interactive() bool { return cli.IsTerminal(a.stdin) && a.p.Terminal() }

func (a *app) dir() kit.Dir {
	c := a.flags.config
	if c == "" {
		c = a.getenv("FORM_CONFIG")
	}
	return kit.DefaultDir(c, a.getenv)
}

// kit is the kit's configuration; without a kit the zero value.
func (a *app) kit() (kit.Config, error) {
	c, err := kit.Load(a.dir())
	if errors.Is(err, kit.ErrNone) {
		return kit.Config{}, nil
	}
	return c, err
}

func (a *app) logger() *slog.Logger {
	if !a.flags.debug {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(a.p.Talk(), &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// ticket is the one of the flag, FORM_TICKET or the kit; nil for none.
func (a *app) ticket(c kit.Config) (*stmt.Ticket, error) {
	from, text := "--ticket", a.flags.ticket
	if text == "" {
		from, text = "FORM_TICKET", a.getenv("FORM_TICKET")
	}
	if text == "" {
		from, text = a.dir().File(), c.Ticket
	}
	if text == "" {
		return nil, nil
	}
	t, err := stmt.ParseTicket(text)
	if err != nil {
		return nil, cli.Errorf(api.ExitUsage, "ticket of %s: %w", from, err).
			Hint("a node that holds the network's root key prints one: form net invite")
	}
	return &t, nil
}

// route decides which way to the swarm: --peer, --api, FORM_API, FORM_PEER, the
// kit's api or the default socket, and last the kit's hosts and ticket's peers.
func (a *app) route(k kit.Config, t *stmt.Ticket) (socket string, peers []string, err error) {
	first := func(words ...string) string {
		for _, w := range words {
			if w != "" {
				return w
			}
		}
		return ""
	}
	if len(a.flags.peers) > 0 {
		return "", a.flags.peers, nil
	}
	if s := first(a.flags.api, a.getenv("FORM_API")); s != "" {
		if err := checkAPI(s); err != nil {
			return "", nil, err
		}
		return strings.TrimPrefix(s, "unix://"), nil, nil
	}
	if p := a.getenv("FORM_PEER"); p != "" {
		return "", strings.Fields(p), nil
	}
	peers = append(peers, k.Hosts...)
	if t != nil {
		peers = append(peers, t.Bootstrap...)
	}
	if k.API != "" {
		return strings.TrimPrefix(k.API, "unix://"), peers, nil
	}
	socket = config.DefaultSocket(config.HostEnv())
	if _, err := os.Stat(socket); err != nil && len(peers) > 0 {
		return "", peers, nil
	}
	return socket, peers, nil
}

// way is what connect tries: a daemon's socket first, if there is one, then peers.
type way struct {
	socket string
	peers  []string
	ticket *stmt.Ticket // nil for none
}

func (a *app) way() (w way, err error) {
	k, err := a.kit()
	if err != nil {
		return w, err
	}
	if w.ticket, err = a.ticket(k); err != nil {
		return w, err
	}
	if w.socket, w.peers, err = a.route(k, w.ticket); err != nil {
		return w, err
	}
	w.peers, w.ticket, err = expand(w.peers, w.ticket)
	return w, err
}

// dial goes that way; note tells people that the second was taken.
func (w way) dial(ctx context.Context, cfg swarm.Config, note func(format string, args ...any)) (*swarm.Conn, error) {
	cfg.Ticket = w.ticket
	if w.socket != "" {
		cfg.API = w.socket
		c, err := swarm.Dial(ctx, cfg)
		if err == nil || len(w.peers) == 0 || ctx.Err() != nil {
			return c, err
		}
		note("no formd answers on %s; trying the kit's hosts", w.socket)
	}
	cfg.API, cfg.Peers = "", w.peers
	return swarm.Dial(ctx, cfg)
}

// connect finds a way into the swarm. packs, which may be nil, are served to the
// peers that this run connects to, and are where it can fetch to.
func (a *app) connect(ctx context.Context, packs *store.Store) (*swarm.Conn, error) {
	w, err := a.way()
	if err != nil {
		return nil, err
	}
	task := a.p.Start("connecting")
	defer task.Done()
	a.used = w.ticket
	speaksFor, err := a.speaksFor()
	if err != nil {
		return nil, err
	}
	cfg := swarm.Config{Key: a.key, Owner: speaksFor, Logger: a.logger()}
	if packs != nil {
		cfg.Blocks, cfg.Source = packs.Blocks(), packs.Source()
	}
	return w.dial(ctx, cfg, a.p.Note)
}

// expand replaces tickets among peers by their addresses.
func expand(peers []string, t *stmt.Ticket) ([]string, *stmt.Ticket, error) {
	var out []string
	for _, p := range peers {
		switch {
		case strings.HasPrefix(p, "/"):
			out = append(out, p)
		case strings.HasPrefix(p, "form1"):
			pt, err := stmt.ParseTicket(p)
			if err != nil {
				return nil, nil, cli.Errorf(api.ExitUsage, "--peer: %w", err)
			}
			if len(pt.Bootstrap) == 0 {
				return nil, nil, cli.Errorf(api.ExitUsage, "--peer: the ticket holds no address").
					Hint("give a multiaddr as --peer and the ticket as --ticket")
			}
			t, out = &pt, append(out, pt.Bootstrap...)
		default:
			return nil, nil, cli.Errorf(api.ExitUsage, "--peer: %q is neither a multiaddr (/ip4/…/p2p/12D3Koo…) nor a ticket (form1…)", p).
				Hint("formd prints its multiaddr when it is ready, and `form node status` shows it")
		}
	}
	return out, t, nil
}
