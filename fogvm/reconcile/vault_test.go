package reconcile

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/seal"
	"github.com/formthefog/formation/crdt/stmt"
	"github.com/formthefog/formation/fogvm/reconcile/plan"
	"github.com/formthefog/formation/store"
)

const hunter = "hunter2-9f1c"

// secret sets a secret for some nodes; a frame that was set before keeps its sum.
func (o *owner) secret(m *machine, name string, frame seal.Frame, to ...stmt.Key) {
	o.t.Helper()
	box, to, err := seal.Box(frame, o.a.Owner(), to)
	if err != nil {
		o.t.Fatal(err)
	}
	raws, err := o.a.SetSecret(o.id, crdt.Secret{Name: name, Box: box, Sum: frame.Sum(), To: to})
	if err != nil {
		o.t.Fatal(err)
	}
	o.submit(m, raws)
}

func frameOf(t *testing.T, value string) seal.Frame {
	t.Helper()
	f, err := seal.New([]byte(value))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// given is what the VM of an instance here has as secrets.
func (m *machine) given(instance string) string {
	var out []string
	for slot := range 4 {
		for _, s := range m.fake.Secrets(plan.VMID(instance, slot)) {
			out = append(out, s.Name+"="+string(s.Value))
		}
	}
	return strings.Join(out, " ")
}

// A replica starts with its instance's secrets, sees new values, and one that
// moves gets them from one that runs, though nothing is encrypted to its node.
func TestSecretsFollowAReplica(t *testing.T) {
	h, l := newHub(), newLibrary()
	pack := l.add("web", store.RunConfig{})
	ms := []*machine{newMachine(t, h, l, 1), newMachine(t, h, l, 2), newMachine(t, h, l, 3)}
	o := ship(t, ms[0], pack, 2)
	where := o.waitReady(ms[0], 2)
	o.secret(ms[0], "DB", frameOf(t, "old"), where[0], where[1])
	o.secret(ms[0], "DB", frameOf(t, hunter), where[0], where[1])
	var runs []*machine
	var spare *machine
	for _, m := range ms {
		if m.key == where[0] || m.key == where[1] {
			runs = append(runs, m)
			within(t, 20*time.Second, "the secret in the VM", func() error {
				if got := m.given(o.id); got != "DB="+hunter {
					return fmt.Errorf("has %q", got)
				}
				return nil
			})
		} else {
			spare = m
		}
	}
	if got, _ := spare.vault.Secrets(o.id); spare.given(o.id) != "" || len(got) != 0 {
		t.Error("a node without a claim has the secret")
	}
	runs[0].kill()
	within(t, 30*time.Second, "the replica on the third node", func() error {
		if got := spare.given(o.id); got != "DB="+hunter {
			return fmt.Errorf("has %q", got)
		}
		_, err := o.ready(spare, 2)
		return err
	})
	for _, m := range ms {
		err := filepath.WalkDir(m.dir, func(path string, d os.DirEntry, err error) error {
			if err != nil || d.IsDir() || d.Name() == "disk.raw" { // a fake guest writes nothing on it
				return err
			}
			b, err := os.ReadFile(path)
			if bytes.Contains(b, []byte(hunter)) || bytes.Contains(b, []byte("aHVudGVyMi")) {
				t.Errorf("the value is in %s", path)
			}
			return err
		})
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Error(err)
		}
	}
}

// With all recipients gone the new replica waits, says for what, and starts when
// the owner has encrypted the secrets to its node.
func TestSecretsWaitForTheOwner(t *testing.T) {
	h, l := newHub(), newLibrary()
	pack := l.add("web", store.RunConfig{})
	a, b := newMachine(t, h, l, 1), newMachine(t, h, l, 2)
	o := ship(t, a, pack, 1)
	where := o.waitReady(a, 1)
	first, second := a, b
	if where[0] == b.key {
		first, second = b, a
	}
	f := frameOf(t, hunter)
	o.secret(a, "DB", f, first.key)
	within(t, 20*time.Second, "the secret in the VM", func() error {
		if got := first.given(o.id); got != "DB="+hunter {
			return fmt.Errorf("has %q", got)
		}
		return nil
	})
	first.kill()
	within(t, 30*time.Second, "the second node waiting", func() error {
		for _, c := range second.state.View().Claims(o.id) {
			if c.Node == second.key && c.Phase == crdt.ClaimClaimed && c.Reason == "waits for its secrets: run form secret sync web" {
				return nil
			}
		}
		return fmt.Errorf("claims %+v", second.state.View().Claims(o.id))
	})
	spec, _ := second.state.View().Instance(o.id)
	if word, reason := plan.Status(second.rec.WorldOf(second.state.View()), &spec); word != plan.Pending || !strings.Contains(reason, "run form secret sync web") {
		t.Errorf("status %s: %s", word, reason)
	}
	if vms := second.vms.List(); len(vms) != 0 {
		t.Errorf("something runs without its secrets: %+v", vms)
	}
	o.secret(second, "DB", f, second.key)
	within(t, 20*time.Second, "the replica on the second node", func() error {
		if got := second.given(o.id); got != "DB="+hunter {
			return fmt.Errorf("has %q", got)
		}
		_, err := o.ready(second, 1)
		return err
	})
}

// A member node that keeps no slot gets nothing by asking, whatever it claims.
func TestSecretsAreRefused(t *testing.T) {
	h, l := newHub(), newLibrary()
	pack := l.add("web", store.RunConfig{})
	a, b := newMachine(t, h, l, 1), newMachine(t, h, l, 2)
	o := ship(t, a, pack, 1)
	where := o.waitReady(a, 1)
	runs, other := a, b
	if where[0] == b.key {
		runs, other = b, a
	}
	o.secret(a, "DB", frameOf(t, hunter), runs.key)
	within(t, 20*time.Second, "the secret in the VM", func() error {
		if got := runs.given(o.id); got != "DB="+hunter {
			return fmt.Errorf("has %q", got)
		}
		return nil
	})
	ask := func(what, instance string, names ...string) {
		t.Helper()
		within(t, 20*time.Second, what, func() error { // one that comes too soon is not answered
			got, err := other.vault.askNode(t.Context(), runs.key, instance, names)
			if len(got) != 0 {
				t.Fatalf("%s: got %d values, %v", what, len(got), err)
			}
			if errors.Is(err, errRefused) {
				return nil
			}
			return fmt.Errorf("not refused: %w", err)
		})
	}
	ask("without a claim", o.id, "DB")
	for what, slot := range map[string]int{"with a claim on a slot beyond the replicas": 1, "with a claim on a slot that another keeps": 0} {
		// Published, the machine's own reconciler would take it back.
		w := runs.rec.WorldOf(runs.state.View())
		w.Claims[o.id] = append(slices.Clone(w.Claims[o.id]), crdt.Claim{Node: other.key, Instance: o.id, Owner: o.a.Owner(), Slot: slot, Phase: crdt.ClaimLaunching})
		runs.forged.Store(&w)
		ask(what, o.id, "DB")
	}
	runs.forged.Store(nil)
	ask("without names", o.id)
	ask("with many names", o.id, slices.Repeat([]string{"DB"}, crdt.MaxSecrets+1)...)
	ask("of an unknown instance", crdt.DocID{1}.String(), "DB")
	f, ok := runs.vault.current(o.id, "DB")
	box := runs.state.View().Secrets(o.id)[0]
	if _, err := seal.Open(keyOf(other.n), box.Box, box.Sum); !ok || string(f.Value()) != hunter || !errors.Is(err, seal.ErrNotForUs) {
		t.Errorf("the other node opens what is not for it: %v", err)
	}
}

func TestAskRates(t *testing.T) {
	r := newAskRates()
	n := 0
	for range 2 * secretBurst {
		if r.begin(stmt.Key{1}, 0) {
			n++
			r.end(stmt.Key{1})
		}
	}
	if n != secretBurst || r.begin(stmt.Key{1}, secretRate-1) || !r.begin(stmt.Key{1}, secretRate) {
		t.Errorf("%d questions at once, want %d, and one more a second later", n, secretBurst)
	}
	for range servingOne {
		if !r.begin(stmt.Key{2}, 0) {
			t.Fatal("refused")
		}
	}
	if r.begin(stmt.Key{2}, 0) {
		t.Error("one peer has all the tokens")
	}
	for i := range 2 * maxAskers {
		r.begin(stmt.Key{3, byte(i), byte(i >> 8)}, 0)
	}
	if len(r.due) > maxAskers {
		t.Errorf("%d peers are remembered", len(r.due))
	}
}

// pipes gives a Vault streams to a peer of the test's making.
type pipes struct{ peer func(net.Conn) }

func (p pipes) Open(context.Context, peer.ID, string) (net.Conn, error) {
	a, b := net.Pipe()
	go func() {
		defer b.Close()
		p.peer(b)
	}()
	return a, nil
}

func (pipes) Handle(string, func(context.Context, peer.ID, net.Conn)) {}

// Whatever a peer answers, only what the owner signed is taken.
func TestHostileAnswers(t *testing.T) {
	good := frameOf(t, hunter)
	for what, tc := range map[string]struct {
		say  func(c net.Conn) error
		want bool
	}{
		"the value": {func(c net.Conn) error {
			return errors.Join(writeRecord(c, secretAnswer{Name: "DB", Frame: good}), writeRecord(c, secretAnswer{End: true}))
		}, true},
		"the value, then bytes": {func(c net.Conn) error {
			return errors.Join(writeRecord(c, secretAnswer{Name: "DB", Frame: good}), cut(c))
		}, true},
		"another value":   {func(c net.Conn) error { return writeRecord(c, secretAnswer{Name: "DB", Frame: frameOf(t, "evil")}) }, false},
		"no frame":        {func(c net.Conn) error { return writeRecord(c, secretAnswer{Name: "DB"}) }, false},
		"another name":    {func(c net.Conn) error { return writeRecord(c, secretAnswer{Name: "XX", Frame: good}) }, false},
		"a large record":  {func(c net.Conn) error { _, err := c.Write([]byte{0xff, 0xff, 0xff, 0xff}); return err }, false},
		"an empty record": {func(c net.Conn) error { _, err := c.Write(make([]byte, 4)); return err }, false},
		"a refusal":       {func(c net.Conn) error { return writeRecord(c, secretAnswer{Refused: strings.Repeat("x", 4096)}) }, false},
		"nothing":         {func(net.Conn) error { return nil }, false},
	} {
		v := NewVault(VaultConfig{Key: keyOf(1), Streams: pipes{func(c net.Conn) {
			var req secretRequest
			if err := readRecord(c, maxSecretRequest, &req); err == nil {
				_ = tc.say(c) // the vault may have hung up
			}
		}}})
		id := crdt.DocID{7}.String()
		v.known[id] = []crdt.Secret{{Name: "DB", Sum: good.Sum()}}
		v.held[id] = map[string]seal.Frame{}
		q := &quest{}
		v.ask(t.Context(), id, q, []string{"DB"}, []stmt.Key{{2}})
		if got, _ := v.Secrets(id); (len(got) == 1 && string(got[0].Value) == hunter) != tc.want || q.rounds != 1 {
			t.Errorf("%s: %d secrets, want %v", what, len(got), tc.want)
		}
	}
}

// cut begins a record that never ends.
func cut(c net.Conn) error {
	_, err := c.Write([]byte{0, 0, 0, 9, 1})
	return err
}

// FuzzSecretQuestion: whatever is asked, the answer ends and holds no value.
func FuzzSecretQuestion(f *testing.F) {
	var b bytes.Buffer
	if err := writeRecord(&b, secretRequest{crdt.DocID{7}, []string{"DB"}}); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	f.Add([]byte{0, 0, 0, 1, 0xa0})
	view := crdt.NewState(network, stmt.Key{}, crdt.NewModel()).View()
	f.Fuzz(func(t *testing.T, asked []byte) {
		v := NewVault(VaultConfig{
			Key: keyOf(1), View: func() *crdt.View { return view }, World: func() plan.World { return plan.World{} }, Now: func() time.Duration { return 0 },
		})
		v.known[crdt.DocID{7}.String()] = []crdt.Secret{{Name: "DB"}}
		v.held[crdt.DocID{7}.String()] = map[string]seal.Frame{"DB": append(make(seal.Frame, 32), hunter...)}
		c := &question{in: bytes.NewReader(asked)}
		_ = v.respond(PeerOf(stmt.KeyOf(keyOf(2))), c)
		if bytes.Contains(c.out.Bytes(), []byte(hunter)) {
			t.Fatal("a value is told")
		}
	})
}

// question is a stream with a question that is over.
type question struct {
	net.Conn
	in  *bytes.Reader
	out bytes.Buffer
}

func (q *question) Read(p []byte) (int, error)  { return q.in.Read(p) }
func (q *question) Write(p []byte) (int, error) { return q.out.Write(p) }
