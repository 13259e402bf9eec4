package crdt

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/formthefog/formation/crdt/stmt"
)

// A listed device speaks for its owner until it is removed, which is for ever,
// whoever replays what.
func TestDevices(t *testing.T) {
	w := newWorld(t)
	w.admit("olga", stmt.RoleOwner)
	a := w.author("olga", nil)
	s := w.state()
	applyAll(s, w.raws)
	var all [][]byte
	do := func(raws [][]byte, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, raws...)
		applyAll(s, raws)
	}
	phone := pub("phone")
	do(a.SetDevice(Device{Key: phone, Name: "phone"}))
	do(a.SetDevice(Device{Key: pub("ci"), MeshKey: pub("mesh")}))
	do(a.SetDevice(Device{Key: phone, Name: "pixel"}))
	before := s.View()
	if got := before.Devices(pub("olga")); len(got) != 2 {
		t.Fatalf("devices %+v", got)
	}
	for _, d := range before.Devices(pub("olga")) {
		if d.Key == phone && d.Name != "pixel" || d.Key == pub("ci") && d.MeshKey != pub("mesh") {
			t.Errorf("device %+v", d)
		}
	}
	for key, want := range map[string]bool{"phone": true, "ci": true, "olga": true, "eve": false} {
		if before.SpeaksFor(pub(key), pub("olga")) != want || before.SpeaksFor(pub(key), pub("otto")) {
			t.Errorf("%s speaks for an owner: want %v of olga", key, want)
		}
	}
	do(a.RemoveDevice(phone))
	for range 2 {
		if v := s.View(); v.SpeaksFor(phone, pub("olga")) || len(v.Devices(pub("olga"))) != 1 {
			t.Fatalf("devices %+v", v.Devices(pub("olga")))
		}
		applyAll(s, all)
	}
	if !before.SpeaksFor(phone, pub("olga")) {
		t.Error("a View that was given out has changed")
	}
	for name, f := range map[string]func() ([][]byte, error){
		"a removed one":  func() ([][]byte, error) { return a.SetDevice(Device{Key: phone}) },
		"the owner":      func() ([][]byte, error) { return a.SetDevice(Device{Key: pub("olga")}) },
		"nobody":         func() ([][]byte, error) { return a.SetDevice(Device{}) },
		"a bad name":     func() ([][]byte, error) { return a.SetDevice(Device{Key: pub("x"), Name: "My Phone"}) },
		"a foreign hand": func() ([][]byte, error) { return w.delegate("dee", "olga", w.raws).SetDevice(Device{Key: pub("x")}) },
	} {
		if raws, err := f(); len(raws) > 0 || !errors.Is(err, ErrInvalid) && !errors.Is(err, ErrNotOwner) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := a.RemoveDevice(phone); !errors.Is(err, ErrNotFound) {
		t.Errorf("removed twice: %v", err)
	}
	// Without its owner a device is nobody.
	applyAll(s, [][]byte{w.member(stmt.MemberBody{Key: pub("olga"), Revoked: true})})
	if v := s.View(); v.SpeaksFor(pub("ci"), pub("olga")) || len(v.Devices(pub("olga"))) != 0 {
		t.Error("a device of a revoked owner speaks")
	}
}

// A node that its owner lists speaks for nobody, and is never a device. Who asks for
// the owner's statements as a device is told of the nodes that the owner or the root
// names, and of no other that names the owner.
func TestOwnNodes(t *testing.T) {
	w := newWorld(t)
	w.admit("olga", stmt.RoleOwner)
	for _, n := range []string{"n1", "n2", "mallory"} {
		w.admit(n, stmt.RoleNode)
	}
	w.member(stmt.MemberBody{Key: pub("n2"), Role: stmt.RoleNode, Operator: pub("olga")})
	a := w.author("olga", nil)
	s := w.state()
	applyAll(s, w.raws)
	for _, n := range []string{"n1", "n2", "mallory"} {
		by, err := stmt.SignOperators(keyOf(n), w.net, []stmt.Key{pub("olga")})
		if err != nil {
			t.Fatal(err)
		}
		applyAll(s, [][]byte{w.node(n, 1, 1, Node{Operators: by, MeshKey: pub("mesh " + n)})})
	}
	do := func(raws [][]byte, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		applyAll(s, raws)
	}
	do(a.SetDevice(Device{Key: pub("phone"), MeshKey: pub("mesh")}))
	do(a.SetDevice(Device{Key: pub("n1"), Name: "attic", Node: true}))
	v := s.View()
	if v.SpeaksFor(pub("n1"), pub("olga")) || !v.SpeaksFor(pub("phone"), pub("olga")) {
		t.Error("a node speaks for its owner, or the phone does not")
	}
	if _, err := a.SetDevice(Device{Key: pub("n1")}); !errors.Is(err, ErrInvalid) {
		t.Errorf("a node as a device: %v", err)
	}
	if _, err := a.SetDevice(Device{Key: pub("phone"), Node: true}); !errors.Is(err, ErrInvalid) {
		t.Errorf("a device as a node: %v", err)
	}
	if _, err := a.SetDevice(Device{Key: pub("n3"), MeshKey: pub("mesh"), Node: true}); !errors.Is(err, ErrInvalid) {
		t.Errorf("a node with a mesh key: %v", err)
	}
	told := func() string {
		fresh := w.state()
		for _, raw := range s.DeviceStatements(pub("olga")) {
			if _, err := fresh.Apply(raw, time.Time{}); err != nil && !errors.Is(err, ErrStale) {
				t.Error(err)
			}
		}
		out := ""
		for _, n := range fresh.View().Nodes() {
			for _, name := range []string{"n1", "n2", "mallory"} {
				if n.Key == pub(name) {
					out += " " + name
				}
			}
		}
		return out
	}
	if got := told(); !strings.Contains(got, "n1") || !strings.Contains(got, "n2") || strings.Contains(got, "mallory") {
		t.Errorf("told of%s", got)
	}
	do(a.RemoveDevice(pub("n1")))
	if got := told(); got != " n2" {
		t.Errorf("with n1 removed told of%s", got)
	}
}

// Devices come and go for years within the size of a statement, and do not
// disturb the instances.
func TestManyDevices(t *testing.T) {
	w := newWorld(t)
	w.admit("olga", stmt.RoleOwner)
	a := w.author("olga", nil)
	s := w.state()
	applyAll(s, w.raws)
	id, raws, err := a.Create(Spec{Name: "hello"})
	if err != nil {
		t.Fatal(err)
	}
	applyAll(s, raws)
	for i := range 1000 {
		key := pub(fmt.Sprint("device", i))
		key[0] = byte(i) // public keys are spread evenly; these need not be ones
		raws, err := a.SetDevice(Device{Key: key, Name: "d", MeshKey: key})
		if err != nil {
			t.Fatalf("device %d: %v", i, err)
		}
		applyAll(s, raws)
		if i >= 20 {
			raws, err = a.RemoveDevice(a.Devices()[i%20].Key)
			if err != nil {
				t.Fatal(err)
			}
			applyAll(s, raws)
		}
	}
	if n := len(s.View().Devices(pub("olga"))); n != 20 {
		t.Fatalf("%d devices", n)
	}
	if _, ok := s.View().Instance(id); !ok || len(s.owners[pub("olga")].stmts) > 65 {
		t.Fatalf("instance there: %v, %d owner statements", ok, len(s.owners[pub("olga")].stmts))
	}
	for i := range MaxDevices - 20 {
		if _, err := a.SetDevice(Device{Key: pub(fmt.Sprint("more", i))}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := a.SetDevice(Device{Key: pub("last")}); !errors.Is(err, ErrQuota) {
		t.Fatalf("one too many: %v", err)
	}
}

// Malformed device lists are refused whole.
func TestDeviceListsAreStrict(t *testing.T) {
	w := newWorld(t)
	w.admit("olga", stmt.RoleOwner)
	s := w.state()
	applyAll(s, w.raws)
	k := func(n byte) stmt.Key { return stmt.Key{n} }
	for name, b := range map[string]ownerBody{
		"order":     {Devices: []deviceBody{{Key: k(2)}, {Key: k(1)}}},
		"repeated":  {Devices: []deviceBody{{Key: k(2)}, {Key: k(2), Number: 1}}},
		"gone too":  {Devices: []deviceBody{{Key: k(2)}}, Gone: []stmt.Key{k(2)}},
		"gone":      {Gone: []stmt.Key{k(2), k(1)}},
		"itself":    {Devices: []deviceBody{{Key: pub("olga")}}},
		"name":      {Devices: []deviceBody{{Key: k(1), Name: "-"}}},
		"no key":    {Devices: []deviceBody{{}}},
		"far ahead": {Devices: []deviceBody{{Key: k(1), Number: maxDeviceNumber}}},
	} {
		body, err := stmt.Marshal(b)
		if _, err := s.Apply(w.register("olga", stmt.KindOwner, 0, 0, body, err), time.Time{}); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
