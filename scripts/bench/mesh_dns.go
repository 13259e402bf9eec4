package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"

	meshdns "github.com/formthefog/formation/wg/dns"
)

func init() {
	register(measurement{
		Figures: []figure{{Name: "mesh-dns-ratio", Unit: "x", Target: 0.8}},
		Rounds:  3,
		Run:     measureDNS,
	})
}

const (
	dnsNames   = 10_000
	dnsClients = 4
	dnsWindow  = 2 * time.Second
)

// fixed answers everything with one address, as the library's examples do.
type fixed struct{ rr dns.RR }

func (f fixed) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	m := new(dns.Msg)
	m.SetReply(q)
	m.Answer = []dns.RR{f.rr}
	_ = w.WriteMsg(m)
}

// measureDNS asks a zone of 10,000 names, in a scope, and a handler with a fixed answer, in
// turns.
func measureDNS(ctx context.Context, e *env) (map[string]float64, error) {
	ours, err := meshdns.New(meshdns.Config{Zone: "dev.formation.cloud", Scope: func(netip.Addr) string { return "owner" }})
	if err != nil {
		return nil, err
	}
	names := make([]meshdns.Name, dnsNames)
	for i := range names {
		names[i] = meshdns.Name{Name: fmt.Sprint("app", i, ".owner"), Targets: []meshdns.Target{
			{Addr4: netip.AddrFrom4([4]byte{10, 128 + byte(i>>16), byte(i >> 8), byte(i)})}}}
	}
	if err := ours.Set(names); err != nil {
		return nil, err
	}
	rr, err := dns.NewRR("app.dev.formation.cloud. 5 IN A 10.128.1.1")
	if err != nil {
		return nil, err
	}
	var rates [2]float64
	for range 2 {
		for i, serve := range []func(context.Context, net.PacketConn) error{
			func(ctx context.Context, c net.PacketConn) error { return ours.Run(ctx, c, nil) },
			func(ctx context.Context, c net.PacketConn) error { return runFixed(ctx, c, fixed{rr}) },
		} {
			n, err := questionsPerSecond(ctx, serve)
			if err != nil {
				return nil, err
			}
			rates[i] += n
		}
	}
	e.logf("dns: %.0f and %.0f questions a second", rates[0]/2, rates[1]/2)
	return map[string]float64{"mesh-dns-ratio": rates[0] / rates[1]}, nil
}

func runFixed(ctx context.Context, c net.PacketConn, h dns.Handler) error {
	s := &dns.Server{PacketConn: c, Handler: h}
	started := make(chan struct{})
	s.NotifyStartedFunc = func() { close(started) }
	done := make(chan error)
	go func() { done <- s.ActivateAndServe() }()
	select {
	case err := <-done:
		return err
	case <-started:
	}
	<-ctx.Done()
	return errors.Join(s.Shutdown(), <-done)
}

// questionsPerSecond is how many questions some clients get answered, each one
// after the other.
func questionsPerSecond(ctx context.Context, serve func(context.Context, net.PacketConn) error) (float64, error) {
	c, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	serving, stop := context.WithCancel(ctx)
	served := make(chan error, 1)
	go func() { served <- serve(serving, c) }()
	asking, end := context.WithTimeout(ctx, dnsWindow)
	defer end()
	var answered atomic.Int64
	var clients sync.WaitGroup
	errs := make(chan error, dnsClients)
	start := time.Now()
	for i := range dnsClients {
		clients.Go(func() { errs <- askOnAndOn(asking, c.LocalAddr().String(), i, &answered) })
	}
	clients.Wait()
	took := time.Since(start)
	stop()
	close(errs)
	all := []error{<-served}
	for err := range errs {
		all = append(all, err)
	}
	return float64(answered.Load()) / took.Seconds(), errors.Join(all...)
}

func askOnAndOn(ctx context.Context, at string, n int, answered *atomic.Int64) error {
	c, err := dns.Dial("udp", at)
	if err != nil {
		return err
	}
	defer c.Close()
	q := new(dns.Msg)
	for ctx.Err() == nil {
		n += 7919
		q.SetQuestion(fmt.Sprintf("app%d.dev.formation.cloud.", n%dnsNames), dns.TypeA)
		if err := errors.Join(c.SetDeadline(time.Now().Add(5*time.Second)), c.WriteMsg(q)); err != nil {
			return err
		}
		m, err := c.ReadMsg()
		if err != nil {
			return err
		}
		if len(m.Answer) != 1 {
			return fmt.Errorf("no answer to %s", q.Question[0].Name)
		}
		answered.Add(1)
	}
	return nil
}
