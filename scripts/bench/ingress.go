package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/formthefog/formation/wg/ingress"
)

func init() {
	register(measurement{
		Figures: []figure{{Name: "ingress-ratio", Unit: "x", Target: 0.8}},
		Rounds:  3,
		Run:     measureIngress,
	})
}

const (
	ingressSite    = "web.example.org"
	ingressClients = 8
	ingressWindow  = 2 * time.Second
	ingressBody    = 1 << 10
)

// straight dials a replica that is a server on loopback.
type straight string

// Dial implements ingress.Dialer.
func (s straight) Dial(ctx context.Context, _, network string, _ int) (net.Conn, error) {
	return (&net.Dialer{}).DialContext(ctx, network, string(s))
}

// measureIngress asks one small server by way of an ingress, and by way of the
// standard library's reverse proxy alone, in turns.
func measureIngress(ctx context.Context, e *env) (map[string]float64, error) {
	body := make([]byte, ingressBody)
	server, endServer, err := serveLocal(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		// The client counts what it gets.
		_, _ = w.Write(body)
	}))
	if err != nil {
		return nil, err
	}
	defer endServer()
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: server})
	proxy.Transport = &http.Transport{MaxIdleConnsPerHost: 64, DisableCompression: true}
	bare, endBare, err := serveLocal(proxy)
	if err != nil {
		return nil, err
	}
	defer endBare()
	ours, endOurs, err := serveIngress(ctx, straight(server))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, endOurs()) }()
	var rates [2]float64
	for range 2 {
		for i, address := range []string{ours, bare} {
			n, err := requestsPerSecond(ctx, address)
			if err != nil {
				return nil, err
			}
			rates[i] += n
		}
	}
	e.logf("ingress: %.0f and %.0f requests a second", rates[0]/2, rates[1]/2)
	return map[string]float64{"ingress-ratio": rates[0] / rates[1]}, nil
}

// serveLocal serves on loopback until end.
func serveLocal(h http.Handler) (address string, end func(), err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	s := &http.Server{Handler: h, ReadHeaderTimeout: time.Minute}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Serve(l) // ends with Close
	}()
	return l.Addr().String(), func() {
		_ = s.Close()
		<-done
	}, nil
}

func serveIngress(ctx context.Context, d ingress.Dialer) (address string, end func() error, err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	g, err := ingress.New(ingress.Config{Dialer: d, HTTP: l, Logger: slog.New(slog.DiscardHandler), Limits: ingress.Limits{Grace: time.Second}})
	if err != nil {
		return "", nil, errors.Join(err, l.Close())
	}
	g.Set(ingress.Desired{Sites: map[string]ingress.Service{ingressSite: {Port: 80, Replicas: []ingress.Replica{{ID: "a"}, {ID: "b"}}}}})
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- g.Run(ctx) }()
	return l.Addr().String(), func() error {
		cancel()
		return <-ended
	}, nil
}

// requestsPerSecond is how many requests clients get answered, on connections
// that they keep. One that is not answered well is an error.
func requestsPerSecond(ctx context.Context, address string) (float64, error) {
	var answered atomic.Int64
	var clients errgroup.Group
	began := time.Now()
	for range ingressClients {
		clients.Go(func() error {
			t := &http.Transport{DisableCompression: true}
			defer t.CloseIdleConnections()
			for time.Since(began) < ingressWindow {
				if err := askOnce(ctx, t, address); err != nil {
					return err
				}
				answered.Add(1)
			}
			return nil
		})
	}
	err := clients.Wait()
	return float64(answered.Load()) / time.Since(began).Seconds(), err
}

func askOnce(ctx context.Context, t http.RoundTripper, address string) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/", nil)
	if err != nil {
		return err
	}
	r.Host = ingressSite
	res, err := t.RoundTrip(r)
	if err != nil {
		return err
	}
	n, err := io.Copy(io.Discard, res.Body)
	if err = errors.Join(err, res.Body.Close()); err == nil && (res.StatusCode != http.StatusOK || n != ingressBody) {
		err = fmt.Errorf("%s with %d bytes", res.Status, n)
	}
	return err
}
