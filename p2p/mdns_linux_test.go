package p2p

import (
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// Discovery on the LAN is tested in network namespaces of its own, so that no
// packet leaves: the test runs itself there.
func TestMDNS(t *testing.T) {
	const inside = "FORMATION_MDNS_INSIDE"
	if where := os.Getenv(inside); where != "" {
		mdnsInside(t, where)
		return
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root, for a network namespace")
	}
	for where, script := range map[string]string{
		"loopback": `ip link set lo up`,
		"lan": `ip link set lo up && ip link add lan0 type veth peer name lan1 && ip addr add 10.77.0.1/24 dev lan0 &&
			ip link set lan0 up && ip link set lan1 up && ip route add 224.0.0.0/4 dev lan0`,
	} {
		t.Run(where, func(t *testing.T) {
			cmd := exec.CommandContext(ctxT(t), "unshare", "--net", "sh", "-c", script+` && exec "$0" -test.run='^TestMDNS$' -test.v`, os.Args[0])
			cmd.Env = append(os.Environ(), inside+"="+where)
			out, err := cmd.CombinedOutput()
			if strings.Contains(string(out), "unshare failed") || strings.Contains(string(out), "Operation not") {
				t.Skipf("no network namespaces here: %s", out)
			}
			if err != nil {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}

func mdnsInside(t *testing.T, where string) {
	lan := func(c *Config) {
		c.MDNS = true
		c.Listen = []string{"/ip4/0.0.0.0/tcp/0", "/ip4/0.0.0.0/udp/0/quic-v1"}
	}
	a, _ := start(t, lan)
	other, _ := start(t, func(c *Config) { lan(c); c.Network = "othernetwork" })
	if where == "loopback" {
		b, _ := start(t, lan) // nobody to find by multicast: nothing fails
		if _, err := a.Connect(ctxT(t), tcpAddr(t, b)); err != nil {
			t.Errorf("connect beside a LAN that is not there: %v", err)
		}
		return
	}
	b, _ := start(t, lan)
	began := time.Now()
	eventually(t, "they find each other", func() bool { return len(a.Peers()) == 1 && len(b.Peers()) == 1 })
	t.Logf("found in %v", time.Since(began))
	if st := other.Stats(); len(other.Peers()) != 0 || st.Known != 0 {
		t.Errorf("another network's node is found: %+v", st)
	}
	other.redial.mu.Lock()
	defer other.redial.mu.Unlock()
	if n := len(other.redial.book.entries); n != 0 {
		t.Errorf("the other network's node was told of %d peers", n)
	}
}
