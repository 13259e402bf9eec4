package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/formthefog/formation/cmd/form/internal/cli"
	"github.com/formthefog/formation/cmd/internal/api"
	"github.com/formthefog/formation/crdt/stmt"
)

func newNet(a *app) *cobra.Command {
	return group("net", "the network, and the mesh of your instances",
		newInvite(a), newNetStatus(a), newAgent(a), newNetConfig(a), newNetJoin(a), newNetLeave(a), newJoined(a))
}

// later is a verb that this version does not have: it says what it needs, and
// what helps until then.
func later(use, short, needs, until string) *cobra.Command {
	return &cobra.Command{
		Use: use, Short: short + " (not in this version)", Args: cobra.ArbitraryArgs,
		FParseErrWhitelist: cobra.FParseErrWhitelist{UnknownFlags: true}, // whatever it would take
		RunE: func(cmd *cobra.Command, _ []string) error {
			return cli.Errorf(api.ExitFailed, "%s needs %s, which this version of formation does not have", cmd.CommandPath(), needs).
				Hint("%s", until)
		},
	}
}

type inviteOptions struct {
	roles []string
	ttl   time.Duration // 0: not given
	quota api.Quota

	operators []string
}

func newInvite(a *app) *cobra.Command {
	var o inviteOptions
	c := &cobra.Command{
		Use: "invite", Short: "print a ticket that lets others join",
		Long: `Asks the local formd for a ticket: the network, where to find it, and an invite
that ends after --ttl. Whoever holds it can join until then: give it like a
password. A node that holds the network's root key makes a new invite. One that
joined by an invite can hand that on while it lasts, and refuses what asks for
less than it gives. An open network has a ticket without an invite.

A node that joins by a ticket with --operator takes these keys for those who run
it: they may take it out of the network (form node forget), and --accept operator
runs their instances.

The --max flags bound what each owner may have whom the ticket admits; what is
over the bound does not run. Nothing said is no bound.`,
		Args: noArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !cmd.Flags().Changed("ttl") {
				o.ttl = 0
			} else if o.ttl < time.Minute {
				return cli.Errorf(api.ExitUsage, "--ttl: %s is under a minute", o.ttl)
			}
			return a.runInvite(cmd.Context(), o)
		},
	}
	f := c.Flags()
	f.StringSliceVar(&o.roles, "role", nil, "what it admits to: node, operator, owner (default: node and owner)")
	f.StringSliceVar(&o.operators, "operator", nil, "owner key of whoever runs the nodes that join by it")
	f.DurationVar(&o.ttl, "ttl", 24*time.Hour, "how long it lets others join")
	f.IntVar(&o.quota.Instances, "max-instances", 0, "how many instances each owner may have (0: no bound)")
	f.IntVar(&o.quota.Replicas, "max-replicas", 0, "how many replicas in all (0: no bound)")
	f.IntVar(&o.quota.CPUs, "max-cpus", 0, "how many virtual CPUs in all (0: no bound)")
	f.Var((*byteSize)(&o.quota.Memory), "max-memory", "how much memory in all, as 8G")
	f.Var((*byteSize)(&o.quota.Disk), "max-disk", "how much disk in all, as 100G")
	return c
}

func (a *app) runInvite(ctx context.Context, o inviteOptions) (err error) {
	for _, r := range o.roles {
		if !slices.Contains([]stmt.Role{stmt.RoleNode, stmt.RoleOperator, stmt.RoleOwner}, stmt.Role(r)) {
			return cli.Errorf(api.ExitUsage, "--role: %q is not node, operator or owner", r)
		}
	}
	var operators []stmt.Key
	for _, word := range o.operators {
		k, err := stmt.ParseKey(word)
		if err != nil {
			return cli.Errorf(api.ExitUsage, "--operator: %w", err).Hint("a peer ID, as form key show prints it")
		}
		operators = append(operators, k)
	}
	if q := o.quota; q.Instances < 0 || q.Replicas < 0 || q.CPUs < 0 {
		return cli.Errorf(api.ExitUsage, "a --max flag is not negative")
	}
	c, err := a.connect(ctx, nil)
	if err != nil {
		return err
	}
	defer closing(c, &err)
	inv, err := c.API().Invite(ctx, api.InviteRequest{Roles: o.roles, Seconds: int64(o.ttl / time.Second), Quota: o.quota, Operators: operators})
	if err != nil {
		return err
	}
	until := "whenever they like: the network is open"
	if !inv.Expires.IsZero() {
		until = "until " + since(&inv.Expires)
	}
	a.p.Note("whoever holds this can join %s", until)
	return a.p.Answer(inv, func(w io.Writer) { fmt.Fprintln(w, inv.Ticket) })
}

// byteSize is a flag of so many bytes, written as a whole number and a unit.
type byteSize uint64

var byteUnits = map[byte]int{'K': 10, 'M': 20, 'G': 30, 'T': 40}

func (b *byteSize) String() string {
	if *b == 0 {
		return ""
	}
	return cli.Bytes(uint64(*b))
}

func (b *byteSize) Type() string { return "SIZE" }

func (b *byteSize) Set(s string) error {
	wrong := fmt.Errorf("%q is no size: a whole number and K, M, G or T, as in 8G", s)
	if s == "" {
		return wrong
	}
	shift, ok := byteUnits[s[len(s)-1]]
	if !ok {
		return wrong
	}
	n, err := strconv.ParseUint(s[:len(s)-1], 10, 64)
	if err != nil || n == 0 || n > 1<<62>>shift {
		return wrong
	}
	*b = byteSize(n << shift)
	return nil
}

func newNetStatus(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "which network this is, and who is connected", Args: noArgs(),
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			c, err := a.connect(cmd.Context(), nil)
			if err != nil {
				return err
			}
			defer closing(c, &err)
			self, err := c.API().Node(cmd.Context())
			if err != nil {
				return err
			}
			peers, err := c.API().Peers(cmd.Context())
			if err != nil {
				return err
			}
			mesh, err := c.API().Mesh(cmd.Context())
			if err != nil {
				return err
			}
			v := struct {
				Network api.Network `json:"network"`
				Self    stmt.Key    `json:"self"`
				HasRoot bool        `json:"has_root"`
				Addrs   []string    `json:"addrs"`
				Peers   int         `json:"peers"`
				Formnet api.Mesh    `json:"formnet"`
			}{self.Network, self.Node.Key, self.HasRoot, self.Node.Addrs, len(peers), mesh}
			return a.p.Answer(v, func(w io.Writer) {
				root := self.Network.Root.String()
				if self.Network.Open {
					root = "none: anyone is a member"
				}
				cli.Pairs(w, [2]string{"network", self.Network.Name}, [2]string{"id", self.Network.ID}, [2]string{"root", root},
					[2]string{"mesh", self.Network.Prefix4 + ", " + self.Network.Zone},
					[2]string{"node", self.Node.Key.String()}, [2]string{"peers", fmt.Sprint(len(peers))},
					[2]string{"addresses", strings.Join(self.Node.Addrs, "\n            ")}, [2]string{"formnet", meshText(mesh)})
				showMesh(w, mesh)
			})
		},
	}
}
