package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/formthefog/formation/cmd/internal/api"
	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/names"
	"github.com/formthefog/formation/crdt/stmt"
)

// freePublicPort is one that was free a moment ago, for TCP and UDP.
func freePublicPort(t *testing.T) int {
	t.Helper()
	for range 50 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		pc, err := net.ListenPacket("udp", l.Addr().String())
		port := l.Addr().(*net.TCPAddr).Port
		_ = l.Close()
		if err == nil {
			_ = pc.Close()
			return port
		}
	}
	t.Fatal("no port is free for TCP and UDP")
	return 0
}

// ship submits an instance of a client's through a node.
func ship(t *testing.T, c *client, p *proc, replicas int, expose ...string) (id string) {
	t.Helper()
	target := c.to(p)
	pack := c.pack("")
	if err := target.FetchPack(t.Context(), pack.String(), api.FetchRequest{}, nil); err != nil {
		t.Fatal(err)
	}
	author, err := crdt.NewAuthor(c.owner, c.net, nil)
	if err != nil {
		t.Fatal(err)
	}
	id, raws, err := author.Create(crdt.Spec{
		Name: "web", Pack: pack.String(), Replicas: replicas, Phase: crdt.PhaseRunning, VCPU: 1, MemoryBytes: 256 << 20, DiskBytes: 1 << 30, Expose: expose,
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := target.Submit(t.Context(), raws); err != nil {
		t.Fatal(err)
	}
	return id
}

// ready waits until so many replicas are, and returns them.
func ready(t *testing.T, p *proc, id string, replicas int) []api.Replica {
	t.Helper()
	var inst api.Instance
	within(t, 60*time.Second, "ready replicas", func() (err error) {
		if inst, err = p.local.Instance(t.Context(), id); err != nil {
			return err
		}
		if inst.Status != api.StatusSuccess || len(inst.Replicas) != replicas {
			return fmt.Errorf("%s (%s), %+v", inst.Status, inst.Reason, inst.Replicas)
		}
		return nil
	})
	return inst.Replicas
}

// TestIngress: what an instance offers to everybody is served by a node that runs
// none of it, while the host of a replica is killed; nothing else is.
func TestIngress(t *testing.T) {
	port := freePublicPort(t)
	first := newProc(t, "--accept", "any", "--takeover-delay", "1s").start()
	second := newProc(t, "--join", first.ticket(), "--takeover-delay", "1s").start()
	web, secure := fmt.Sprintf("127.0.0.1:%d", freePublicPort(t)), fmt.Sprintf("127.0.0.1:%d", freePublicPort(t))
	front := newProc(t, "--join", first.ticket(), "--accept", "operator", "--ingress", "--ingress-http", web, "--ingress-https", secure,
		"--ingress-acme", "internal", "--ingress-domain", "example.org", "--ingress-ports", fmt.Sprint(port)).start()
	self, err := first.local.Node(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	c := newClient(t, stmt.NewNetworkID(self.Network.Name, self.Network.Root))
	id := ship(t, c, first, 2, "8080/tcp public", fmt.Sprintf("%d/tcp public", port), fmt.Sprintf("%d/udp public", port), "9000/tcp")
	replicas := ready(t, first, id, 2)

	site := "web." + names.Label(stmt.KeyOf(c.owner)) + "." + names.Zone
	get := func(host string) (string, error) {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		r, err := http.NewRequestWithContext(ctx, "GET", "http://"+web+"/", nil)
		if err != nil {
			return "", err
		}
		r.Host = host
		res, err := http.DefaultClient.Do(r)
		if err != nil {
			return "", err
		}
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		if err == nil && (res.StatusCode != 200 || !strings.HasPrefix(string(b), "hello from "+id)) {
			err = fmt.Errorf("%s: %s", res.Status, b)
		}
		return string(b), err
	}
	for _, host := range []string{site, "web.example.org", strings.Replace(site, names.Zone, "example.org", 1)} {
		within(t, 30*time.Second, host, func() error {
			_, err := get(host)
			return err
		})
	}
	within(t, 20*time.Second, "public URLs, as another node tells them", func() error {
		i, err := first.local.Instance(t.Context(), id)
		if err != nil {
			return err
		}
		var got []string
		for _, u := range i.Public {
			if len(u.Nodes) == 1 && u.Nodes[0] == front.key {
				got = append(got, u.URL)
			}
		}
		host := strings.Replace(site, names.Zone, "example.org", 1)
		_, sites, _ := strings.Cut(secure, ":")
		if want := fmt.Sprintf("[https://%[1]s:%[2]s tcp://%[1]s:%[3]d udp://%[1]s:%[3]d]", host, sites, port); fmt.Sprint(got) != want {
			return fmt.Errorf("%v, want %s", got, want)
		}
		return nil
	})
	if _, err := get("other.example.org"); err == nil || !strings.Contains(err.Error(), "404") {
		t.Errorf("a site that is not: %v", err)
	}
	if curl, err := exec.LookPath("curl"); err == nil {
		out, err := exec.Command(curl, "-sS", "--noproxy", "*", "--cacert", filepath.Join(front.dir, "data", "ingress", "ca.crt"),
			"--connect-to", "web.example.org:443:"+secure, "-w", " by HTTP/%{http_version}", "https://web.example.org/").CombinedOutput()
		if err != nil || !strings.HasPrefix(string(out), "hello from "+id) || !strings.HasSuffix(string(out), " by HTTP/2") {
			t.Errorf("curl: %s, %v", out, err)
		}
	}
	t.Run("plain ports", func(t *testing.T) {
		for _, network := range []string{"tcp", "udp"} {
			within(t, 20*time.Second, network, func() error { return echoes(network, fmt.Sprintf("127.0.0.1:%d", port)) })
		}
	})
	t.Run("to nodes only", func(t *testing.T) {
		host := procOf(first, second, replicas[0].Node)
		c.to(host)
		err := c.public(host, api.PublicRequest{Instance: id, Slot: replicas[0].Slot, Port: 8080, Proto: "tcp"})
		if api.ExitOf(err) != api.ExitNotAllowed {
			t.Errorf("a client is given: %v", err)
		}
	})

	var asked, failed atomic.Int64
	stop := make(chan struct{})
	var clients sync.WaitGroup
	for range 4 {
		clients.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if _, err := get(site); err != nil {
					failed.Add(1)
					t.Logf("request %d: %v", asked.Load(), err)
				}
				asked.Add(1)
			}
		})
	}
	more := func(n int64) {
		from := asked.Load()
		within(t, 60*time.Second, "requests", func() error {
			if asked.Load() < from+n {
				return fmt.Errorf("%d of %d", asked.Load()-from, n)
			}
			return nil
		})
	}
	more(100)
	victim := procOf(first, second, replicas[1].Node)
	victim.kill()
	before := asked.Load()
	more(200)
	close(stop)
	clients.Wait()
	if failed.Load() > 0 {
		t.Errorf("%d of %d requests failed", failed.Load(), asked.Load())
	}
	t.Logf("%d requests, %d of them since a host was killed, %d failed", asked.Load(), asked.Load()-before, failed.Load())
	figures := front.metrics()
	for name, least := range map[string]float64{
		`formd_ingress_requests_total{code="2xx"}`: float64(asked.Load()), `formd_ingress_refused_total{reason="site"}`: 1,
		"formd_ingress_sites": 3, `formd_ingress_ports{state="open"}`: 2,
	} {
		if v, ok := figures[name]; !ok || v < least {
			t.Errorf("%s is %v, want %v", name, v, least)
		}
	}
	if _, err := exec.LookPath("curl"); err == nil {
		left := time.Until(time.Unix(int64(figures["formd_ingress_certificates_expiry_timestamp_seconds"]), 0))
		if figures["formd_ingress_certificates"] != 1 || left < 24*time.Hour || left > 32*24*time.Hour {
			t.Errorf("%v certificates, for %v", figures["formd_ingress_certificates"], left)
		}
	}
	if _, ok := procOf(first, second, replicas[0].Node).metrics()["formd_ingress_sites"]; ok {
		t.Error("a node that is no ingress says how it does as one")
	}
	if code := front.terminate(); code != 0 {
		t.Errorf("the ingress ends with %d", code)
	}
}

func procOf(a, b *proc, k stmt.Key) *proc {
	if a.key == k {
		return a
	}
	return b
}

// echoes says what is wrong with the echo behind a port.
func echoes(network, address string) error {
	c, err := net.DialTimeout(network, address, 5*time.Second)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(2 * time.Second)); err != nil {
		return err
	}
	if _, err := io.WriteString(c, "ping\n"); err != nil {
		return err
	}
	buf := make([]byte, 5)
	if _, err := io.ReadFull(c, buf); err != nil || string(buf) != "ping\n" {
		return fmt.Errorf("%q, %w", buf, errors.Join(err))
	}
	return nil
}

// public opens a public/1 stream and returns what the host says.
func (c *client) public(p *proc, r api.PublicRequest) error {
	ctx, cancel := context.WithTimeout(c.t.Context(), 20*time.Second)
	defer cancel()
	s, err := c.node.Open(ctx, peer.ID(p.key.PeerID()), api.ProtoPublic)
	if err != nil {
		return err
	}
	defer s.Close()
	return askPublic(ctx, s, r)
}

// TestPublicPortsOnly: a host lets nodes reach what is public, and nothing else.
func TestPublicPortsOnly(t *testing.T) {
	p := newProc(t, "--network", "test-public", "--accept", "any").start()
	self, err := p.local.Node(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	c := newClient(t, stmt.NewNetworkID(self.Network.Name, self.Network.Root)) // anybody is a node here
	id := ship(t, c, p, 1, "8080/tcp public", "53/udp public", "9000/tcp")
	ready(t, p, id, 1)
	for _, tt := range []struct {
		req  api.PublicRequest
		exit int
	}{
		{api.PublicRequest{Instance: id, Port: 8080, Proto: "tcp"}, api.ExitOK},
		{api.PublicRequest{Instance: id, Port: 53, Proto: "udp"}, api.ExitOK},
		{api.PublicRequest{Instance: id, Port: 9000, Proto: "tcp"}, api.ExitNotAllowed}, // exposed, and not public
		{api.PublicRequest{Instance: id, Port: 8080, Proto: "udp"}, api.ExitNotAllowed},
		{api.PublicRequest{Instance: id, Port: 53, Proto: "tcp"}, api.ExitNotAllowed},
		{api.PublicRequest{Instance: id, Port: 22, Proto: "tcp"}, api.ExitNotAllowed},
		{api.PublicRequest{Instance: id, Port: 8080}, api.ExitNotAllowed},
		{api.PublicRequest{Instance: id, Slot: 1, Port: 8080, Proto: "tcp"}, api.ExitNotFound},
		{api.PublicRequest{Instance: "no" + id[2:], Port: 8080, Proto: "tcp"}, api.ExitNotFound},
	} {
		if err := c.public(p, tt.req); api.ExitOf(err) != tt.exit {
			t.Errorf("%+v: %v, want exit %d", tt.req, err, tt.exit)
		}
	}
}
