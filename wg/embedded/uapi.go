package embedded

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/formthefog/formation/wg"
)

// encode is changes in the configuration protocol of WireGuard in user space
// (wireguard.com/xplatform).
func encode(changes []wgtypes.PeerConfig) string {
	var b strings.Builder
	line := func(key string, value any) { fmt.Fprintf(&b, "%s=%v\n", key, value) }
	for _, c := range changes {
		line("public_key", hex.EncodeToString(c.PublicKey[:]))
		if c.Remove {
			line("remove", true)
			continue
		}
		if c.UpdateOnly {
			line("update_only", true)
		}
		if c.PresharedKey != nil {
			line("preshared_key", hex.EncodeToString(c.PresharedKey[:]))
		}
		if c.Endpoint != nil {
			line("endpoint", c.Endpoint)
		}
		if c.PersistentKeepaliveInterval != nil {
			line("persistent_keepalive_interval", int(c.PersistentKeepaliveInterval.Seconds()))
		}
		if c.ReplaceAllowedIPs {
			line("replace_allowed_ips", true)
		}
		for _, n := range c.AllowedIPs {
			line("allowed_ip", &n)
		}
	}
	return b.String()
}

// decode reads the peers of what a device says of itself.
func decode(text string) ([]wg.Status, error) {
	var peers []wg.Status
	for line := range strings.Lines(text) {
		key, value, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
		if !ok {
			return nil, fmt.Errorf("line %q", line)
		}
		if key == "public_key" {
			var k wg.Key
			if n, err := hex.Decode(k[:], []byte(value)); err != nil || n != len(k) {
				return nil, fmt.Errorf("public key %q", value)
			}
			peers = append(peers, wg.Status{Peer: wg.Peer{Key: k}})
			continue
		}
		if len(peers) == 0 {
			continue // of the device itself
		}
		if err := decodeField(&peers[len(peers)-1], key, value); err != nil {
			return nil, fmt.Errorf("%s=%s: %w", key, value, err)
		}
	}
	for i := range peers {
		slices.SortFunc(peers[i].Addresses, netip.Addr.Compare)
	}
	return peers, nil
}

func decodeField(p *wg.Status, key, value string) (err error) {
	var n int64
	switch key {
	case "endpoint":
		p.Endpoint, err = netip.ParseAddrPort(value)
	case "allowed_ip":
		var r netip.Prefix
		if r, err = netip.ParsePrefix(value); err == nil && r.IsSingleIP() {
			p.Addresses = append(p.Addresses, r.Addr())
		}
	case "persistent_keepalive_interval":
		n, err = strconv.ParseInt(value, 10, 32)
		p.Keepalive = time.Duration(n) * time.Second
	case "last_handshake_time_sec":
		if n, err = strconv.ParseInt(value, 10, 64); n > 0 {
			p.Handshake = time.Unix(n, 0)
		}
	case "last_handshake_time_nsec":
		if n, err = strconv.ParseInt(value, 10, 64); !p.Handshake.IsZero() {
			p.Handshake = p.Handshake.Add(time.Duration(n))
		}
	case "rx_bytes":
		p.Received, err = strconv.ParseInt(value, 10, 64)
	case "tx_bytes":
		p.Sent, err = strconv.ParseInt(value, 10, 64)
	}
	return err
}
