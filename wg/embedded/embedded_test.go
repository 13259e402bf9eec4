package embedded_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/formthefog/formation/wg/embedded"
	"github.com/formthefog/formation/wg/wgtest"
)

func TestDeviceConforms(t *testing.T) {
	wgtest.Conform(t, wgtest.NewStation(t, wgtest.NewWire(nil), 1, "a"))
}

func TestTwoDevicesTalk(t *testing.T) {
	wire := wgtest.NewWire(nil)
	a, b := wgtest.NewStation(t, wire, 1, "a"), wgtest.NewStation(t, wire, 2, "b")
	a.Knows(t, b, b.At)
	b.Knows(t, a)
	a.Echo(t, b)
	peers, err := a.Peers()
	if err != nil || len(peers) != 1 {
		t.Fatal(peers, err)
	}
	if p := peers[0]; p.Handshake.IsZero() || time.Since(p.Handshake) > time.Hour || p.Received == 0 || p.Sent == 0 {
		t.Errorf("status %+v", p)
	}
}

// wg is the judge of what it sees on the control socket.
func TestControlSocket(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("control sockets need root")
	}
	wire := wgtest.NewWire(nil)
	name := fmt.Sprintf("formtest%d", os.Getpid()%1e6)
	a, b := wgtest.NewStation(t, wire, 1, name), wgtest.NewStation(t, wire, 2, "b")
	a.Knows(t, b, b.At)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- a.Serve(ctx) }()
	var out []byte
	for range 500 {
		var err error
		if out, err = exec.CommandContext(ctx, "wg", "show", name, "peers").CombinedOutput(); err == nil {
			break
		}
		select {
		case err := <-done:
			t.Fatal("Serve ended: ", err)
		case <-time.After(20 * time.Millisecond):
		}
	}
	if got, want := strings.TrimSpace(string(out)), b.Public.String(); got != want {
		t.Errorf("wg show says %q, want %q", got, want)
	}
	if out, err := exec.CommandContext(ctx, "wg", "set", name, "peer", b.Public.String(), "remove").CombinedOutput(); err != nil {
		t.Errorf("wg set: %v: %s", err, out)
	}
	if peers, err := a.Peers(); err != nil || len(peers) != 0 {
		t.Errorf("after wg removed the peer: %v, %v", peers, err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(embedded.ControlDir + "/" + name + ".sock"); !os.IsNotExist(err) {
		t.Errorf("the socket is left: %v", err)
	}
}
