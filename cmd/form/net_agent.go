package main

import (
	"context"
	"crypto/ed25519"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/formthefog/formation/cmd/form/internal/agent"
	"github.com/formthefog/formation/cmd/form/internal/cli"
	"github.com/formthefog/formation/cmd/form/internal/kit"
	"github.com/formthefog/formation/cmd/form/internal/swarm"
	"github.com/formthefog/formation/cmd/internal/api"
	"github.com/formthefog/formation/crdt/stmt"
)

func newAgent(a *app) *cobra.Command {
	c := group("agent", "the process that has this machine's place on the mesh",
		newAgentStatus(a), newAgentStop(a), newAgentRun(a))
	c.Long = `form ssh, form proxy and form forward reach instances over the mesh by an agent: a
process in the background, without rights of its own, that has this machine's
WireGuard key. It starts when it is needed, and ends by itself when nothing has
used it for ten minutes. FORM_AGENT=off goes without.`
	return c
}

func newAgentStatus(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "what the agent reaches", Args: noArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withAgent(cmd.Context(), func(p agent.Place) error {
				s, err := agent.StatusOf(cmd.Context(), p.Socket())
				if err != nil {
					return err
				}
				return a.p.Answer(s, func(w io.Writer) { showAgent(w, s) })
			})
		},
	}
}

func showAgent(w io.Writer, s agent.Status) {
	cli.Pairs(w, [2]string{"process", strconv.Itoa(s.PID)}, [2]string{"since", since(&s.Since)}, [2]string{"device", s.Device.String()},
		[2]string{"mesh key", s.MeshKey}, [2]string{"address", s.Address}, [2]string{"connections", strconv.Itoa(s.Connections)})
	if s.Error != "" {
		cli.Pairs(w, [2]string{"problem", s.Error})
	}
	var rows [][]string
	for _, p := range s.Peers {
		name := fmt.Sprintf("%s/%d", p.Name, p.Slot)
		if p.Instance == "" {
			name = "node " + p.Node.String()
		}
		rows = append(rows, []string{name, p.Address6, p.Address, since(p.Handshake), cli.Bytes(uint64(p.Received)), cli.Bytes(uint64(p.Sent))})
	}
	cli.Table(w, []string{"PEER", "ADDRESS", "IPV4", "HANDSHAKE", "RECEIVED", "SENT"}, rows)
}

func newAgentStop(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "stop", Short: "end the agent, and its connections with it", Args: noArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withAgent(cmd.Context(), func(p agent.Place) error {
				if err := agent.Stop(cmd.Context(), p.Socket()); err != nil {
					return err
				}
				v := struct {
					Stopped bool `json:"stopped"`
				}{true}
				return a.p.Answer(v, func(w io.Writer) { fmt.Fprintln(w, "the agent has ended") })
			})
		},
	}
}

// withAgent finds the agent of this machine's device; it starts none.
func (a *app) withAgent(ctx context.Context, f func(agent.Place) error) error {
	none := cli.Errorf(api.ExitNotFound, "no agent runs here").Hint("form ssh, form proxy and form forward start one when they need it")
	return a.withSwarm(ctx, func(c *swarm.Conn) error {
		id, err := a.deviceIdentity(ctx, c)
		if err != nil {
			return err
		}
		p, err := agent.PlaceOf(id, a.getenv)
		if err != nil {
			return err
		}
		if _, err := agent.StatusOf(ctx, p.Socket()); err != nil && !errors.Is(err, agent.ErrVersion) {
			return none
		}
		return f(p)
	})
}

// deviceIdentity is that of this machine's device; none is made.
func (a *app) deviceIdentity(ctx context.Context, c *swarm.Conn) (id agent.Identity, err error) {
	if id.Owner, err = a.owner(); err != nil {
		return id, err
	}
	if id.Network, err = c.Network(ctx); err != nil {
		return id, err
	}
	if a.getenv("FORM_OWNER") != "" {
		id.Device, err = a.ownKey()
		return id, err
	}
	key, err := kit.LoadDevice(a.dir().Device())
	if err != nil {
		return id, cli.Errorf(api.ExitNotFound, "%w: there is no %s", errNoDevice, a.dir().Device()).
			Hint("the first connection over the mesh makes it one: form ssh, form proxy, form forward")
	}
	id.Device = stmt.KeyOf(key)
	return id, nil
}

func newAgentRun(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "run", Short: "be the agent", Hidden: true, Args: noArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			said := false
			err := a.runAgent(cmd.Context(), func() error { said = true; return agent.Ready(a.stdout, nil) })
			if !said {
				err = errors.Join(err, agent.Ready(a.stdout, err))
			}
			return err
		},
	}
}

// runAgent is the agent, as it was launched, until it is idle.
func (a *app) runAgent(ctx context.Context, ready func() error) error {
	var l launch
	if err := agent.Launched(a.stdin, &l); err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(a.stderr, nil))
	cfg, device, err := l.mesh(log)
	if err != nil {
		return err
	}
	place, err := agent.PlaceOf(cfg.Identity, a.getenv)
	if err != nil {
		return err
	}
	socket, err := place.Listen()
	if err != nil {
		return err
	}
	m, err := agent.New(cfg)
	if err != nil {
		return errors.Join(err, socket.Close())
	}
	if err := ready(); err != nil {
		log.Warn("nobody waits for this agent", "err", err)
	}
	err = agent.Serve(ctx, m, socket, a.agentIdle())
	log.Info("the agent ends", "err", err)
	return errors.Join(err, device.Close())
}

// agentIdle is after how long without use an agent ends.
func (a *app) agentIdle() time.Duration {
	if d, err := time.ParseDuration(a.getenv("FORM_AGENT_IDLE")); err == nil && d > 0 {
		return d
	}
	return agent.IdleAfter
}

// mesh is the configuration of the device that was launched.
func (l launch) mesh(log *slog.Logger) (cfg agent.Config, way *swarm.Device, err error) {
	if len(l.Seed) != ed25519.SeedSize {
		return cfg, nil, cli.Errorf(api.ExitUsage, "an agent is started by form itself")
	}
	key := ed25519.NewKeyFromSeed(l.Seed)
	network, err := hex.DecodeString(l.Network)
	if err != nil || len(network) != len(cfg.Network) {
		return cfg, nil, cli.Errorf(api.ExitUsage, "network %q is no ID", l.Network)
	}
	cfg = agent.Config{
		Identity: agent.Identity{Network: stmt.NetworkID(network), Settings: l.Settings, Owner: l.Owner, Device: stmt.KeyOf(key)}, Now: agent.Boottime, Log: log,
	}
	if cfg.Key, err = kit.MeshKey(key); err != nil {
		return cfg, nil, err
	}
	w := l.way()
	if l.Ticket != "" {
		t, err := stmt.ParseTicket(l.Ticket)
		if err != nil {
			return cfg, nil, fmt.Errorf("ticket: %w", err)
		}
		w.ticket = &t
	}
	device := swarm.NewDevice(l.Owner, func(ctx context.Context) (*swarm.Conn, error) {
		c := swarm.Config{Key: func() (ed25519.PrivateKey, error) { return key, nil }, Owner: l.Owner, Logger: log}
		return w.dial(ctx, c, func(format string, args ...any) { log.Info(fmt.Sprintf(format, args...)) })
	})
	cfg.Swarm = device
	return cfg, device, nil
}

func (l launch) way() way { return way{socket: l.Socket, peers: l.Peers} }
