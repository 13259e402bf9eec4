package ingress

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/caddyserver/certmagic"
	"go.uber.org/zap"
)

// Internal, for CertConfig.Directory, makes certificates of an authority of this
// machine's own.
const Internal = "internal"

// CertConfig says where certificates come from.
type CertConfig struct {
	// Dir keeps keys and certificates. With Internal there is ca.crt in it, which
	// clients must trust.
	Dir string
	// Directory is that of an ACME authority, as a URL, or Internal.
	Directory string
	Email     string // for the authority, when something is wrong; may be empty
	// Roots are what the authority's own server is judged by; nil: the system's.
	Roots *x509.CertPool
	// Allowed says for what names certificates are got, when a client asks for one.
	Allowed func(name string) bool
	// HTTP and HTTPS are where an authority's questions come in; nil: they do not.
	HTTP, HTTPS net.Listener
	Logger      *slog.Logger
}

// Certificates gets certificates as clients ask for sites, and renews them.
type Certificates struct {
	cache  *certmagic.Cache
	config *certmagic.Config
	acme   *certmagic.ACMEIssuer // nil: Internal

	obtained, failed, refused atomic.Uint64
}

// CertStats are counts since the start, and what is held for sites now.
type CertStats struct {
	Obtained uint64 // renewals too
	Failed   uint64 // attempts that the authority, or the way to it, let down
	Refused  uint64 // clients who asked for a name that is not served
	Held     int
	Expires  time.Time // when the first of them does; zero: none is held
}

// Stats returns what was counted, and what is held for the names of sites; a
// certificate is held from when a client has asked for its site.
func (c *Certificates) Stats(sites []string) CertStats {
	out := CertStats{Obtained: c.obtained.Load(), Failed: c.failed.Load(), Refused: c.refused.Load()}
	for _, name := range sites {
		var last time.Time // the one that is shown
		for _, held := range c.cache.AllMatchingCertificates(name) {
			if held.Leaf != nil && held.Leaf.NotAfter.After(last) {
				last = held.Leaf.NotAfter
			}
		}
		if last.IsZero() {
			continue
		}
		out.Held++
		if out.Expires.IsZero() || last.Before(out.Expires) {
			out.Expires = last
		}
	}
	return out
}

// NewCertificates opens Dir. Close ends what it begins.
func NewCertificates(c CertConfig) (*Certificates, error) {
	if c.Dir == "" || c.Allowed == nil || c.Logger == nil {
		return nil, errors.New("ingress: certificates: Dir, Allowed and Logger are needed")
	}
	out := &Certificates{}
	var own *authority
	if c.Directory == Internal {
		var err error
		if own, err = openAuthority(c.Dir); err != nil {
			return nil, fmt.Errorf("ingress: own authority: %w", err)
		}
	}
	out.cache = certmagic.NewCache(certmagic.CacheOptions{
		GetConfigForCert: func(certmagic.Certificate) (*certmagic.Config, error) { return out.config, nil },
		Logger:           zap.NewNop(),
	})
	out.config = certmagic.New(out.cache, certmagic.Config{
		Storage: &certmagic.FileStorage{Path: filepath.Join(c.Dir, "certificates")},
		OnDemand: &certmagic.OnDemandConfig{DecisionFunc: func(_ context.Context, name string) error {
			if !c.Allowed(name) {
				out.refused.Add(1)
				return fmt.Errorf("no site %q here", name)
			}
			return nil
		}},
		OnEvent: func(_ context.Context, event string, data map[string]any) error {
			switch event {
			case "cert_obtained":
				out.obtained.Add(1)
				c.Logger.Info("got a certificate", "name", data["identifier"])
			case "cert_failed":
				out.failed.Add(1)
				c.Logger.Warn("no certificate", "name", data["identifier"], "err", data["error"])
			}
			return nil
		},
		Logger: zap.NewNop(), // its events are logged
	})
	if own != nil {
		out.config.Issuers = []certmagic.Issuer{own}
		return out, nil
	}
	template := certmagic.ACMEIssuer{CA: c.Directory, Email: c.Email, Agreed: true, TrustedRoots: c.Roots, Logger: zap.NewNop(),
		DisableHTTPChallenge: c.HTTP == nil, DisableTLSALPNChallenge: c.HTTPS == nil}
	template.ListenHost, template.AltHTTPPort = hostPort(c.HTTP)
	_, template.AltTLSALPNPort = hostPort(c.HTTPS)
	out.acme = certmagic.NewACMEIssuer(out.config, template)
	out.config.Issuers = []certmagic.Issuer{out.acme}
	return out, nil
}

func hostPort(l net.Listener) (host string, port int) {
	if l == nil {
		return "", 0
	}
	if a, ok := l.Addr().(*net.TCPAddr); ok {
		return a.IP.String(), a.Port
	}
	return "", 0
}

// TLS is for Config.TLS.
func (c *Certificates) TLS() *tls.Config {
	out := c.config.TLSConfig()
	out.MinVersion = tls.VersionTLS12
	out.NextProtos = append([]string{"h2", "http/1.1"}, out.NextProtos...)
	return out
}

// Challenge is for Config.Challenge.
func (c *Certificates) Challenge(next http.Handler) http.Handler {
	if c.acme == nil {
		return next
	}
	return c.acme.HTTPChallengeHandler(next)
}

// Close ends renewals.
func (c *Certificates) Close() { c.cache.Stop() }
