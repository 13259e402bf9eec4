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
				return fmt.Errorf("no site %q here", name)
			}
			return nil
		}},
		OnEvent: func(_ context.Context, event string, data map[string]any) error {
			switch event {
			case "cert_obtained":
				c.Logger.Info("got a certificate", "name", data["identifier"])
			case "cert_failed":
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
