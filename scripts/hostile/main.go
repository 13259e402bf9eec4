// Command hostile joins a private network by its ticket, as a member would, and
// then attacks every node it is told of with what the wire format forbids. It
// shares no code with the replicas it talks to but the making of honest
// statements, and is not shipped.
//
// For each attack it prints one line of JSON: who it was, what class of refusal
// the nodes should name it for, and what became of its connections. The judging
// is left to the test that runs it (cmd/formd, TestHostilePeers), which sees the
// nodes from the inside.
//
//	go run ./scripts/hostile --ticket TICKET [--revoked HEX] [--victim INSTANCE --owner KEY]
//		[--deleted HEX,…] [--attack REGEXP] MULTIADDR...
package main

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"golang.org/x/sync/errgroup"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/stmt"
)

// perAttack ends an attack on one node, and perOffence one that ends when it is cut
// off: on a slow machine that takes the node a while.
const (
	perAttack  = 16 * time.Second
	perOffence = time.Minute
)

// report is the line about one attack.
type report struct {
	Attack string  `json:"attack"`
	Peer   peer.ID `json:"peer"`
	// Reason is the class by which nodes refuse it; empty for what no node can
	// tell from an honest act, and merely bounds.
	Reason string `json:"reason,omitempty"`
	// Offence: such a peer is to be cut off and kept out.
	Offence bool `json:"offence,omitempty"`
	Admit   bool `json:"admit"` // whether it should have been let in
	// Frozen is an instance whose owner said two things at once.
	Frozen  string   `json:"frozen,omitempty"`
	Targets []target `json:"targets"`
}

// prey is what some attacks are about.
type prey struct {
	revoked string   // seed of a node key that the root has revoked, in hexadecimal
	victim  string   // an instance of somebody else that runs
	owner   stmt.Key // and its owner
	deleted [][]byte // raw statements of an instance that its owner has deleted
}

// target is how an attack went at one node.
type target struct {
	Peer     peer.ID `json:"peer"`
	Admitted bool    `json:"admitted"`
	Refusal  string  `json:"refusal,omitempty"` // what it said instead
	Sent     int     `json:"sent"`              // messages, frames or streams
	Cut      bool    `json:"cut,omitempty"`     // the node closed the connection
	Again    string  `json:"again,omitempty"`   // what it said to the peer that came back; "" when it let it in
}

// attacks are all there are, in the order in which they are made.
var attacks = slices.Concat(stateAttacks, ownerAttacks, answerAttacks, blockAttacks, clientAttacks)

func main() {
	ticket := flag.String("ticket", "", "ticket of the network")
	var p prey
	flag.StringVar(&p.revoked, "revoked", "", "seed of a node key that the root has revoked, in hexadecimal")
	flag.StringVar(&p.victim, "victim", "", "ID of an instance that runs")
	flag.TextVar(&p.owner, "owner", stmt.Key{}, "key of its owner")
	flag.Func("deleted", "raw statements of an instance that is deleted, in hexadecimal, with commas between", func(s string) error {
		for one := range strings.SplitSeq(s, ",") {
			raw, err := hex.DecodeString(one)
			if err != nil {
				return err
			}
			p.deleted = append(p.deleted, raw)
		}
		return nil
	})
	only := flag.String("attack", "", "regular expression of attacks")
	list := flag.Bool("list", false, "list the attacks")
	flag.Parse()
	if *list {
		for _, a := range attacks {
			fmt.Println(a.name)
		}
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *ticket, p, *only, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "hostile:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, ticket string, p prey, only string, addrs []string) error {
	t, err := stmt.ParseTicket(ticket)
	if err != nil {
		return err
	}
	re, err := regexp.Compile(only)
	if err != nil {
		return err
	}
	targets := make([]peer.AddrInfo, len(addrs))
	for i, a := range addrs {
		pi, err := peer.AddrInfoFromString(a)
		if err != nil {
			return err
		}
		targets[i] = *pi
	}
	out, said := json.NewEncoder(os.Stdout), sync.Mutex{}
	one := func(ctx context.Context, a attack) error {
		r, err := a.run(ctx, t, p, targets)
		if err != nil {
			return fmt.Errorf("%s: %w", a.name, err)
		}
		said.Lock()
		defer said.Unlock()
		return errors.Join(out.Encode(r), ctx.Err())
	}
	all, ctx := errgroup.WithContext(ctx)
	var busy []attack
	for _, a := range attacks {
		switch {
		case !re.MatchString(a.name) || a.role == asRevoked && p.revoked == "" || a.needs != nil && !a.needs(p):
		case a.idle:
			all.Go(func() error { return one(ctx, a) })
		default:
			busy = append(busy, a)
		}
	}
	all.Go(func() error {
		for _, a := range busy {
			if err := one(ctx, a); err != nil {
				return err
			}
		}
		return nil
	})
	return all.Wait()
}

// run makes an identity of its own for the attack, so that the penalty for one
// does not hide another, and attacks all targets at once.
func (a attack) run(ctx context.Context, t stmt.Ticket, p prey, targets []peer.AddrInfo) (report, error) {
	l, err := newLiar(t, a.role, p)
	if err != nil {
		return report{}, err
	}
	defer l.host.Close()
	r := report{
		Attack: a.name, Peer: l.host.ID(), Reason: a.reason, Offence: a.offence,
		Admit: a.role.admitted(), Targets: make([]target, len(targets)),
	}
	var all sync.WaitGroup
	for i, to := range targets {
		all.Go(func() {
			limit := perAttack
			if a.offence {
				limit = perOffence
			}
			actx, cancel := context.WithTimeout(ctx, limit)
			defer cancel()
			r.Targets[i] = a.on(actx, l, i, to)
		})
	}
	all.Wait()
	if a.freezes {
		id := instanceID(stmt.KeyOf(l.owner), stmt.KeyOf(l.owner), 0)
		r.Frozen = crdt.DocID(id).String()
	}
	return r, nil
}

// on attacks one target and looks what becomes of the connection.
func (a attack) on(ctx context.Context, l *liar, n int, to peer.AddrInfo) target {
	out := target{Peer: to.ID}
	refusal, err := l.join(ctx, to)
	if err != nil {
		refusal = err.Error()
	}
	out.Refusal, out.Admitted = refusal, refusal == ""
	if !out.Admitted || a.strike == nil {
		return out
	}
	out.Sent = a.strike(ctx, l, n, to.ID)
	if !a.offence {
		l.finish(ctx, to.ID)
		return out
	}
	if out.Cut = l.wentAway(ctx, to.ID); !out.Cut {
		return out
	}
	actx, cancel := context.WithTimeout(context.WithoutCancel(ctx), perAttack)
	defer cancel()
	for {
		if out.Again, err = l.join(actx, to); err == nil {
			return out
		}
		// The node may be closing what it found of us still: it is to tell.
		out.Again = err.Error()
		select {
		case <-actx.Done():
			return out
		case <-time.After(100 * time.Millisecond):
		}
	}
}
