package crdt

import (
	"errors"
	"fmt"
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
