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
	"github.com/formthefog/formation/cmd/form/internal/swarm"
	"github.com/formthefog/formation/cmd/internal/api"
)

func newManage(a *app) *cobra.Command {
	return group("manage", "look after instances",
		group("get", "one fact about an instance", newGetStatus(a), newGetURLs(a)),
		newManageLs(a), newInspect(a), newStop(a), newStart(a), newRestart(a), newUpdate(a),
		newDelete(a), newManageScale(a), newManageLogs(a), newExec(a), newExplain(a),
		newEvents(a), newHistory(a), newDelegate(a),
		later("rollback", "go back to the pack before", "a history of an instance's packs",
			"name the pack to go back to: form pack ls, form manage update INSTANCE CID"))
}

func newLs(a *app) *cobra.Command {
	c := newManageLs(a)
	c.Short = "list instances (manage ls)"
	return c
}

func newScale(a *app) *cobra.Command {
	c := newManageScale(a)
	c.Short = "change the number of replicas (manage scale)"
	return c
}

func newLogs(a *app) *cobra.Command {
	c := newManageLogs(a)
	c.Short = "what an instance prints (manage logs)"
	return c
}

func newRm(a *app) *cobra.Command {
	c := newDelete(a)
	c.Use, c.Aliases, c.Short = "rm INSTANCE...", nil, "delete instances (manage delete)"
	return c
}

// withInstance connects, resolves the first argument and runs f.
func (a *app) withInstance(ctx context.Context, arg string, f func(*swarm.Conn, api.Instance, host) error) (err error) {
	h, err := parseHost(arg)
	if err != nil {
		return err
	}
	c, err := a.connect(ctx, nil)
	if err != nil {
		return err
	}
	defer closing(c, &err)
	i, h, err := a.find(ctx, c, h)
	if err != nil {
		return err
	}
	return f(c, i, h)
}

// withWhole is withInstance for verbs on all of an instance: a replica or a
// user in arg would be ignored, and is refused.
func (a *app) withWhole(ctx context.Context, arg string, f func(*swarm.Conn, api.Instance) error) error {
	if _, err := wholeInstance(arg); err != nil {
		return err
	}
	return a.withInstance(ctx, arg, func(c *swarm.Conn, i api.Instance, h host) error {
		if err := h.whole(); err != nil {
			return err
		}
		return f(c, i)
	})
}

// closing closes c and keeps the first error.
func closing(c io.Closer, err *error) {
	if e := c.Close(); e != nil && *err == nil {
		*err = e
	}
}

type lsOptions struct{ all bool }

func newManageLs(a *app) *cobra.Command {
	var o lsOptions
	c := &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "list instances", Args: noArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error { return a.runLs(cmd.Context(), o) },
	}
	c.Flags().BoolVarP(&o.all, "all", "a", false, "other owners' instances too")
	return c
}

func (a *app) runLs(ctx context.Context, o lsOptions) (err error) {
	c, err := a.connect(ctx, nil)
	if err != nil {
		return err
	}
	defer closing(c, &err)
	var list []api.Instance
	if o.all {
		list, err = c.API().Instances(ctx, nil)
	} else {
		owner, kerr := a.owner()
		if kerr != nil {
			return kerr
		}
		list, err = c.API().Instances(ctx, &owner)
	}
	if err != nil {
		return err
	}
	if list == nil {
		list = []api.Instance{}
	}
	slices.SortStableFunc(list, func(x, y api.Instance) int { return strings.Compare(x.Name, y.Name) })
	return a.p.Answer(list, func(w io.Writer) {
		header := []string{"NAME", "ID", "STATUS", "READY", "PACK", "NODES"}
		if o.all {
			header = append(header, "OWNER")
		}
		var rows [][]string
		for _, i := range list {
			row := []string{i.Name, i.ID, i.Status, readiness(i), shortCID(i.Pack), nodesOf(i)}
			if o.all {
				row = append(row, short(i.Owner))
			}
			rows = append(rows, row)
		}
		cli.Table(w, header, rows)
	})
}

// readiness is "ready/wanted", or that it is stopped.
func readiness(i api.Instance) string {
	ready := map[int]bool{}
	for _, r := range i.Replicas {
		if r.Ready {
			ready[r.Slot] = true
		}
	}
	s := fmt.Sprintf("%d/%d", len(ready), i.Desired.Replicas)
	if i.Desired.Phase == "stopped" {
		s += " stopped"
	}
	return s
}

func nodesOf(i api.Instance) string {
	var out []string
	for _, r := range i.Replicas {
		if n := short(r.Node); !slices.Contains(out, n) {
			out = append(out, n)
		}
	}
	return strings.Join(out, " ")
}

func shortCID(c string) string {
	if len(c) <= 16 {
		return c
	}
	return c[:8] + "…" + c[len(c)-6:]
}

func newInspect(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "inspect INSTANCE", Short: "everything about one instance", Args: argsBetween(1, 1, "one INSTANCE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withWhole(cmd.Context(), args[0], func(c *swarm.Conn, i api.Instance) error {
				i, err := c.API().Instance(cmd.Context(), i.ID) // of one, more is told
				if err != nil {
					return err
				}
				return a.p.Answer(i, func(w io.Writer) { writeInstance(w, i) })
			})
		},
	}
}

func writeInstance(w io.Writer, i api.Instance) {
	size := func(n uint64) string {
		if n == 0 {
			return ""
		}
		return cli.Bytes(n)
	}
	vcpu := ""
	if i.Spec.VCPU > 0 {
		vcpu = strconv.Itoa(i.Spec.VCPU)
	}
	var labels []string
	for k, v := range i.Spec.Labels {
		labels = append(labels, k+"="+v)
	}
	slices.Sort(labels)
	var voters []string
	for _, k := range i.Spec.Voters {
		voters = append(voters, k.String())
	}
	cli.Pairs(w, append([][2]string{
		{"name", i.Name}, {"id", i.ID}, {"owner", i.Owner.String()},
		{"status", statusText(i)}, {"reason", reasonUnlessFailure(i)}, {"pack", i.Pack},
		{"generation", strconv.FormatUint(i.Generation, 10)},
		{"wanted", fmt.Sprintf("%d replicas, %s", i.Desired.Replicas, i.Desired.Phase)},
		{"vcpu", vcpu}, {"memory", size(i.Spec.MemoryBytes)}, {"disk", size(i.Spec.DiskBytes)},
		{"expose", strings.Join(i.Spec.Expose, ", ")}, {"region", i.Spec.Region},
		{"labels", strings.Join(labels, " ")}, {"partition", i.Spec.Partition},
		{"voters", strings.Join(voters, " ")},
	}, publicPairs(i)...)...)
	for _, o := range i.Omitted {
		fmt.Fprintf(w, "left out: a change of %s by %s, signed %s; it does not count, and may be made again\n",
			strings.Join(o.Keys, ", "), short(o.Author), o.SignedAt.Format(time.RFC3339))
	}
	if len(i.Replicas) == 0 {
		return
	}
	fmt.Fprintln(w)
	var rows [][]string
	for _, r := range i.Replicas {
		ready := "no"
		if r.Ready {
			ready = "yes"
		}
		rows = append(rows, []string{strconv.Itoa(r.Slot), r.Phase, ready, r.Node.String(), text(r.Accel), since(r.StartedAt), text(r.Address), r.Reason})
	}
	cli.Table(w, []string{"REPLICA", "PHASE", "READY", "NODE", "ACCEL", "STARTED", "ADDRESS", "REASON"}, rows)
}

func reasonUnlessFailure(i api.Instance) string {
	if i.Status == api.StatusFailure {
		return ""
	}
	return i.Reason
}

func text(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

func since(t *time.Time) string {
	if t == nil || t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339)
}
