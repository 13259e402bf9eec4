//go:build e2e

package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/tun/netstack"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/formthefog/formation/wg/embedded"
	"github.com/formthefog/formation/wg/wgtest"
)

// meshed shows that two real guests on two nodes, and a plain WireGuard client
// with a device's key, are peers, and that their hosts carry ciphertext alone.
func (f *fleet) meshed(t *testing.T, u user) {
	for slot := range 2 {
		other := 1 - slot
		f.eventually(2*time.Minute, fmt.Sprintf("replica %d to reach replica %d", slot, other), func() error {
			r := ready(u.instance("hello-server"), nil)[other]
			if r.Address == nil || r.Address6 == nil || r.MeshKey == nil || r.Endpoint == nil {
				return fmt.Errorf("replica %d is not on the mesh: %+v", other, r)
			}
			for _, at := range []string{*r.Address6, *r.Address} {
				out, talk, code := u.run("manage", "exec", fmt.Sprintf("hello-server/%d", slot), "--", "ping", "-c", "2", "-W", "5", at)
				if code != 0 {
					return fmt.Errorf("ping %s: exit %d: %s%s", at, code, out, talk)
				}
			}
			return nil
		})
	}
	client := newPlainClient(t, u.must("net", "config", "--device", "e2e"))
	sniff := f.sniff(t)
	const marker = "plain-text-that-no-host-may-see"
	for slot, r := range ready(u.instance("hello-server"), nil) {
		at := netip.AddrPortFrom(netip.MustParseAddr(*r.Address6), 8080)
		for _, to := range []netip.AddrPort{at, netip.AddrPortFrom(netip.MustParseAddr(*r.Address), 8080)} {
			f.eventually(time.Minute, fmt.Sprintf("replica %d to answer a plain client at %s", slot, to), func() error {
				body, err := client.get("http://" + to.String() + "/" + marker)
				if err == nil && !strings.HasPrefix(body, "hello from ") {
					err = fmt.Errorf("it says %q", body)
				}
				return err
			})
		}
		// From guest to guest as well.
		from := fmt.Sprintf("hello-server/%d", 1-slot)
		u.must("manage", "exec", from, "--", "python3", "-c", fmt.Sprintf("import urllib.request as u; u.urlopen('http://%s/%s', timeout=60).read()", at, marker))
	}
	seen := sniff()
	if seen.data < 8 || seen.handshakes < 2 {
		t.Errorf("too little was seen to say anything: %+v", seen)
	}
	if seen.marker || seen.other > 0 {
		t.Errorf("what the hosts carry is more than WireGuard and QUIC: %+v", seen)
	}
	t.Logf("on the wire: %+v", seen)
}

// plainClient is a WireGuard client that knows a configuration file alone.
type plainClient struct{ http http.Client }

func (c *plainClient) get(url string) (string, error) {
	r, err := c.http.Get(url)
	if err != nil {
		return "", err
	}
	defer r.Body.Close()
	body, err := io.ReadAll(io.LimitReader(r.Body, 1<<10))
	return string(body), err
}

// newPlainClient makes one from what form net config prints.
func newPlainClient(t *testing.T, config string) *plainClient {
	var private wgtypes.Key
	var own []netip.Addr
	var peers []wgtypes.PeerConfig
	for line := range strings.Lines(config) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), " = ")
		var err error
		switch {
		case name == "[Peer]":
			peers = append(peers, wgtypes.PeerConfig{})
		case name == "PrivateKey":
			private, err = wgtypes.ParseKey(value)
		case name == "Address":
			own = append(own, addrsOf(value)...)
		case name == "PublicKey":
			peers[len(peers)-1].PublicKey, err = wgtypes.ParseKey(value)
		case name == "Endpoint":
			peers[len(peers)-1].Endpoint, err = net.ResolveUDPAddr("udp", value)
		case name == "AllowedIPs":
			peers[len(peers)-1].AllowedIPs = wgtest.Routes(addrsOf(value)...)
		}
		if err != nil {
			t.Fatalf("%s: %v", line, err)
		}
	}
	if len(peers) != 2 || len(own) == 0 {
		t.Fatalf("a configuration for %v with %d peers:\n%s", own, len(peers), strings.ReplaceAll(config, private.String(), "…"))
	}
	tun, stack, err := netstack.CreateNetTUN(own, nil, 1280)
	if err != nil {
		t.Fatal(err)
	}
	dev, err := embedded.Open(embedded.Config{TUN: tun, Bind: conn.NewDefaultBind(), Key: private})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(dev.Close)
	if err := dev.Configure(peers); err != nil {
		t.Fatal(err)
	}
	return &plainClient{http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{DialContext: stack.DialContext, DisableKeepAlives: true}}}
}

// addrsOf are those of a list of prefixes.
func addrsOf(list string) (out []netip.Addr) {
	for _, p := range strings.Split(list, ",") {
		out = append(out, netip.MustParsePrefix(strings.TrimSpace(p)).Addr())
	}
	return out
}

// onTheWire is what was seen of UDP at the nodes' ports.
type onTheWire struct {
	handshakes, data, quic, other int
	marker                        bool
}

// sniff listens on loopback until its result is called. Only root may; others
// see nothing, and say so.
func (f *fleet) sniff(t *testing.T) func() onTheWire {
	if os.Geteuid() != 0 {
		t.Skip("what is on the wire is for root to see")
	}
	var ports []string
	for _, m := range f.nodes {
		for _, a := range m.at {
			if parts := strings.Split(a, "/"); len(parts) > 4 && parts[3] == "udp" {
				ports = append(ports, "udp port "+parts[4])
			}
		}
	}
	file := filepath.Join(t.TempDir(), "wire.pcap")
	cmd := exec.Command("tcpdump", "-i", "lo", "-U", "-Z", "root", "-w", file, strings.Join(ports, " or "))
	talk := &bytes.Buffer{}
	cmd.Stderr = talk
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() { _ = cmd.Process.Kill() }) // it may have ended
	f.eventually(time.Minute, "tcpdump to listen", func() error {
		info, err := os.Stat(file)
		if err == nil && info.Size() < pcapHeader {
			err = errors.New("no header yet")
		}
		return err
	})
	return func() onTheWire {
		if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
			t.Fatal(err)
		}
		if err := <-ended; err != nil {
			t.Fatalf("tcpdump: %v\n%s", err, talk)
		}
		raw, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		return readWire(t, raw)
	}
}

const pcapHeader = 24

// readWire counts the datagrams of a capture on an Ethernet-like interface.
func readWire(t *testing.T, raw []byte) (seen onTheWire) {
	if len(raw) < pcapHeader || binary.LittleEndian.Uint32(raw) != 0xa1b2c3d4 {
		t.Fatalf("no capture: %d bytes", len(raw))
	}
	seen.marker = bytes.Contains(raw, []byte("plain-text-that-no-host-may-see"))
	for raw = raw[pcapHeader:]; len(raw) >= 16; {
		n := int(binary.LittleEndian.Uint32(raw[8:]))
		const headers = 14 + 20 + 8
		if len(raw) < 16+n || n < headers {
			break
		}
		switch b := raw[16+headers : 16+n]; {
		case len(b) > 0 && b[0]&0x40 != 0:
			seen.quic++
		case len(b) == 52 && b[0] == 0x0f: // a probe of a path
		case len(b) == 148 && b[0] == 1 || len(b) == 92 && b[0] == 2 || len(b) == 64 && b[0] == 3:
			seen.handshakes++
		case len(b) >= 32 && b[0] == 4 && b[1]|b[2]|b[3] == 0 && len(b)%16 == 0:
			seen.data++
		default:
			seen.other++
		}
		raw = raw[16+n:]
	}
	return seen
}
