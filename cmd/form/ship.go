package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/formthefog/formation/cmd/form/internal/cli"
	"github.com/formthefog/formation/cmd/form/internal/swarm"
	"github.com/formthefog/formation/cmd/internal/api"
	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/store"
)

const (
	// defaultReplicas is how many run when neither the user nor the Formfile
	// says (CONTRACT, Shipping).
	defaultReplicas = 2
	// defaultHold is how long form stays for the swarm to hold a pack.
	defaultHold = 3 * time.Minute
	waitReady   = "ready"
	waitAll     = "all"
)

type shipOptions struct {
	buildOptions
	name     string
	replicas int
	to       []string
	wait     string
	hold     time.Duration
	sshKeys  []string
	env      []string
	labels   []string
	region   string
	voters   string
	secrets  secretFlags

	update bool              // manage update: the instance exists and keeps its name
	id     string            // of the instance to update, or ""
	given  func(string) bool // whether a flag was given
}

func (o *shipOptions) addFlags(f *pflag.FlagSet) {
	o.buildOptions.addFlags(f)
	if !o.update {
		f.StringVar(&o.name, "name", "", "name of the instance (default: the pack's)")
		f.StringArrayVar(&o.to, "to", nil, "peer to ship to: a multiaddr or a ticket (repeatable; as --peer)")
		o.secrets.addFlags(f)
	}
	f.IntVar(&o.replicas, "replicas", 0, "how many replicas to run (default: the Formfile's, else 2)")
	f.StringVar(&o.wait, "wait", "", "stay until it is ready; --wait=all: until every replica is")
	f.Lookup("wait").NoOptDefVal = waitReady
	f.DurationVar(&o.hold, "hold", defaultHold, "how long to stay for enough peers to hold the pack")
	f.StringArrayVar(&o.sshKeys, "ssh-key", nil, "SSH public key, or a file of them, to let in beside the kit's, and nobody else (repeatable)")
	f.StringArrayVarP(&o.env, "env", "e", nil, "K=V for the entrypoint, K- to take it back; readable by members, so no secrets (repeatable)")
	f.StringVar(&o.region, "region", "", "run only on nodes of this region (empty: of any)")
	f.StringVar(&o.voters, "voters", "auto", "who votes when PARTITION is stop-minority or fence: node keys (an odd number, comma-separated), how many, or auto (3)")
	f.StringArrayVar(&o.labels, "label", nil, "K=V that a node must have to run it, K- to take it back (repeatable)")
}

func newShip(a *app) *cobra.Command {
	var o shipOptions
	c := &cobra.Command{
		Use: "ship [CID|DIR]", Short: "build if need be, and run a pack on the swarm",
		Long: `Ships a pack to the swarm and prints the instance's ID as the last line. A folder
(default .) is built first. A name of yours that runs already is updated: the
same ID, the next generation; --name makes a second instance.

form stays until enough peers hold the pack, then nothing here is needed any
more. --wait stays until a replica is ready and every eligible node is used,
--wait=all until every replica is ready.

--secret gives it a secret before it starts, as form secret set does later. form
then stays too until nodes have taken replicas, and encrypts it to them. Values
come from files or standard input, and never from the command line.`,
		Example: `  form ship
  form ship --replicas 3 --wait --timeout 5m
  form ship --to /ip4/192.0.2.7/tcp/51820/p2p/12D3Koo...
  form ship --secret tls.key=tls.key --wait
  pwgen 32 1 | form ship --secret-env DB_PASSWORD
  form pack ship bafyrei... --name canary --env MODE=canary`,
		Args: argsBetween(0, 1, "at most one CID or DIR"),
		RunE: func(cmd *cobra.Command, args []string) error {
			arg := "."
			if len(args) == 1 {
				arg = args[0]
			}
			o.given = cmd.Flags().Changed
			a.flags.peers = append(a.flags.peers, o.to...)
			return a.runShip(cmd.Context(), arg, o)
		},
	}
	o.addFlags(c.Flags())
	return c
}

func (a *app) runShip(ctx context.Context, arg string, o shipOptions) (err error) {
	want, err := a.readWishes(o)
	if err != nil {
		return err
	}
	t := shipped{}
	// Other forms of this user wait for the store: it is given back before the
	// replicas are waited for.
	err = a.withStore(ctx, func(s *store.Store) (err error) {
		t, err = a.shipFrom(ctx, s, arg, want, o)
		return err
	})
	if t.conn != nil {
		defer closing(t.conn, &err)
	}
	if t.inst == "" {
		return err
	}
	// The instance is there, whatever became of the waiting.
	if err == nil {
		err = a.follow(ctx, t, o)
	}
	return errors.Join(a.answerInstance(ctx, t.conn, t.inst), err)
}

// shipped is a pack that is an instance by now; inst is "" before.
type shipped struct {
	conn *swarm.Conn // open, to be closed by whom this is given
	pack cid.Cid
	inst string
}

// shipFrom builds if need be, hands the pack over, signs the instance, and
// serves the pack for as long as that is needed.
func (a *app) shipFrom(ctx context.Context, s *store.Store, arg string, want wishes, o shipOptions) (t shipped, err error) {
	if t.pack, err = a.packToShip(ctx, s, arg, o); err != nil {
		return t, err
	}
	if t.conn, err = a.connect(ctx, s); err != nil {
		return t, err
	}
	if !t.pack.Defined() {
		if t.pack, err = cid.Decode(arg); err != nil {
			return t, err
		}
		if err := a.fetch(ctx, t.conn, s, t.pack); err != nil {
			return t, err
		}
	}
	root, err := s.Pack(ctx, t.pack)
	if err != nil {
		return t, fmt.Errorf("pack %s: %w", t.pack, err)
	}
	a.warnSecrets(root)
	own, err := a.ownSSHKey()
	if err != nil {
		return t, err
	}
	want.sshKeys = want.authorised(own)
	if err := a.hand(ctx, t.conn, t.pack); err != nil {
		return t, err
	}
	if t.inst, err = a.signShip(ctx, t.conn, t.pack, root, want, o); err != nil {
		return t, err
	}
	a.p.Note("shipped: %s", t.inst)
	var keeper *secretKeeper
	if len(want.secrets) > 0 {
		keeper = &secretKeeper{a: a, conn: t.conn}
	}
	return t, a.stayUntilHeld(ctx, t.conn, t.pack, t.inst, keeper, o.hold)
}

// packToShip is the pack that arg means: a folder is built; a CID that is not
// here is Undef, and comes from the swarm.
func (a *app) packToShip(ctx context.Context, s *store.Store, arg string, o shipOptions) (cid.Cid, error) {
	if id, err := cid.Decode(arg); err == nil {
		ok, err := s.Complete(ctx, id)
		if errors.Is(err, store.ErrNotFound) || err == nil && !ok {
			return cid.Undef, nil
		}
		return id, err
	}
	if _, err := os.Stat(arg); err != nil && !strings.ContainsAny(arg, "/.") {
		id, perr := packID(ctx, s, arg)
		if perr == nil || api.ExitOf(perr) == api.ExitUsage {
			return id, perr
		}
		return id, cli.Errorf(api.ExitNotFound, "%q is neither a folder, nor a CID, nor a pack here", arg).
			Hint("build it first: form pack build DIR").Hint("what is here: form pack ls")
	}
	in, err := readContext(arg, o.buildOptions)
	if err != nil {
		return cid.Undef, err
	}
	if err := a.warnFiles(in); err != nil {
		return cid.Undef, err
	}
	return a.runBuild(ctx, s, in)
}

// hand has the entry node fetch a pack, from here first.
func (a *app) hand(ctx context.Context, c *swarm.Conn, id cid.Cid) error {
	task := a.p.Start("handing over " + shortCID(id.String()))
	defer task.Done()
	node, entry, err := c.Peer(ctx)
	if err != nil {
		return err
	}
	peer, err := c.Owner(ctx)
	if err != nil {
		return err
	}
	var last api.FetchProgress
	err = peer.FetchPack(ctx, id.String(), api.FetchRequest{From: []string{node.ID().String()}}, func(p api.FetchProgress) {
		last = p
		task.Progress(p.Bytes, p.Total)
	})
	task.Done()
	if err != nil {
		return err
	}
	if last.Total <= 0 {
		a.p.Note("peer %s had the pack already", short(keyOf(entry)))
		return nil
	}
	a.p.Note("peer %s has the pack: %s, %s of it over the network", short(keyOf(entry)), cli.Bytes(uint64(last.Total)), cli.Bytes(uint64(max(last.Moved, 0))))
	return nil
}

// signShip signs the instance and hands the statements in.
func (a *app) signShip(ctx context.Context, c *swarm.Conn, id cid.Cid, root *store.Root, want wishes, o shipOptions) (string, error) {
	au, err := a.author(ctx, c)
	if err != nil {
		return "", err
	}
	name := root.Name
	if o.name != "" {
		name = o.name
	}
	old, err := existing(au.Instances(), o.id, name)
	if err != nil {
		return "", err
	}
	voters, err := a.voters(ctx, c, want.voters, root.Run.Partition, name, votersOf(au.Instances(), old))
	if err != nil {
		return "", err
	}
	var raws [][]byte
	fresh := old == ""
	if fresh {
		var spec crdt.Spec
		want.apply(&spec, id, root, false)
		spec.Name, spec.Voters = name, voters
		old, raws, err = au.Create(spec)
	} else {
		raws, err = au.Set(old, func(s *crdt.Spec) {
			want.apply(s, id, root, true)
			s.Voters = voters
		})
		a.p.Note("updating %s (%s)", name, old)
	}
	if err != nil {
		return "", cannotSign("sign "+name, name, err)
	}
	secrets, err := a.signSecrets(ctx, c, au, old, fresh, want.secrets)
	if err != nil {
		return "", cannotSign("sign the secrets of "+name, name, err)
	}
	// With them, so that no node knows the change without its secrets for long.
	raws = append(raws, secrets...)
	if len(raws) == 0 {
		a.p.Note("%s runs exactly this already", name)
		return old, nil
	}
	if _, err := c.API().Submit(ctx, raws); err != nil {
		return "", err
	}
	return old, nil
}

// existing is the ID of the instance that a ship updates, or "".
func existing(mine []crdt.Spec, id, name string) (string, error) {
	var found []crdt.Spec
	for _, s := range mine {
		if id != "" && s.ID == id || id == "" && s.Name == name {
			found = append(found, s)
		}
	}
	switch len(found) {
	case 0:
		if id != "" {
			return "", cli.Errorf(api.ExitNotFound, "instance %s is deleted", id)
		}
		return "", nil
	case 1:
		return found[0].ID, nil
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%d instances of yours are called %q:", len(found), name)
	for _, s := range found {
		b.WriteString("\n  " + s.ID)
	}
	return "", cli.Errorf(api.ExitUsage, "%s", b.String()).
		Hint("update one: form manage update ID CID").Hint("or make another: --name NAME")
}

// follow stays for the replicas if it is asked to, else says what is missing.
func (a *app) follow(ctx context.Context, t shipped, o shipOptions) error {
	if o.wait != "" {
		return a.waitFor(ctx, t.conn, t.inst, t.pack.String(), o.wait == waitAll)
	}
	return a.warnShortage(ctx, t.conn, t.inst)
}

// warnShortage says why an instance does not get all that was asked for.
func (a *app) warnShortage(ctx context.Context, c *swarm.Conn, inst string) error {
	i, err := c.API().Instance(ctx, inst)
	switch {
	case err != nil:
		return err
	case i.Status == api.StatusFailure:
		a.p.Warn("%s: %s", i.Name, statusText(i))
	case i.Status == api.StatusSuccess && i.Reason != "":
		a.p.Warn("%s: %s", i.Name, i.Reason)
	}
	return nil
}

func (a *app) answerInstance(ctx context.Context, c *swarm.Conn, inst string) error {
	// The wait may have used all the time there was.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	if !a.p.JSON {
		a.notePublic(ctx, c, inst)
		return a.p.Answer(nil, func(w io.Writer) { fmt.Fprintln(w, inst) })
	}
	i, err := c.API().Instance(ctx, inst)
	if err != nil {
		return err
	}
	return a.p.Answer(i, func(io.Writer) {})
}

// stayUntilHeld serves the pack until as many nodes hold it as should, or
// nobody is going to run it, and until k has given its secrets to whoever runs it.
// What is missing after limit is a warning: the instance is shipped.
func (a *app) stayUntilHeld(ctx context.Context, c *swarm.Conn, id cid.Cid, inst string, k *secretKeeper, limit time.Duration) error {
	task := a.p.Start("waiting for peers to hold the pack")
	defer task.Done()
	hctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var h api.Holders // the latest answer: the call that the limit cuts off gives none
	err := poll(hctx, func() (bool, error) {
		now, err := c.API().Holders(hctx, id.String())
		if err != nil {
			return false, err
		}
		h = now
		task.Title(fmt.Sprintf("%d of %d peers hold the pack", len(h.Nodes), h.Wanted))
		i, err := c.API().Instance(hctx, inst)
		if err != nil {
			return false, err
		}
		given, err := k.look(hctx, i)
		if err != nil {
			return false, err
		}
		// The figures follow from the claims: while slots are free, and may be
		// taken, they say too little.
		settled := i.Status != api.StatusPending || claimedSlots(i) >= i.Desired.Replicas
		enough := settled && given && len(h.Nodes) >= h.Wanted
		return enough || i.Status == api.StatusFailure || i.Pack != id.String(), nil
	})
	task.Done()
	switch {
	case err != nil && (ctx.Err() != nil || hctx.Err() == nil):
		return err
	case h.Wanted > 0 && len(h.Nodes) >= h.Wanted && k.missing():
		a.p.Note("%s the pack", hold(len(h.Nodes)))
	case h.Wanted > 0 && len(h.Nodes) >= h.Wanted:
		a.p.Note("%s the pack: nothing here is needed any more", hold(len(h.Nodes)))
	case h.Wanted == 0 && err == nil:
		a.p.Note("no peer is to hold the pack: there is nothing to stay for")
	case h.Wanted == 0:
		a.p.Warn("no peer has taken a replica yet\nhint: why: form manage explain %s", inst)
	default:
		a.p.Warn("%s the pack, and %d should; if they go away, no new replica can start\nhint: ship again when more nodes are there, or stay longer: --hold 30m", hold(len(h.Nodes)), h.Wanted)
	}
	if k.missing() {
		a.p.Warn("no node has been given its secrets yet, and none starts it without them\nhint: when nodes have taken its replicas: form secret sync %s", inst)
	}
	return nil
}

func hold(n int) string {
	if n == 1 {
		return "1 peer holds"
	}
	return fmt.Sprintf("%d peers hold", n)
}

// claimedSlots counts the slots that some node has taken.
func claimedSlots(i api.Instance) int {
	slots := map[int]bool{}
	for _, r := range i.Replicas {
		slots[r.Slot] = true
	}
	return len(slots)
}

// waitFor follows an instance until it is ready with a pack.
func (a *app) waitFor(ctx context.Context, c *swarm.Conn, inst, pack string, all bool) error {
	task := a.p.Start("waiting")
	defer task.Done()
	var i api.Instance
	said := ""
	err := poll(ctx, func() (bool, error) {
		var err error
		if i, err = c.API().Instance(ctx, inst); err != nil {
			return false, err
		}
		if line := progressLine(i); line != said {
			said = line
			task.Title(line)
			if !a.p.Terminal() {
				a.p.Note("%s", line)
			}
		}
		if i.Pack != pack {
			return false, nil
		}
		if i.Status == api.StatusPending {
			if _, err := a.healSecrets(ctx, c, i, i.Reason); err != nil {
				return false, err
			}
		}
		// SUCCESS is about the spec as it is now: replicas of an older one may
		// still be ready while the change is rolled out.
		need := 1
		if all && i.Spec.Partition != crdt.PartitionFence { // of which one runs
			need = i.Desired.Replicas
		}
		return i.Status == api.StatusFailure || i.Status == api.StatusSuccess && readySlots(i, pack) >= need, nil
	})
	task.Done()
	if err != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return cli.Errorf(api.ExitTimeout, "timed out: %s", said).
			Hint("it goes on without form: form manage get status --watch %s", inst).
			Hint("why: form manage explain %s", inst)
	}
	if err != nil {
		return err
	}
	if i.Status == api.StatusFailure {
		return cli.Errorf(api.ExitFailed, "%s", statusText(i)).
			Hint("what it printed: form logs %s", i.Name).Hint("why: form manage explain %s", i.Name)
	}
	if i.Reason != "" {
		a.p.Warn("%s: %s", i.Name, i.Reason)
	}
	return nil
}

// readySlots counts the slots with a ready replica of this pack.
func readySlots(i api.Instance, pack string) int {
	var slots []int
	for _, r := range i.Replicas {
		if r.Ready && r.Pack == pack && !slices.Contains(slots, r.Slot) {
			slots = append(slots, r.Slot)
		}
	}
	return len(slots)
}
