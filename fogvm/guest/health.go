package guest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// Rhythm of checks: quick until the first success, then at the interval.
const (
	startProbe      = 100 * time.Millisecond
	maxStartProbe   = time.Second
	defaultInterval = 10 * time.Second
	defaultTimeout  = 5 * time.Second
	defaultRetries  = 3
	// An application without checks is ready when it has run this long.
	settleTime = 2 * time.Second
)

// check is one way to ask whether the application serves.
type check struct {
	// probe returns nil when it does; the error is the reason shown.
	probe    func(ctx context.Context) error
	interval time.Duration
	timeout  time.Duration
	retries  int
}

// newCheck picks the rule: HEALTHCHECK, else the exposed TCP ports, else nil
// (the application has run for settleTime). run executes a command check.
func newCheck(cfg Config, run func(ctx context.Context, argv []string) error) (*check, error) {
	c := &check{interval: defaultInterval, timeout: defaultTimeout, retries: defaultRetries}
	if h := cfg.Health; h != nil {
		if h.IntervalSeconds > 0 {
			c.interval = time.Duration(h.IntervalSeconds) * time.Second
		}
		if h.TimeoutSeconds > 0 {
			c.timeout = time.Duration(h.TimeoutSeconds) * time.Second
		}
		if h.Retries > 0 {
			c.retries = h.Retries
		}
		probe, err := healthProbe(*h, run)
		if err != nil {
			return nil, err
		}
		c.probe = probe
		return c, nil
	}
	var ports []int
	for _, p := range cfg.Expose {
		if p.Proto == "" || p.Proto == "tcp" {
			ports = append(ports, p.Port)
		}
	}
	if len(ports) == 0 {
		return nil, nil
	}
	c.probe = func(ctx context.Context) error {
		for _, port := range ports {
			if err := acceptsTCP(ctx, port); err != nil {
				return err
			}
		}
		return nil
	}
	return c, nil
}

func healthProbe(h Health, run func(context.Context, []string) error) (func(context.Context) error, error) {
	switch h.Kind {
	case HealthCommand:
		if len(h.Command) == 0 {
			return nil, errors.New("health check: empty command")
		}
		return func(ctx context.Context) error { return run(ctx, h.Command) }, nil
	case HealthTCP:
		target := h.Target
		if port, err := strconv.Atoi(target); err == nil {
			return func(ctx context.Context) error { return acceptsTCP(ctx, port) }, nil
		}
		if _, _, err := net.SplitHostPort(target); err != nil {
			return nil, fmt.Errorf("health check: TCP target %q: %w", target, err)
		}
		return func(ctx context.Context) error { return dialOnce(ctx, target) }, nil
	case HealthHTTP:
		u, err := healthURL(h.Target)
		if err != nil {
			return nil, err
		}
		return func(ctx context.Context) error { return httpProbe(ctx, u) }, nil
	}
	return nil, fmt.Errorf("health check: unknown kind %q", h.Kind)
}

// healthURL turns "8080", "8080/path", ":8080/path", "/path" or a URL into a URL.
func healthURL(target string) (*url.URL, error) {
	switch {
	case strings.HasPrefix(target, "http://"):
	case strings.HasPrefix(target, "/"):
		target = "http://127.0.0.1" + target
	default:
		port, path, _ := strings.Cut(strings.TrimPrefix(target, ":"), "/")
		if n, err := strconv.Atoi(port); err != nil || n < 1 || n > 65535 {
			return nil, fmt.Errorf("health check: HTTP target %q is no port, path or http URL", target)
		}
		target = "http://127.0.0.1:" + port + "/" + path
	}
	u, err := url.Parse(target)
	if err != nil {
		return nil, fmt.Errorf("health check: %w", err)
	}
	return u, nil
}

// acceptsTCP tries loopback and then the guest's own address: some
// applications bind only one of them.
func acceptsTCP(ctx context.Context, port int) error {
	var err error
	for _, host := range []string{"127.0.0.1", Address, "::1"} {
		if err = dialOnce(ctx, net.JoinHostPort(host, strconv.Itoa(port))); err == nil {
			return nil
		}
	}
	return fmt.Errorf("tcp port %d does not accept connections", port)
}

func dialOnce(ctx context.Context, address string) error {
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return fmt.Errorf("tcp %s does not accept connections", address)
	}
	return c.Close()
}

// httpProbe asks one GET by hand: net/http would double the size of the
// initramfs for one status line.
func httpProbe(ctx context.Context, u *url.URL) error {
	host := u.Host
	if u.Port() == "" {
		host = net.JoinHostPort(u.Hostname(), "80")
	}
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", host)
	if err != nil {
		return fmt.Errorf("GET %s: no answer", u)
	}
	defer c.Close()
	if deadline, ok := ctx.Deadline(); ok {
		if err := c.SetDeadline(deadline); err != nil {
			return err
		}
	}
	if _, err := fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: form-guest\r\nConnection: close\r\n\r\n", u.RequestURI(), u.Host); err != nil {
		return fmt.Errorf("GET %s: no answer", u)
	}
	line, err := bufio.NewReaderSize(io.LimitReader(c, 4<<10), 4<<10).ReadString('\n')
	if err != nil {
		return fmt.Errorf("GET %s: no answer", u)
	}
	version, status, _ := strings.Cut(strings.TrimSpace(line), " ")
	code, _, _ := strings.Cut(status, " ")
	n, err := strconv.Atoi(code)
	if !strings.HasPrefix(version, "HTTP/1.") || err != nil {
		return fmt.Errorf("GET %s: not an HTTP answer", u)
	}
	if n < 200 || n > 399 {
		return fmt.Errorf("GET %s: %s", u, clip(status, 100))
	}
	return nil
}

// watchHealth probes until ctx ends and reports each verdict that matters:
// every failure before the first success, then changes after retries failures
// in a row.
func watchHealth(ctx context.Context, c *check, report func(err error)) {
	wait := startProbe
	healthy, failures := false, 0
	for {
		probeCtx, cancel := context.WithTimeout(ctx, c.timeout)
		err := c.probe(probeCtx)
		cancel()
		if ctx.Err() != nil {
			return
		}
		switch {
		case err == nil:
			healthy, failures = true, 0
			wait = c.interval
			report(nil)
		case !healthy:
			report(err)
			wait = min(wait*2, maxStartProbe, c.interval)
		default:
			failures++
			wait = min(c.interval, maxStartProbe*time.Duration(failures))
			if failures >= c.retries {
				report(err)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}
