package crdt

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/formthefog/formation/crdt/stmt"
)

// someSecret is a secret that nobody can open: the state does not look inside.
func someSecret(name string, value byte) Secret {
	return Secret{Name: name, Sum: [32]byte{value}, Box: []byte{value, value}, To: []stmt.Key{pub("n1")}, Env: value%2 == 0}
}

// drawSecret has an author set or remove a secret.
func (w *world) drawSecret(t *rapid.T, a *Author, id string) {
	name := rapid.SampledFrom([]string{"A", "b.c", "D_1"}).Draw(t, "name")
	var raws [][]byte
	var err error
	if rapid.Bool().Draw(t, "remove") {
		raws, err = a.RemoveSecret(id, name)
	} else {
		raws, err = a.SetSecret(id, someSecret(name, rapid.Byte().Filter(func(b byte) bool { return b > 0 }).Draw(t, "value")))
	}
	if err != nil && !errors.Is(err, ErrNoSecret) {
		t.Fatalf("secret: %v", err)
	}
	w.raws = append(w.raws, raws...)
}

// signSecret signs whatever body as an owner's secret.
func (w *world) signSecret(owner string, epoch, seq uint64, b secretBody) []byte {
	body, err := stmt.Marshal(b)
	return w.register(owner, stmt.KindSecret, epoch, seq, body, err)
}

// A plain map from name to the highest (epoch, seq, ID) says what an instance's
// secrets are, in whatever order, how often and with what losses they came.
func TestSecretsAgreeWithTheModel(t *testing.T) {
	w := newWorld(t)
	w.admit("olga", stmt.RoleOwner)
	a := w.author("olga", nil)
	id, created, err := a.Create(Spec{Name: "hello"})
	if err != nil {
		t.Fatal(err)
	}
	d := a.state.docs.get(mustDoc(t, id))
	dev, ctr := d.device, d.counter
	base := append(slices.Clone(w.raws), created...)
	rapid.Check(t, func(rt *rapid.T) {
		type held struct {
			r rec
			b secretBody
		}
		model := map[string]held{}
		raws := slices.Clone(base)
		for range rapid.IntRange(1, 30).Draw(rt, "statements") {
			b := secretBody{Device: dev, Counter: ctr, Name: fmt.Sprintf("N%d", rapid.IntRange(0, 5).Draw(rt, "name"))}
			if rapid.IntRange(0, 2).Draw(rt, "gone") == 0 {
				b.Gone = true
			} else {
				v := rapid.ByteRange(1, 3).Draw(rt, "value")
				b.Sum, b.Box = stmt.ID{v}, []byte{v}
			}
			raw := w.signSecret("olga", rapid.Uint64Range(0, 2).Draw(rt, "epoch"), rapid.Uint64Range(0, 3).Draw(rt, "seq"), b)
			raws = append(raws, raw)
			st, err := stmt.Peek(raw, w.net)
			if err != nil {
				rt.Fatal(err)
			}
			if old, ok := model[b.Name]; !ok || recOf(st).beats(old.r) {
				model[b.Name] = held{recOf(st), b}
			}
		}
		s := w.state()
		applyAll(s, shuffled(rt, raws))
		want := ""
		for _, n := range slices.Sorted(maps.Keys(model)) {
			if b := model[n].b; !b.Gone {
				want += fmt.Sprintf("%s=%x ", n, b.Box)
			}
		}
		got := ""
		for _, c := range s.View().Secrets(id) {
			got += fmt.Sprintf("%s=%x ", c.Name, c.Box)
		}
		if got != want {
			rt.Fatalf("holds %s\nwant %s", got, want)
		}
		if n := len(s.secrets[mustDoc(t, id)]); n != len(model) {
			rt.Fatalf("%d registers, want %d", n, len(model))
		}
	})
}

// withSecret is an instance of olga's with one secret, KEY.
func withSecret(t *testing.T) (w *world, a *Author, id string, raws, set [][]byte) {
	t.Helper()
	w = newWorld(t)
	w.admit("olga", stmt.RoleOwner)
	a = w.author("olga", nil)
	id, raws, err := a.Create(Spec{Name: "hello"})
	if err != nil {
		t.Fatal(err)
	}
	if set, err = a.SetSecret(id, someSecret("KEY", 1)); err != nil {
		t.Fatal(err)
	}
	return w, a, id, raws, set
}

func TestSecretsOfTheOwnerAlone(t *testing.T) {
	w, a, id, raws, set := withSecret(t)
	w.admit("eve", stmt.RoleOwner)
	s := w.state()
	// The secret comes first: it waits for its instance.
	applyAll(s, append(append(slices.Clone(w.raws), set...), raws...))
	if got := s.View().Secrets(id); len(got) != 1 || got[0].Name != "KEY" || got[0].SetAt != testNow.Unix() || got[0].To[0] != pub("n1") {
		t.Fatalf("secrets %+v", got)
	}
	st, err := stmt.Peek(set[0], w.net)
	if err != nil {
		t.Fatal(err)
	}
	good, err := decodeSecret(st)
	if err != nil {
		t.Fatal(err)
	}
	eve := *good
	eve.Box = []byte("eve")
	applyAll(s, [][]byte{w.signSecret("eve", 9, 9, eve)})
	if got := s.View().Secrets(id); len(got) != 1 || string(got[0].Box) == "eve" {
		t.Fatalf("another owner set %+v", got)
	}
	for what, spoil := range map[string]func(*secretBody){
		"no name":                 func(b *secretBody) { b.Name = "" },
		"a path":                  func(b *secretBody) { b.Name = "../x" },
		"a hidden name":           func(b *secretBody) { b.Name = ".x" },
		"an option":               func(b *secretBody) { b.Name = "-x" },
		"a long name":             func(b *secretBody) { b.Name = strings.Repeat("x", MaxSecretName+1) },
		"no box":                  func(b *secretBody) { b.Box = nil },
		"a large box":             func(b *secretBody) { b.Box = make([]byte, maxSecretBox+1) },
		"no sum":                  func(b *secretBody) { b.Sum = stmt.ID{} },
		"removed, with a value":   func(b *secretBody) { b.Gone = true },
		"recipients out of order": func(b *secretBody) { b.To = []stmt.Key{{2}, {1}} },
		"nobody as recipient":     func(b *secretBody) { b.To = []stmt.Key{{}} },
		"many recipients": func(b *secretBody) {
			b.To = nil
			for i := range MaxRecipients + 1 {
				b.To = append(b.To, stmt.Key{byte(i + 1)})
			}
		},
	} {
		b := *good
		spoil(&b)
		if changed, err := s.Apply(w.signSecret("olga", 9, 9, b), testNow); changed || !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v, %v; want ErrInvalid", what, changed, err)
		}
	}
	later, err := a.SetSecret(id, someSecret("KEY", 2))
	if err != nil {
		t.Fatal(err)
	}
	applyAll(s, later)
	if changed, err := s.Apply(set[0], testNow); changed || !errors.Is(err, ErrStale) {
		t.Errorf("a replay: %v, %v", changed, err)
	}
	applyAll(s, [][]byte{w.member(stmt.MemberBody{Key: pub("olga"), Revoked: true})})
	if got := s.View().Secrets(id); len(got) != 0 || len(s.secrets) != 0 {
		t.Errorf("secrets of a revoked owner: %+v, %d held", got, len(s.secrets))
	}
}

// Secrets end with their instance, and no replay brings them back.
func TestSecretsEndWithTheirInstance(t *testing.T) {
	w, a, id, raws, set := withSecret(t)
	deleted, err := a.Delete(id)
	if err != nil {
		t.Fatal(err)
	}
	all := append(append(append(slices.Clone(w.raws), raws...), set...), deleted...)
	s := w.state()
	applyAll(s, all)
	applyAll(s, all)
	if len(s.secrets) != 0 || len(s.OwnerStatements(pub("olga"))) != 1 {
		t.Errorf("%d instances' secrets and %d statements are held", len(s.secrets), len(s.OwnerStatements(pub("olga"))))
	}
	if _, err := a.SetSecret(id, someSecret("KEY", 2)); !errors.Is(err, ErrNotFound) {
		t.Errorf("a secret of a deleted instance: %v", err)
	}
}

// However many names an owner signs, the first by name are held on every replica.
func TestSecretNamesAreBounded(t *testing.T) {
	w := newWorld(t)
	w.admit("olga", stmt.RoleOwner)
	a := w.author("olga", nil)
	id, created, err := a.Create(Spec{Name: "hello"})
	if err != nil {
		t.Fatal(err)
	}
	w.raws = append(w.raws, created...)
	d := a.state.docs.get(mustDoc(t, id))
	dev, ctr := d.device, d.counter
	for i := range maxSecretNames + 40 {
		w.signSecret("olga", 0, 1, secretBody{Device: dev, Counter: ctr, Name: fmt.Sprintf("n%03d", i), Sum: stmt.ID{1}, Box: []byte{1}})
	}
	rapid.Check(t, func(t *rapid.T) {
		s := w.state()
		applyAll(s, shuffled(t, w.raws))
		applyAll(s, w.raws) // what waited for its instance beyond the bound comes again
		got := s.View().Secrets(id)
		if len(got) != MaxSecrets || got[0].Name != "n000" || got[MaxSecrets-1].Name != fmt.Sprintf("n%03d", MaxSecrets-1) {
			t.Fatalf("%d secrets count", len(got))
		}
		held := s.heldSecrets(mustDoc(t, id))
		if len(held) != maxSecretNames || held[maxSecretNames-1].secret.Name != fmt.Sprintf("n%03d", maxSecretNames-1) {
			t.Fatalf("%d names are held", len(held))
		}
		if s.ids.len() != len(s.index().items) {
			t.Fatalf("%d IDs, %d statements", s.ids.len(), len(s.index().items))
		}
	})
}

// All secrets of one owner are bounded together: the first names by instance and
// name are held, in whatever order they came.
func TestSecretsOfOneOwnerAreBounded(t *testing.T) {
	w := newWorld(t)
	w.admit("olga", stmt.RoleOwner)
	a := w.author("olga", nil)
	type key struct {
		id   DocID
		name string
	}
	var all []key
	var secrets []*stmt.Statement
	for range maxOwnerSecrets/maxSecretNames + 2 {
		id, raws, err := a.Create(Spec{Name: "hello"})
		if err != nil {
			t.Fatal(err)
		}
		w.raws = append(w.raws, raws...)
		doc := mustDoc(t, id)
		d := a.state.docs.get(doc)
		for i := range maxSecretNames {
			name := fmt.Sprintf("n%03d", i)
			all = append(all, key{doc, name})
			st, err := stmt.Verify(w.signSecret("olga", 0, 1, secretBody{
				Device: d.device, Counter: d.counter, Name: name, Gone: true,
			}), w.net)
			if err != nil {
				t.Fatal(err)
			}
			secrets = append(secrets, st)
		}
	}
	slices.SortFunc(all, func(a, b key) int {
		return cmp.Or(compareDocs(a.id, b.id), strings.Compare(a.name, b.name))
	})
	for seed := range uint64(6) { // each costs a second under the race detector
		s := w.state()
		applyAll(s, w.raws)
		rng := rand.New(rand.NewPCG(seed, 0))
		for _, i := range rng.Perm(len(secrets)) {
			if _, err := s.applyNews(secrets[i], time.Time{}); err != nil && !errors.Is(err, ErrQuota) {
				t.Fatal(err)
			}
		}
		var held []key
		for id, names := range s.secrets {
			for name := range names {
				held = append(held, key{id, name})
			}
		}
		slices.SortFunc(held, func(a, b key) int {
			return cmp.Or(compareDocs(a.id, b.id), strings.Compare(a.name, b.name))
		})
		if !slices.Equal(held, all[:maxOwnerSecrets]) {
			t.Fatalf("seed %d: %d names held, and not the first", seed, len(held))
		}
		if s.ids.len() != len(s.index().items) {
			t.Fatalf("seed %d: %d IDs, %d statements", seed, s.ids.len(), len(s.index().items))
		}
	}
}

// What an Author signs: the next number, within the bounds, also after a removal.
func TestAuthorsSecrets(t *testing.T) {
	w := newWorld(t)
	a := w.author("olga", nil)
	id, raws, err := a.Create(Spec{Name: "hello"})
	if err != nil {
		t.Fatal(err)
	}
	must := func(more [][]byte, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		raws = append(raws, more...)
	}
	must(a.SetSecret(id, someSecret("A", 1)))
	must(a.RemoveSecret(id, "A"))
	if _, err := a.RemoveSecret(id, "A"); !errors.Is(err, ErrNoSecret) {
		t.Errorf("removed twice: %v", err)
	}
	b := w.author("olga", raws) // another device
	must(b.SetSecret(id, someSecret("A", 2)))
	if got := b.Secrets(id); len(got) != 1 || got[0].Sum != [32]byte{2} {
		t.Errorf("after a removal and a new value: %+v", got)
	}
	for i := range MaxSecrets - 1 {
		must(b.SetSecret(id, someSecret(fmt.Sprintf("B%02d", i), 1)))
	}
	if _, err := b.SetSecret(id, someSecret("C", 1)); !errors.Is(err, ErrQuota) {
		t.Errorf("one more: %v", err)
	}
	must(b.SetSecret(id, someSecret("B00", 3))) // another value is no other secret
	if got := w.author("olga", raws).Secrets(id); len(got) != MaxSecrets {
		t.Errorf("another device sees %d secrets", len(got))
	}
	huge := someSecret("B00", 1)
	huge.Box = make([]byte, maxSecretBox+1)
	if _, err := b.SetSecret(id, huge); !errors.Is(err, ErrInvalid) {
		t.Errorf("a large box: %v", err)
	}
}

// What a replica hands out of an instance's claims proves them to whoever knows
// the network's root, and nobody else's claim can be slipped in.
func TestClaimStatementsProveTheClaims(t *testing.T) {
	w := newWorld(t)
	w.admit("olga", stmt.RoleOwner)
	w.admit("n1", stmt.RoleNode)
	w.admit("n2", stmt.RoleNode)
	a := w.author("olga", nil)
	id, created, err := a.Create(Spec{Name: "hello"})
	if err != nil {
		t.Fatal(err)
	}
	s := w.state()
	applyAll(s, append(slices.Clone(w.raws), created...))
	w.raws = nil
	for i, n := range []string{"n1", "n2"} {
		w.claim(n, 1, 1, Claim{Instance: id, Owner: pub("olga"), Slot: i, Phase: ClaimRunning}, false)
	}
	w.claim("n2", 1, 2, Claim{Instance: id, Owner: pub("olga"), Slot: 5}, true)
	stranger := w.claim("stranger", 1, 1, Claim{Instance: id, Owner: pub("olga"), Slot: 2, Phase: ClaimRunning}, false)
	applyAll(s, w.raws)
	proof := s.ClaimStatements(mustDoc(t, id))
	if len(proof) != 4 {
		t.Fatalf("%d statements, want two admissions and two claims", len(proof))
	}
	fresh := w.state()
	applyAll(fresh, proof)
	applyAll(fresh, [][]byte{stranger})
	if got, want := fmt.Sprint(fresh.View().Claims(id)), fmt.Sprint(s.View().Claims(id)); got != want || len(fresh.View().Claims(id)) != 2 {
		t.Fatalf("proves %s\nwant %s", got, want)
	}
}

// What a replica hands out for an owner's mesh proves, to whoever knows the
// network's root, the owner's devices and who runs its instances, and nothing of
// another owner's.
func TestMeshStatementsProveAnOwnersMesh(t *testing.T) {
	for name, admit := range map[string]func(w *world){
		"an admitted owner": func(w *world) { w.admit("olga", stmt.RoleOwner) },
		"an operator":       func(w *world) { w.admit("olga", stmt.RoleOperator) },
		"any owner":         func(w *world) { w.member(stmt.MemberBody{AnyOwner: true, Role: stmt.RoleOwner}) },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			admit(w)
			w.admit("otto", stmt.RoleOwner)
			w.admit("n1", stmt.RoleNode)
			w.admit("n2", stmt.RoleNode)
			s := w.state()
			applyAll(s, w.raws)
			w.raws = nil
			ids := map[string]string{}
			for _, owner := range []string{"olga", "otto"} {
				a := w.author(owner, nil)
				id, created, err := a.Create(Spec{Name: "hello"})
				if err != nil {
					t.Fatal(err)
				}
				device, err := a.SetDevice(Device{Key: pub(owner + "'s laptop"), Name: "laptop", MeshKey: stmt.Key{9, 9}})
				if err != nil {
					t.Fatal(err)
				}
				applyAll(s, append(created, device...))
				w.claim("n1", 1, uint64(len(ids)+1), Claim{Instance: id, Owner: pub(owner), Phase: ClaimRunning}, false)
				w.claim("n2", 1, uint64(len(ids)+1), Claim{Instance: id, Owner: pub(owner), Slot: 1, Phase: ClaimRunning}, false)
				w.claim("n3", 1, uint64(len(ids)+1), Claim{Instance: id, Owner: pub(owner), Slot: 1, Phase: ClaimRunning}, false)
				ids[owner] = id
			}
			applyAll(s, w.raws)
			fresh := w.state()
			applyAll(fresh, s.MeshStatements(pub("olga")))
			got, want := fresh.View(), s.View()
			if got, want := fmt.Sprint(got.Devices(pub("olga"))), fmt.Sprint(want.Devices(pub("olga"))); got != want || got == "[]" {
				t.Errorf("devices %s, want %s", got, want)
			}
			if got, want := fmt.Sprint(got.Claims(ids["olga"])), fmt.Sprint(want.Claims(ids["olga"])); got != want || len(want) < 10 {
				t.Errorf("claims %s, want %s", got, want)
			}
			if n := len(got.InstancesOf(pub("olga"))); n != 1 {
				t.Errorf("%d instances, want one", n)
			}
			if len(got.InstancesOf(pub("otto")))+len(got.Devices(pub("otto")))+len(got.Claims(ids["otto"])) > 0 {
				t.Error("it tells of another owner")
			}
		})
	}
}
