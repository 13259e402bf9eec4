package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/formthefog/formation/cmd/form/internal/cli"
	"github.com/formthefog/formation/cmd/form/internal/swarm"
	"github.com/formthefog/formation/cmd/internal/api"
	"github.com/formthefog/formation/crdt/stmt"
	"github.com/formthefog/formation/store"
)

type logsOptions struct {
	follow bool
	tail   int
}

func newManageLogs(a *app) *cobra.Command {
	var o logsOptions
	c := &cobra.Command{
		Use: "logs INSTANCE[/N]", Short: "what an instance prints",
		Long: `Prints the output of an instance's entrypoint, of all replicas or, with /N, of
one. With several replicas each line begins with its replica.`,
		Args: argsBetween(1, 1, "one INSTANCE or replica (name/0)"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if o.tail < 0 {
				return cli.Errorf(api.ExitUsage, "--tail: %d is negative", o.tail)
			}
			return a.withInstance(cmd.Context(), args[0], func(c *swarm.Conn, i api.Instance, h host) error {
				return a.runLogs(cmd.Context(), c, i, h, o)
			})
		},
	}
	c.Flags().BoolVarP(&o.follow, "follow", "f", false, "go on with what comes")
	c.Flags().IntVarP(&o.tail, "tail", "n", 0, "only the last so many lines (0: all that is kept)")
	return c
}

func (a *app) runLogs(ctx context.Context, c *swarm.Conn, i api.Instance, h host, o logsOptions) error {
	if err := a.mine(i); err != nil {
		return err
	}
	list, err := replicas(i, h)
	if err != nil {
		return err
	}
	if h.slot >= 0 {
		list = list[:1]
	}
	slices.SortFunc(list, func(x, y api.Replica) int { return x.Slot - y.Slot })
	one := func(ctx context.Context, r api.Replica) error {
		node, err := c.APIOf(ctx, r.Node)
		if err != nil {
			return err
		}
		opts := api.LogOptions{Slot: r.Slot, Follow: o.follow, Tail: o.tail}
		return node.Logs(ctx, i.ID, opts, func(l api.LogLine) error {
			text := l.Text
			if len(list) > 1 {
				text = fmt.Sprintf("%s/%d | %s", i.Name, l.Slot, l.Text)
			}
			return a.p.Event(l, text)
		})
	}
	if o.follow {
		g, gctx := errgroup.WithContext(ctx)
		for _, r := range list {
			g.Go(func() error { return one(gctx, r) })
		}
		return stopped(ctx, g.Wait())
	}
	var errs []error
	for _, r := range list {
		if err := one(ctx, r); err != nil {
			if ctx.Err() != nil {
				return err
			}
			errs = append(errs, fmt.Errorf("%s/%d: %w", i.Name, r.Slot, err))
		}
	}
	if len(errs) == len(list) {
		return errors.Join(errs...)
	}
	for _, err := range errs {
		a.p.Warn("%v", err)
	}
	return nil
}

// stopped turns the end of something endless by Ctrl-C into success.
func stopped(ctx context.Context, err error) error {
	if errors.Is(ctx.Err(), context.Canceled) {
		return nil
	}
	return err
}

func newExplain(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "explain INSTANCE", Short: "why each replica is where it is", Args: argsBetween(1, 1, "one INSTANCE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withWhole(cmd.Context(), args[0], func(c *swarm.Conn, i api.Instance) error {
				x, err := c.API().Explain(cmd.Context(), i.ID)
				if err != nil {
					return err
				}
				return a.p.Answer(x, func(w io.Writer) { writeExplain(w, x) })
			})
		},
	}
}

func writeExplain(w io.Writer, x api.Explain) {
	fmt.Fprintf(w, "%s (%s): %s\n", x.Name, x.ID, strings.TrimSpace(x.Status+" "+x.Reason))
	about := map[stmt.Key]api.ExplainNode{}
	for _, n := range append(slices.Clone(x.Eligible), x.Excluded...) {
		about[n.Node] = n
	}
	for _, s := range x.Slots {
		writeExplainSlot(w, s, about)
	}
	nodes := func(title string, list []api.ExplainNode) {
		if len(list) == 0 {
			return
		}
		fmt.Fprintf(w, "\n%s\n", title)
		for _, n := range list {
			line := fmt.Sprintf("  %s  %s  weight %d%s  %s", n.Node, n.Live, n.Weight, inDomain(n), n.Reason)
			fmt.Fprintln(w, strings.TrimRight(line, " "))
		}
	}
	nodes("nodes that may run it", x.Eligible)
	nodes("nodes that may not", x.Excluded)
	b := x.Budget
	fmt.Fprintf(w, "\nthe node that answers, in the last minute: %d of %d takeovers, %s of %s begun to fetch for them\n",
		b.Takeovers, b.Slots, cli.Bytes(uint64(b.RepairBytes)), cli.Bytes(uint64(b.Bytes)))
	if b.Window >= 0 {
		fmt.Fprintf(w, "in the last %v: %d of %d replicas moved here\n", time.Duration(b.Window)*time.Second, b.Moves, b.MovesMost)
	}
}

func inDomain(n api.ExplainNode) string {
	if n.Domain == "" {
		return ""
	}
	return ", domain " + n.Domain
}

func writeExplainSlot(w io.Writer, s api.ExplainSlot, about map[stmt.Key]api.ExplainNode) {
	fmt.Fprintf(w, "\nreplica %d\n", s.Slot)
	if len(s.Claims) == 0 {
		fmt.Fprintln(w, "  claimed by nobody")
	}
	for _, c := range s.Claims {
		line := fmt.Sprintf("  on %s: %s", c.Node, c.Phase)
		if c.Reason != "" {
			line += " (" + c.Reason + ")"
		}
		if i := slices.Index(s.Rank, c.Node); i >= 0 {
			line += fmt.Sprintf(", rank %d of %d", i, len(s.Rank))
		} else {
			line += ", not in the ranking"
		}
		fmt.Fprintln(w, line)
	}
	for _, why := range s.Why {
		fmt.Fprintln(w, "  "+why)
	}
	for i, n := range s.Rank[:min(len(s.Rank), 5)] {
		fmt.Fprintf(w, "  rank %d  %s  weight %d%s\n", i, n, about[n].Weight, inDomain(about[n]))
	}
}

func newEvents(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "events [INSTANCE]", Short: "follow what happens to your instances",
		Args: argsBetween(0, 1, "at most one INSTANCE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return a.runEvents(cmd.Context(), nil, "")
			}
			return a.withWhole(cmd.Context(), args[0], func(c *swarm.Conn, i api.Instance) error {
				return a.runEvents(cmd.Context(), c, i.ID)
			})
		},
	}
}

func (a *app) runEvents(ctx context.Context, c *swarm.Conn, instance string) (err error) {
	if c == nil {
		if c, err = a.connect(ctx, nil); err != nil {
			return err
		}
		defer closing(c, &err)
	}
	owner, err := c.Owner(ctx)
	if err != nil {
		return err
	}
	return stopped(ctx, owner.Events(ctx, instance, func(e api.Event) error {
		line := fmt.Sprintf("%s  %-18s %s", e.Time.UTC().Format(time.RFC3339), e.Kind, e.Instance)
		if e.Node != "" {
			line += "/" + strconv.Itoa(e.Slot) + " on " + e.Node
		}
		for _, s := range []string{e.Phase, e.Detail} {
			if s != "" {
				line += "  " + s
			}
		}
		return a.p.Event(e, line)
	}))
}

// step is one pack of an instance's history.
type step struct {
	Pack    string   `json:"pack"`
	Running bool     `json:"running"`
	Name    string   `json:"name"`
	Message string   `json:"message"`
	Author  stmt.Key `json:"author"`
}

func newHistory(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "history INSTANCE", Short: "the packs an instance came from, the newest first",
		Long: `Follows the parents of the pack that an instance runs, as far as they are in the
local store. A pack has a parent once "form commit" has made it from another.`,
		Args: argsBetween(1, 1, "one INSTANCE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withWhole(cmd.Context(), args[0], func(_ *swarm.Conn, i api.Instance) error {
				return a.runHistory(cmd.Context(), i)
			})
		},
	}
}

func (a *app) runHistory(ctx context.Context, i api.Instance) (err error) {
	s, err := a.openStore(ctx)
	if err != nil {
		return err
	}
	defer closing(s, &err)
	next, err := cid.Decode(i.Pack)
	if err != nil {
		return fmt.Errorf("pack of %s: %w", i.Name, err)
	}
	steps := []step{}
	for at := &next; at != nil && len(steps) < 1000; {
		st := step{Pack: at.String(), Running: len(steps) == 0}
		root, err := s.Pack(ctx, *at)
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return fmt.Errorf("pack %s: %w", at, err)
		}
		at = nil
		if err == nil {
			st.Name, st.Message, at = root.Name, root.Message, root.Parent
			copy(st.Author[:], root.Author)
		}
		steps = append(steps, st)
	}
	return a.p.Answer(steps, func(w io.Writer) {
		var rows [][]string
		for _, st := range steps {
			state := ""
			if st.Running {
				state = "running"
			}
			rows = append(rows, []string{st.Pack, state, st.Name, st.Message})
		}
		cli.Table(w, []string{"PACK", "STATE", "NAME", "MESSAGE"}, rows)
	})
}
