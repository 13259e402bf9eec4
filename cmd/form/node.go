package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/formthefog/formation/cmd/form/internal/cli"
	"github.com/formthefog/formation/cmd/form/internal/swarm"
	"github.com/formthefog/formation/cmd/internal/api"
	"github.com/formthefog/formation/crdt/stmt"
)

func newNode(a *app) *cobra.Command {
	return group("node", "the machines of the swarm", newNodeLs(a), newNodeStatus(a), newDrain(a, true), newDrain(a, false),
		newForget(a), newNodeOperator(a))
}

// withSwarm runs f on a connection.
func (a *app) withSwarm(ctx context.Context, f func(*swarm.Conn) error) (err error) {
	c, err := a.connect(ctx, nil)
	if err != nil {
		return err
	}
	defer closing(c, &err)
	return f(c)
}

func newNodeLs(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "list the machines of the swarm", Args: noArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withSwarm(cmd.Context(), func(c *swarm.Conn) error {
				nodes, err := c.API().Nodes(cmd.Context())
				if err != nil {
					return err
				}
				if nodes == nil {
					nodes = []api.Node{}
				}
				return a.p.Answer(nodes, func(w io.Writer) {
					var rows [][]string
					for _, n := range nodes {
						rows = append(rows, []string{n.Key.String(), liveness(n), fmt.Sprint(n.CPUs), cli.Bytes(n.Memory), cli.Bytes(n.Disk),
							n.Accel, fmt.Sprint(n.Instances), n.Region, labelText(n.Labels), n.Version})
					}
					cli.Table(w, []string{"NODE", "STATE", "CPUS", "MEMORY", "DISK", "ACCEL", "REPLICAS", "REGION", "LABELS", "VERSION"}, rows)
				})
			})
		},
	}
}

func liveness(n api.Node) string {
	s := n.Live
	if n.Self {
		s = "here"
	}
	if n.Draining {
		s += ", draining"
	}
	return s
}

func keysText(keys []stmt.Key) string {
	var out []string
	for _, k := range keys {
		out = append(out, k.String())
	}
	return strings.Join(out, " ")
}

func labelText(m map[string]string) string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		out = append(out, k+"="+m[k])
	}
	return strings.Join(out, " ")
}

func newNodeStatus(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "status [NODE]", Short: "one machine: its addresses, capacity and acceleration",
		Long: "Shows the node that answers, or any other by its peer ID (or the end of it).",
		Args: argsBetween(0, 1, "at most one NODE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withSwarm(cmd.Context(), func(c *swarm.Conn) error {
				self, err := c.API().Node(cmd.Context())
				if err != nil {
					return err
				}
				if len(args) == 1 {
					n, err := a.nodeOf(cmd.Context(), c, args[0])
					if err != nil {
						return err
					}
					if n.Key != self.Node.Key {
						// Of another node less is known, in the same place.
						v := struct {
							Node api.Node `json:"node"`
						}{n}
						return a.p.Answer(v, func(w io.Writer) { writeNode(w, n) })
					}
				}
				return a.p.Answer(self, func(w io.Writer) {
					writeNode(w, self.Node,
						[2]string{"network", self.Network.Name + " (" + self.Network.Short + ")"},
						[2]string{"accepts", self.Accept}, [2]string{"api", self.API}, [2]string{"web", self.Web},
						[2]string{"metrics", self.Metrics}, [2]string{"data", self.DataDir},
						[2]string{"up", (time.Duration(self.Uptime) * time.Second).String()},
						[2]string{"warnings", strings.Join(self.Warnings, "; ")})
				})
			})
		},
	}
}

// nodeOf is the node that name means: its peer ID, or the end of it.
func (a *app) nodeOf(ctx context.Context, c *swarm.Conn, name string) (api.Node, error) {
	nodes, err := c.API().Nodes(ctx)
	if err != nil {
		return api.Node{}, err
	}
	var found []api.Node
	for _, n := range nodes {
		if id := n.Key.String(); id == name || len(name) >= 4 && strings.HasSuffix(id, strings.TrimPrefix(name, "…")) {
			found = append(found, n)
		}
	}
	switch len(found) {
	case 0:
		return api.Node{}, cli.Errorf(api.ExitNotFound, "no node %q in the swarm", name).Hint("who is there: form node ls")
	case 1:
		return found[0], nil
	}
	var b strings.Builder
	for _, n := range found {
		b.WriteString("\n  " + n.Key.String())
	}
	return api.Node{}, cli.Errorf(api.ExitUsage, "%q may be any of %d nodes:%s", name, len(found), b.String()).Hint("use the whole peer ID")
}

// equivocations says of what a node has signed two contents; nothing when of none.
func equivocations(list []api.Equivocation) string {
	var out []string
	for _, e := range list {
		out = append(out, fmt.Sprintf("two %s statements under epoch %d, seq %d", e.Kind, e.Epoch, e.Seq))
	}
	return strings.Join(out, "; ")
}

func writeNode(w io.Writer, n api.Node, more ...[2]string) {
	cli.Pairs(w, append([][2]string{
		{"node", n.Key.String()}, {"state", liveness(n)}, {"cpus", fmt.Sprint(n.CPUs)}, {"memory", cli.Bytes(n.Memory)},
		{"disk", cli.Bytes(n.Disk)}, {"acceleration", n.Accel}, {"replicas", fmt.Sprint(n.Instances)},
		{"holds", count(len(n.Holds), "pack")}, {"region", n.Region}, {"labels", labelText(n.Labels)},
		{"version", n.Version}, {"restarts", fmt.Sprint(n.Restarts)}, {"operators", keysText(n.Operators)}, {"operator by the root", operatorText(n.Operator)},
		{"equivocated", equivocations(n.Equivocations)},
	}, more...)...)
	for _, a := range n.Addrs {
		fmt.Fprintln(w, "  "+a)
	}
}

type forgetOptions struct {
	yes, force bool
}

func newForget(a *app) *cobra.Command {
	var o forgetOptions
	c := &cobra.Command{
		Use: "forget NODE", Short: "take a node that is gone for good out of the network",
		Long: `Revokes a node: what it said of itself and of its replicas vanishes on every
node, and nobody talks to it any more. This is for ever. The key of a forgotten
node cannot come back: the machine needs a new one (an empty --data directory)
and a ticket to join again.

NODE is a peer ID, or the end of one. It works on a node that holds the network's
root key, by its own socket, and anywhere with the key that the node has named by
formd run --operator or got by the ticket it joined by. A node that is only dead need not be forgotten: its
replicas run elsewhere, and after a week the others count it no more.`,
		Args: argsBetween(1, 1, "one NODE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withSwarm(cmd.Context(), func(c *swarm.Conn) error { return a.runForget(cmd.Context(), c, args[0], o) })
		},
	}
	c.Flags().BoolVarP(&o.yes, "yes", "y", false, "do not ask")
	c.Flags().BoolVar(&o.force, "force", false, "also when the node is alive")
	return c
}

func (a *app) runForget(ctx context.Context, c *swarm.Conn, name string, o forgetOptions) error {
	n, err := a.nodeOf(ctx, c, name)
	if err != nil {
		// One that is dead for long is not listed any more.
		key, perr := stmt.ParseKey(name)
		if perr != nil {
			return err
		}
		n = api.Node{Key: key, Live: "dead"}
	}
	if !o.force && (n.Self || n.Live == "alive") {
		return cli.Errorf(api.ExitFailed, "node %s is alive", n.Key).
			Hint("move its replicas first, there: form node drain").Hint("take it out all the same, for ever: --force")
	}
	if ok, err := a.confirm(ctx, fmt.Sprintf("Take %s out of the network for ever?", n.Key), "Forget", "Keep", o.yes); err != nil || !ok {
		return err
	}
	done, err := c.API().Forget(ctx, n.Key)
	if api.ExitOf(err) == api.ExitNotAllowed && len(n.Operators) > 0 {
		done, err = a.disown(ctx, c, n)
	}
	if err != nil {
		return err
	}
	return a.p.Answer(done, func(w io.Writer) { fmt.Fprintln(w, done.Node) })
}

// disown takes a node out by its operator's key.
func (a *app) disown(ctx context.Context, c *swarm.Conn, n api.Node) (api.Forgotten, error) {
	key, err := a.key()
	if err != nil {
		return api.Forgotten{}, err
	}
	network, err := c.Network(ctx)
	if err != nil {
		return api.Forgotten{}, err
	}
	keys, err := stmt.OperatorsOf(n.Operated, network, n.Key)
	if err != nil {
		return api.Forgotten{}, fmt.Errorf("operators of %s: %w", n.Key, err)
	}
	if !slices.Contains(keys, stmt.KeyOf(key)) {
		return api.Forgotten{}, cli.Errorf(api.ExitNotAllowed, "your key is none of the operators of %s", n.Key).
			Hint("who they are: form node status %s", n.Key).Hint("or run the same on the node that made the network")
	}
	raw, err := stmt.SignMember(key, network, stmt.MemberBody{Key: n.Key, Role: stmt.RoleNode, Revoked: true}, n.Operated, 0, 0)
	if err != nil {
		return api.Forgotten{}, err
	}
	_, err = c.API().Submit(ctx, [][]byte{raw})
	return api.Forgotten{Node: n.Key}, err
}

func newPeers(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "peers", Short: "whom the node is connected to, and how", Args: noArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withSwarm(cmd.Context(), func(c *swarm.Conn) error {
				peers, err := c.API().Peers(cmd.Context())
				if err != nil {
					return err
				}
				if peers == nil {
					peers = []api.Peer{}
				}
				return a.p.Answer(peers, func(w io.Writer) {
					var rows [][]string
					for _, p := range peers {
						path := "relayed"
						if p.Direct {
							path = "direct"
						}
						rtt := ""
						if p.Latency > 0 {
							rtt = fmt.Sprintf("%.1f ms", p.Latency*1000)
						}
						rows = append(rows, []string{p.ID, p.Role, path, p.Transport, rtt, strings.Join(p.Addrs[:min(len(p.Addrs), 1)], " ")})
					}
					cli.Table(w, []string{"PEER", "ROLE", "PATH", "TRANSPORT", "RTT", "ADDRESS"}, rows)
				})
			})
		},
	}
}

func (a *app) runSwarmStatus(ctx context.Context) error {
	return a.withSwarm(ctx, func(c *swarm.Conn) error {
		s, err := c.API().Status(ctx)
		if err != nil {
			return err
		}
		return a.p.Answer(s, func(w io.Writer) {
			cli.Pairs(w, [2]string{"network", s.Network.Name + " (" + s.Network.Short + ")"}, [2]string{"node", s.Self.String()},
				[2]string{"version", s.Version}, [2]string{"nodes", fmt.Sprintf("%d, %d alive", s.Nodes, s.NodesAlive)},
				[2]string{"peers", fmt.Sprint(s.Peers)}, [2]string{"instances", tally(s.Instances)},
				[2]string{"replicas", tally(s.Replicas)}, [2]string{"VMs here", fmt.Sprint(s.Local)},
				[2]string{"cpus", fmt.Sprintf("%d free of %d", s.Capacity.FreeCPUs, s.Capacity.CPUs)},
				[2]string{"memory", fmt.Sprintf("%s free of %s", cli.Bytes(s.Capacity.FreeMemory), cli.Bytes(s.Capacity.Memory))},
				[2]string{"disk", fmt.Sprintf("%s free of %s", cli.Bytes(s.Capacity.FreeDisk), cli.Bytes(s.Capacity.Disk))})
		})
	})
}

func tally(m map[string]int) string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		if m[k] > 0 {
			out = append(out, fmt.Sprintf("%d %s", m[k], k))
		}
	}
	if len(out) == 0 {
		return "none"
	}
	return strings.Join(out, ", ")
}
