package seal

import (
	"bytes"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/stmt"
)

func keyOf(n byte) ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{n}, ed25519.SeedSize))
}

func pub(n byte) stmt.Key { return stmt.KeyOf(keyOf(n)) }

func TestBoxOpensForItsRecipientsAlone(t *testing.T) {
	f, err := New([]byte("hunter2"))
	if err != nil {
		t.Fatal(err)
	}
	box, to, err := Box(f, pub(1), []stmt.Key{pub(2), pub(3)})
	if err != nil || len(to) != 2 {
		t.Fatalf("box: %v, for %v", err, to)
	}
	if bytes.Contains(box, []byte("hunter2")) {
		t.Fatal("the value can be read in the box")
	}
	for n := byte(1); n <= 3; n++ {
		got, err := Open(keyOf(n), box, f.Sum())
		if err != nil || string(got.Value()) != "hunter2" {
			t.Errorf("key %d: %v", n, err)
		}
	}
	if _, err := Open(keyOf(4), box, f.Sum()); !errors.Is(err, ErrNotForUs) {
		t.Errorf("a stranger: %v, want ErrNotForUs", err)
	}
	if _, err := Open(keyOf(2), box, [32]byte{1}); !errors.Is(err, ErrDamaged) {
		t.Errorf("another sum: %v, want ErrDamaged", err)
	}
	for i := range box {
		bad := bytes.Clone(box)
		bad[i] ^= 1
		if got, err := Open(keyOf(1), bad, f.Sum()); err == nil && string(got.Value()) != "hunter2" {
			t.Fatalf("byte %d changed: opens as something else", i)
		}
		if _, err := Open(keyOf(1), box[:i], f.Sum()); err == nil {
			t.Fatalf("cut at %d: opens", i)
		}
	}
}

// The bounds of package crdt hold what is made here, and no more is made.
func TestTheLargestFits(t *testing.T) {
	if MaxValue != crdt.MaxSecretValue {
		t.Fatalf("a value has %d bytes here and %d there", MaxValue, crdt.MaxSecretValue)
	}
	f, err := New(make([]byte, MaxValue))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := New(make([]byte, MaxValue+1)); !errors.Is(err, ErrTooLarge) {
		t.Errorf("one byte more: %v", err)
	}
	var nodes []stmt.Key
	for n := range crdt.MaxRecipients {
		nodes = append(nodes, pub(byte(n+2)))
	}
	box, to, err := Box(f, pub(1), nodes)
	if err != nil {
		t.Fatal(err)
	}
	network := stmt.NewNetworkID("test", stmt.Key{})
	a, err := crdt.NewAuthor(keyOf(1), network, nil)
	if err != nil {
		t.Fatal(err)
	}
	id, _, err := a.Create(crdt.Spec{Name: "hello"})
	if err != nil {
		t.Fatal(err)
	}
	raws, err := a.SetSecret(id, crdt.Secret{Name: strings.Repeat("n", crdt.MaxSecretName), Box: box, Sum: f.Sum(), To: to, Env: true})
	if err != nil {
		t.Fatalf("a box of %d bytes: %v", len(box), err)
	}
	if len(raws[0]) > stmt.MaxStatement {
		t.Errorf("a statement of %d bytes", len(raws[0]))
	}
}

// A made-up key of small order would let nobody decrypt and must not keep the
// others from it.
func TestUselessKeysAreLeftOut(t *testing.T) {
	f, err := New([]byte("x"))
	if err != nil {
		t.Fatal(err)
	}
	small := stmt.Key{1} // the neutral element
	box, to, err := Box(f, pub(1), []stmt.Key{small, pub(2)})
	if err != nil || len(to) != 1 || to[0] != pub(2) {
		t.Fatalf("%v, for %v", err, to)
	}
	if _, err := Open(keyOf(2), box, f.Sum()); err != nil {
		t.Error(err)
	}
	if _, _, err := Box(f, small, nil); err == nil {
		t.Error("an owner nobody is")
	}
}

func TestFrameDoesNotShowItself(t *testing.T) {
	f, err := New([]byte("hunter2"))
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "frame", f)
	j, err := json.Marshal(map[string]any{"f": f})
	if err != nil {
		t.Fatal(err)
	}
	held := struct{ F Frame }{f}
	for _, s := range []string{log.String(), string(j), fmt.Sprint(f), fmt.Sprintf("%v %+v %#v %s %q %x", held, held, held, f, f, f)} {
		if strings.Contains(s, "hunter2") || strings.Contains(s, "68756e746572") || strings.Contains(s, "aHVudGVy") || strings.Contains(s, "104") {
			t.Errorf("shows itself: %s", s)
		}
	}
}

// Whatever a box holds, opening ends, and gives only what has the sum.
func FuzzOpen(f *testing.F) {
	frame, err := New([]byte("hunter2"))
	if err != nil {
		f.Fatal(err)
	}
	box, _, err := Box(frame, pub(1), nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(box)
	f.Add([]byte("age-encryption.org/v1\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if got, err := Open(keyOf(1), b, frame.Sum()); err == nil && !bytes.Equal(got, frame) {
			t.Fatal("another frame has the sum")
		}
	})
}
