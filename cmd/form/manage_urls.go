package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/formthefog/formation/cmd/form/internal/swarm"
	"github.com/formthefog/formation/cmd/internal/api"
	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/policy"
)

func newGetURLs(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "urls INSTANCE", Short: "by which URLs everybody reaches an instance",
		Long: `Prints the URLs by which everybody reaches what an instance EXPOSEs as public, one
a line: https, http, tcp or udp. They are what the swarm's ingress nodes say of
themselves; --json says which nodes those are, and to which addresses the names
must lead.`,
		Args: argsBetween(1, 1, "one INSTANCE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withWhole(cmd.Context(), args[0], func(_ *swarm.Conn, i api.Instance) error {
				if len(i.Public) == 0 {
					a.p.Note("%s", whyNoURLs(i))
				}
				return a.p.Answer(i.Public, func(w io.Writer) {
					for _, u := range i.Public {
						fmt.Fprintln(w, u.URL)
					}
				})
			})
		},
	}
}

// whyNoURLs says what an instance without public URLs lacks.
func whyNoURLs(i api.Instance) string {
	if len(policy.PublicPorts(&crdt.Spec{Expose: i.Spec.Expose})) == 0 {
		return i.Name + " offers nothing to everybody: EXPOSE a port as public in its Formfile"
	}
	return i.Name + " is served by no ingress node that is known here, or another instance wants the same"
}

// publicPairs are the URLs of an instance with who serves them.
func publicPairs(i api.Instance) (out [][2]string) {
	for _, u := range i.Public {
		var nodes []string
		for _, n := range u.Nodes {
			nodes = append(nodes, short(n))
		}
		out = append(out, [2]string{"public", u.URL + " by " + strings.Join(nodes, " ")})
	}
	return out
}

// notePublic says by which URLs an instance is reached, if it is by any.
func (a *app) notePublic(ctx context.Context, c *swarm.Conn, inst string) {
	i, err := c.API().Instance(ctx, inst)
	if err != nil {
		a.p.Warn("its public URLs are not known: %v", err)
		return
	}
	for _, u := range i.Public {
		a.p.Note("public: %s", u.URL)
	}
}
