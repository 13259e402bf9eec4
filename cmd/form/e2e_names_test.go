//go:build e2e

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/formthefog/formation/crdt/names"
	"github.com/formthefog/formation/crdt/stmt"
	"github.com/formthefog/formation/wg/wgtest"
)

// TestE2ENames: a standard client that was made by form net config asks a node of its
// owner's about names, over the mesh; wg-quick takes either way of being told so.
func TestE2ENames(t *testing.T) {
	far, near := wgtest.NewNamespace(t, "node"), wgtest.NewNamespace(t, "laptop")
	wgtest.Link(far, "eth0", "10.9.0.1/24", near, "eth0", "10.9.0.2/24")
	f := emptyFleet(t)
	f.user().must("kit", "init", "--yes")
	owner := strings.Fields(f.user().must("key", "show"))[2]
	m := f.startIn(far, "--mesh", "userspace", "--vm-driver", "fake", "--operator", owner)
	me := f.as(m)
	me.must("node", "operator", m.peer)
	me.must("net", "config", "--device", "router")
	f.eventually(30*time.Second, "the node to be a peer of its owner's devices", func() error {
		if !strings.Contains(me.must("net", "config", "--peers", "router"), "[Peer]") {
			return errors.New("it is none")
		}
		return nil
	})
	key, err := stmt.ParseKey(m.peer)
	if err != nil {
		t.Fatal(err)
	}
	told := tellers(t)
	for i, c := range []struct{ way, up, down string }{
		{"mesh", "resolvectl dns IFACE SERVER\nresolvectl domain IFACE ~dev.formation.cloud\nresolvectl default-route IFACE false\n", ""},
		{"all", "resolvconf -a IFACE -m 0 -x <nameserver SERVER> <search dev.formation.cloud>\n", "resolvconf -d IFACE -f\n"},
	} {
		text := me.must("net", "config", "--device", "laptop-"+c.way, "--dns", c.way)
		server := nodeAddress(t, text)
		iface := fmt.Sprintf("fn%d%d", i, os.Getpid()%1_000_000)
		quick := newQuick(t, near, iface, text)
		fill := strings.NewReplacer("IFACE", iface, "SERVER", server).Replace
		quick("up")
		if got := told(); got != fill(c.up) {
			t.Errorf("--dns %s tells\n%swant\n%s", c.way, got, fill(c.up))
		}
		own := names.Label(key) + "." + names.Nodes + "." + stmt.DefaultZone
		f.eventually(30*time.Second, "the node's name", func() error {
			out, err := near.Output(t.Context(), "dig", "@"+server, "+time=2", "+tries=1", "+short", "AAAA", own)
			if err == nil && strings.TrimSpace(out) != server {
				err = fmt.Errorf("%s is %q, want %s", own, out, server)
			}
			return err
		})
		if out := near.Run("dig", "@"+server, "+time=5", "example.com"); !strings.Contains(out, "status: REFUSED") {
			t.Errorf("other names are not refused: %s", out)
		}
		quick("down")
		if got := told(); got != fill(c.down) {
			t.Errorf("in the end --dns %s tells\n%swant\n%s", c.way, got, fill(c.down))
		}
	}
}

// tellers puts a resolvectl and a resolvconf first in the PATH that write down how they
// are called; told returns, and forgets, that.
func tellers(t *testing.T) (told func() string) {
	dir := t.TempDir()
	calls := filepath.Join(dir, "calls")
	for name, stdin := range map[string]string{"resolvectl": "", "resolvconf": "[ \"$1\" != -a ] || while read -r l; do in=\"$in <$l>\"; done\n"} {
		script := fmt.Sprintf("#!/bin/sh\nin=\n%secho \"%s $*$in\" >>%s\n", stdin, name, calls)
		if err := os.WriteFile(filepath.Join(dir, name), []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	return func() string {
		b, err := os.ReadFile(calls)
		if err == nil {
			err = os.Remove(calls)
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Error(err)
		}
		return string(b)
	}
}

// nodeAddress is the first address that the first peer of a configuration has.
func nodeAddress(t *testing.T, text string) string {
	for line := range strings.Lines(text) {
		if list, ok := strings.CutPrefix(line, "AllowedIPs = "); ok {
			return addrsOf(list)[0].String()
		}
	}
	t.Fatalf("no peer in\n%s", text)
	return ""
}
