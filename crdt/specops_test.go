package crdt

import (
	"bytes"
	"fmt"
	"testing"

	"pgregory.net/rapid"

	"github.com/formthefog/formation/crdt/stmt"
)

// bodyModel is the body of a spec in the words of the CBOR library.
type bodyModel struct {
	Device    stmt.Key            `cbor:"dev"`
	Counter   uint64              `cbor:"ctr"`
	Actor     ActorID             `cbor:"act"`
	Root      stmt.ID             `cbor:"root,omitzero"`
	Ops       map[string]stmt.Raw `cbor:"ops"`
	Delegates []stmt.Key          `cbor:"delegates,omitempty"`
	Owner     stmt.Key            `cbor:"own,omitzero"`
}

// What is written by hand is what the library writes, and what is read of it is
// what was written.
func TestSpecBodyAsTheLibraryHasIt(t *testing.T) {
	w := newWorld(t)
	rapid.Check(t, func(t *rapid.T) {
		key := func(what string) stmt.Key {
			return pub(rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, what))
		}
		b := specBody{Device: key("device"), Counter: rapid.Uint64().Draw(t, "counter"), Actor: ActorID{rapid.Byte().Draw(t, "actor")}}
		env := stmt.Statement{Kind: stmt.KindSpec, Network: w.net, Epoch: 1, Seq: 1}
		if rapid.Bool().Draw(t, "change") {
			b.Root, env.Deps = stmt.ID{1}, []stmt.ID{{1}}
			if rapid.Bool().Draw(t, "guest") {
				b.Owner = key("owner")
			}
		} else if rapid.Bool().Draw(t, "delegates") {
			b.Delegates = sortedKeys([]stmt.Key{pub("d"), key("delegate")})
		}
		values := rapid.SampledFrom([][]byte{{0xf6}, {0x18, 0x64}, stmt.AppendText(nil, "text"), {0x82, 0x61, 'a', 0xa0}})
		for k, v := range rapid.MapOfN(rapid.StringN(1, 30, maxKey), values, 1, MaxOps).Draw(t, "ops") {
			b.Ops = append(b.Ops, Op{k, v})
		}
		sortOps(b.Ops)
		m := bodyModel{b.Device, b.Counter, b.Actor, b.Root, map[string]stmt.Raw{}, b.Delegates, b.Owner}
		for _, op := range b.Ops {
			m.Ops[op.Key] = op.Value
		}
		want, err := stmt.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		got, err := b.encode()
		if err != nil || !bytes.Equal(got, want) {
			t.Fatalf("written %x (%v), want %x", got, err, want)
		}
		env.Body = got
		raw, err := stmt.Sign(keyOf("author"), env)
		if err != nil {
			t.Fatal(err)
		}
		st, err := stmt.Peek(raw, w.net)
		if err != nil {
			t.Fatal(err)
		}
		if read, _, err := decodeSpec(st); err != nil || fmt.Sprintf("%+v", *read) != fmt.Sprintf("%+v", b) {
			t.Fatalf("read %+v (%v), want %+v", read, err, b)
		}
	})
}

func specFrom(vals []Op) *Spec {
	s := &Spec{}
	s.setValues(vals)
	return s
}

// The ops that turn one spec into another do so, and are none where nothing
// changed.
func TestOpsBetweenSpecs(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		draw := func(what string) *Spec {
			var vals []Op
			for _, k := range []string{keyName, keyReplicas, keyPhase, keyMemory, keyExpose, keyVoters, "env/A", "label/b", "x", keyCritical} {
				v := rapid.SampledFrom([]any{nil, 2, "stopped", "a", []string{"22/tcp"}, []stmt.Key{pub("a")}}).Draw(t, what+" "+k)
				if v == nil {
					continue
				}
				b, err := stmt.Marshal(v)
				if err != nil {
					t.Fatal(err)
				}
				vals = append(vals, Op{k, b})
			}
			sortOps(vals)
			return specFrom(vals)
		}
		full := func(s *Spec) []Op {
			ops, err := s.opsFrom(&Spec{})
			if err != nil {
				t.Fatal(err)
			}
			return ops
		}
		old, now := draw("old"), draw("new")
		ops, err := now.opsFrom(old)
		if err != nil {
			t.Fatal(err)
		}
		if same := fmt.Sprint(opMap(full(old))) == fmt.Sprint(opMap(full(now))); same != (len(ops) == 0) {
			t.Fatalf("%d ops between %+v and %+v", len(ops), old, now)
		}
		got, want := specFrom(replaced(full(old), ops)), specFrom(full(now))
		if fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", want) {
			t.Fatalf("%v make %+v of %+v, want %+v", ops, got, old, want)
		}
	})
}
