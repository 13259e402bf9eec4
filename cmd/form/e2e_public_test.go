//go:build e2e

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// site is what anybody sees of the instance, by a node that is an ingress.
type site struct {
	f      *fleet
	name   string
	secure string // where that node takes HTTPS
	trust  string // its authority's certificate
}

// ingress adds a node that serves the public as well.
func (f *fleet) ingress(t *testing.T) (*member, *site) {
	s := &site{f: f, name: "hello-server.example.org"}
	l, err := net.Listen("tcp", "127.0.0.1:0") // a port that is free
	if err != nil {
		t.Fatal(err)
	}
	s.secure = l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	m := f.start("--join", f.ticket, "--accept", "any", "--ingress", "--ingress-http", "off", "--ingress-https", s.secure,
		"--ingress-acme", "internal", "--ingress-domain", "example.org")
	s.trust = filepath.Join(m.dir, "data", "ingress", "ca.crt")
	return m, s
}

// curl is what curl answers for the site's page.
func (s *site) curl(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	args = append([]string{"-sS", "--noproxy", "*", "--max-time", "60", "--connect-to", s.name + ":443:" + s.secure, "-w", "%{http_code} by HTTP/%{http_version}"}, args...)
	out, err := exec.CommandContext(ctx, "curl", append(args, "https://"+s.name+"/")...).CombinedOutput()
	return string(out), err
}

// page is one request of a client that trusts the ingress's authority: who answers it.
func (s *site) page() (string, error) {
	out, err := s.curl("--cacert", s.trust)
	who, end, _ := strings.Cut(out, "\n")
	if err == nil && (!strings.HasPrefix(who, "hello from ") || end != "200 by HTTP/2") {
		err = errors.New("another answer")
	}
	if err != nil {
		return "", fmt.Errorf("curl: %w: %s", err, out)
	}
	return who, nil
}

// answers waits until so many replicas have answered the public.
func (s *site) answers(t *testing.T, replicas int) {
	asked, by := 0, map[string]int{}
	s.f.eventually(time.Minute, fmt.Sprintf("%d replicas to answer the public", replicas), func() error {
		who, err := s.page()
		if err != nil {
			return err
		}
		asked++
		if by[who]++; len(by) < replicas {
			return fmt.Errorf("%d requests were answered by %v", asked, by)
		}
		return nil
	})
	t.Logf("%d requests from the public were answered by %v", asked, by)
	var exit *exec.ExitError
	const untrusted = 60
	if out, err := s.curl(); !errors.As(err, &exit) || exit.ExitCode() != untrusted {
		t.Errorf("to who does not trust the ingress's authority: %v: %s", err, out)
	}
}

// ask has clients ask until the result is called, which fails the test when one was
// not answered.
func (s *site) ask(t *testing.T) (end func()) {
	var clients sync.WaitGroup
	var mu sync.Mutex
	asked, failed, longest := 0, 0, time.Duration(0)
	stop := make(chan struct{})
	for range 2 {
		clients.Go(func() {
			for {
				began := time.Now()
				_, err := s.page()
				mu.Lock()
				asked++
				longest = max(longest, time.Since(began))
				if err != nil {
					failed++
					t.Errorf("request %d of the public: %v", asked, err)
				}
				mu.Unlock()
				select {
				case <-stop:
					return
				case <-time.After(time.Second): // not to take the machine from what boots
				}
			}
		})
	}
	return func() {
		close(stop)
		clients.Wait()
		t.Logf("%d requests from the public, %d failed, the longest took %.1f s", asked, failed, longest.Seconds())
	}
}
