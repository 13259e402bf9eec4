package ingress

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"
)

// acmeServer is an ACME authority (RFC 8555) on loopback, for one account and one
// order at a time. It checks every signature and nonce, asks by HTTP-01 or
// TLS-ALPN-01 at the addresses given whether the name is the client's, and signs
// what the order was for.
type acmeServer struct {
	t         *testing.T
	at, tlsAt string // where names lead
	ca        *authority
	http      *httptest.Server

	mu      sync.Mutex
	account *ecdsa.PublicKey
	thumb   string
	nonces  map[string]bool
	name    string // of the one order
	proven  bool
	issued  []byte         // PEM
	asked   map[string]int // questions by kind
	down    bool
	age     time.Duration // of what it signs: it was good before, and ends so much sooner
}

// acmeLife is how long it signs for.
const acmeLife = 90 * 24 * time.Hour

const acmeToken = "dGhlIHRva2VuIG9mIHRoaXMgdGVzdA"

func newACME(t *testing.T, at, tlsAt string) *acmeServer {
	t.Helper()
	ca, err := openAuthority(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	s := &acmeServer{t: t, at: at, tlsAt: tlsAt, ca: ca, nonces: map[string]bool{}, asked: map[string]int{}}
	s.http = httptest.NewTLSServer(s)
	t.Cleanup(s.http.Close)
	return s
}

func (s *acmeServer) url(path string) string { return s.http.URL + path }

// jwk is an account's key as its statements name it.
type jwk struct{ Crv, Kty, X, Y string }

// ServeHTTP implements http.Handler.
func (s *acmeServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.down {
		s.say(w, 500, map[string]any{"type": "urn:ietf:params:acme:error:serverInternal"})
		return
	}
	nonce := rand.Text()
	s.nonces[nonce] = true
	w.Header().Set("Replay-Nonce", nonce)
	w.Header().Set("Content-Type", "application/json")
	if r.URL.Path == "/directory" {
		s.say(w, 200, map[string]any{"newNonce": s.url("/nonce"), "newAccount": s.url("/account"), "newOrder": s.url("/order"), "revokeCert": s.url("/revoke"), "keyChange": s.url("/key")})
		return
	}
	if r.URL.Path == "/nonce" {
		return
	}
	payload, err := s.verify(r)
	if err != nil {
		s.t.Errorf("ACME: %s: %v", r.URL.Path, err)
		s.say(w, 400, map[string]any{"type": "urn:ietf:params:acme:error:malformed", "detail": err.Error()})
		return
	}
	switch r.URL.Path {
	case "/account":
		w.Header().Set("Location", s.url("/account/1"))
		s.say(w, 201, map[string]any{"status": "valid", "orders": s.url("/orders")})
	case "/order":
		var o struct {
			Identifiers []struct{ Type, Value string }
		}
		if err := json.Unmarshal(payload, &o); err != nil || len(o.Identifiers) != 1 || o.Identifiers[0].Type != "dns" {
			s.t.Errorf("ACME: order %s: %v", payload, err)
		} else {
			s.name, s.proven, s.issued = o.Identifiers[0].Value, false, nil
		}
		w.Header().Set("Location", s.url("/order/1"))
		s.say(w, 201, s.order())
	case "/order/1":
		s.say(w, 200, s.order())
	case "/authz/1":
		s.say(w, 200, map[string]any{"status": s.status("valid", "pending"), "identifier": map[string]string{"type": "dns", "value": s.name}, "challenges": []any{s.challenge("http-01"), s.challenge("tls-alpn-01")}})
	case "/challenge/http-01", "/challenge/tls-alpn-01":
		kind := strings.TrimPrefix(r.URL.Path, "/challenge/")
		s.asked[kind]++
		prove := s.proveHTTP
		if kind == "tls-alpn-01" {
			prove = s.proveTLS
		}
		if err := prove(); err != nil {
			s.t.Errorf("%s of %s: %v", kind, s.name, err)
		} else {
			s.proven = true
		}
		s.say(w, 200, s.challenge(kind))
	case "/finalize/1":
		s.finalize(payload)
		w.Header().Set("Location", s.url("/order/1"))
		s.say(w, 200, s.order())
	case "/certificate/1":
		w.Header().Set("Content-Type", "application/pem-certificate-chain")
		_, _ = w.Write(s.issued)
	default:
		s.t.Errorf("ACME: %s is asked for", r.URL.Path)
		w.WriteHeader(404)
	}
}

func (s *acmeServer) say(w http.ResponseWriter, status int, v any) {
	w.WriteHeader(status)
	// The client sees it when it is cut off.
	_ = json.NewEncoder(w).Encode(v)
}

func (s *acmeServer) status(yes, no string) string {
	if s.proven {
		return yes
	}
	return no
}

func (s *acmeServer) challenge(kind string) map[string]any {
	return map[string]any{"type": kind, "url": s.url("/challenge/" + kind), "token": acmeToken, "status": s.status("valid", "pending")}
}

func (s *acmeServer) order() map[string]any {
	out := map[string]any{"status": s.status("ready", "pending"), "identifiers": []any{map[string]string{"type": "dns", "value": s.name}},
		"authorizations": []string{s.url("/authz/1")}, "finalize": s.url("/finalize/1")}
	if s.issued != nil {
		out["status"], out["certificate"] = "valid", s.url("/certificate/1")
	}
	return out
}

// proveHTTP asks the name's site for the answer that only the account can give.
func (s *acmeServer) proveHTTP() error {
	r, err := http.NewRequestWithContext(s.t.Context(), "GET", "http://"+s.at+"/.well-known/acme-challenge/"+acmeToken, nil)
	if err != nil {
		return err
	}
	r.Host = s.name
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err == nil && (res.StatusCode != 200 || strings.TrimSpace(string(b)) != acmeToken+"."+s.thumb) {
		err = fmt.Errorf("%s %q", res.Status, b)
	}
	return err
}

// proveTLS asks for it by RFC 8737: a certificate for the name alone that has the
// answer's hash in it, shown to who speaks nothing but acme-tls/1.
func (s *acmeServer) proveTLS() error {
	d := tls.Dialer{NetDialer: &net.Dialer{Timeout: 20 * time.Second},
		Config: &tls.Config{ServerName: s.name, NextProtos: []string{"acme-tls/1"}, InsecureSkipVerify: true}} // it signs itself
	raw, err := d.DialContext(s.t.Context(), "tcp", s.tlsAt)
	if err != nil {
		return err
	}
	defer raw.Close()
	state := raw.(*tls.Conn).ConnectionState()
	leaf := state.PeerCertificates[0]
	if state.NegotiatedProtocol != "acme-tls/1" || fmt.Sprint(leaf.DNSNames) != "["+s.name+"]" {
		return fmt.Errorf("by %q a certificate for %v", state.NegotiatedProtocol, leaf.DNSNames)
	}
	sum := sha256.Sum256([]byte(acmeToken + "." + s.thumb))
	want, err := asn1.Marshal(sum[:])
	if err != nil {
		return err
	}
	for _, e := range leaf.Extensions {
		if e.Id.Equal(asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 1, 31}) {
			if !e.Critical || !bytes.Equal(e.Value, want) {
				return fmt.Errorf("the answer is %x, critical %v", e.Value, e.Critical)
			}
			return nil
		}
	}
	return errors.New("a certificate without an answer")
}

func (s *acmeServer) finalize(payload []byte) {
	var f struct{ CSR string }
	err := json.Unmarshal(payload, &f)
	var der []byte
	if err == nil {
		der, err = base64.RawURLEncoding.DecodeString(f.CSR)
	}
	var csr *x509.CertificateRequest
	if err == nil {
		csr, err = x509.ParseCertificateRequest(der)
	}
	if err != nil || !s.proven || fmt.Sprint(csr.DNSNames) != "["+s.name+"]" {
		s.t.Errorf("ACME: finalize, proven %v: %v", s.proven, err)
		return
	}
	begin := time.Now().Add(-time.Minute - s.age)
	template := &x509.Certificate{SerialNumber: serial(), DNSNames: csr.DNSNames, NotBefore: begin, NotAfter: begin.Add(acmeLife),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	leaf, err := x509.CreateCertificate(rand.Reader, template, s.ca.cert, csr.PublicKey, s.ca.key)
	if err != nil {
		s.t.Error(err)
		return
	}
	s.issued = append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf}), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.ca.cert.Raw})...)
}

// verify checks a signed request and returns what it says.
func (s *acmeServer) verify(r *http.Request) ([]byte, error) {
	var j struct{ Protected, Payload, Signature string }
	if err := json.NewDecoder(io.LimitReader(r.Body, 64<<10)).Decode(&j); err != nil {
		return nil, err
	}
	var head struct {
		Alg, Nonce, URL, Kid string
		JWK                  *jwk
	}
	raw, err := base64.RawURLEncoding.DecodeString(j.Protected)
	if err == nil {
		err = json.Unmarshal(raw, &head)
	}
	if err != nil {
		return nil, err
	}
	if head.Alg != "ES256" || head.URL != s.url(r.URL.Path) || !s.nonces[head.Nonce] {
		return nil, fmt.Errorf("header %s", raw)
	}
	delete(s.nonces, head.Nonce)
	if head.JWK != nil && s.account == nil {
		if err := s.register(*head.JWK); err != nil {
			return nil, err
		}
	}
	if s.account == nil {
		return nil, fmt.Errorf("no account: %s", raw)
	}
	signature, err := base64.RawURLEncoding.DecodeString(j.Signature)
	if err != nil || len(signature) != 64 {
		return nil, fmt.Errorf("signature %q", j.Signature)
	}
	sum := sha256.Sum256([]byte(j.Protected + "." + j.Payload))
	if !ecdsa.Verify(s.account, sum[:], new(big.Int).SetBytes(signature[:32]), new(big.Int).SetBytes(signature[32:])) {
		return nil, fmt.Errorf("the signature is not the account's")
	}
	return base64.RawURLEncoding.DecodeString(j.Payload)
}

func (s *acmeServer) register(k jwk) error {
	x, err := base64.RawURLEncoding.DecodeString(k.X)
	if err != nil {
		return err
	}
	y, err := base64.RawURLEncoding.DecodeString(k.Y)
	if err != nil {
		return err
	}
	s.account, err = ecdsa.ParseUncompressedPublicKey(elliptic.P256(), append(append([]byte{4}, x...), y...))
	sum := sha256.Sum256(fmt.Appendf(nil, `{"crv":%q,"kty":%q,"x":%q,"y":%q}`, k.Crv, k.Kty, k.X, k.Y))
	s.thumb = base64.RawURLEncoding.EncodeToString(sum[:])
	return err
}

// acmeSites serves x.example and others by HTTPS with certificates of an ACME
// authority.
type acmeSites struct {
	*front
	t            *testing.T
	https        string
	ca           *acmeServer
	certificates *Certificates
	roots        *x509.CertPool
}

// startACME makes one; with alpn, questions come by TLS alone.
func startACME(t *testing.T, alpn bool) *acmeSites {
	t.Helper()
	https, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &acmeSites{t: t, https: https.Addr().String(), roots: x509.NewCertPool()}
	s.front = run(t, replicas{"a": serveReplica(t, "a", says("a"))}, func(c *Config) {
		s.ca = newACME(t, c.HTTP.Addr().String(), s.https)
		trust := x509.NewCertPool()
		trust.AddCert(s.ca.http.Certificate())
		// An attempt that fails is made again after a minute, by somebody who does
		// not end with the test.
		cc := CertConfig{Dir: t.TempDir(), Directory: s.ca.url("/directory"), Email: "me@example.org", Roots: trust,
			Logger: slog.New(slog.DiscardHandler), Allowed: func(name string) bool { return s.Serves(name) }}
		if alpn {
			cc.HTTPS = https
		} else {
			cc.HTTP = c.HTTP
		}
		if s.certificates, err = NewCertificates(cc); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(s.certificates.Close)
		c.HTTPS, c.TLS, c.Challenge = https, s.certificates.TLS(), s.certificates.Challenge
	})
	s.roots.AddCert(s.ca.ca.cert)
	s.Set(Desired{Sites: map[string]Service{"x.example": of(80, "a"), "w.example": of(80, "a")}})
	return s
}

// with changes the authority.
func (s *acmeSites) with(change func(ca *acmeServer)) {
	s.ca.mu.Lock()
	defer s.ca.mu.Unlock()
	change(s.ca)
}

// shown is the certificate of a site.
func (s *acmeSites) shown(name string) *x509.Certificate {
	s.t.Helper()
	c, err := dialTLS(s.https, name, s.roots)
	if err != nil {
		s.t.Fatal(err)
	}
	return c
}

// TestACME: the first client that asks for a site gets a certificate of the
// authority, which is proven to by the port that serves sites, by HTTP or by TLS;
// the second gets the same.
func TestACME(t *testing.T) {
	for _, kind := range []string{"http-01", "tls-alpn-01"} {
		t.Run(kind, func(t *testing.T) {
			s := startACME(t, kind == "tls-alpn-01")
			first := s.shown("x.example")
			if second := s.shown("x.example"); !second.Equal(first) || fmt.Sprint(first.DNSNames) != "[x.example]" {
				t.Errorf("names %v", first.DNSNames)
			}
			if _, err := dialTLS(s.https, "y.example", s.roots); err == nil {
				t.Error("there is a certificate for a site that is not served")
			}
			got := s.certificates.Stats(s.Sites())
			if want := (CertStats{Obtained: 1, Refused: 1, Held: 1, Expires: first.NotAfter}); got != want {
				t.Errorf("counted %+v, want %+v", got, want)
			}
			s.with(func(ca *acmeServer) {
				if asked := fmt.Sprint(ca.asked); asked != "map["+kind+":1]" || ca.name != "x.example" {
					t.Errorf("questions %s about %s", asked, ca.name)
				}
			})
			if status, body := s.get("x.example", "/.well-known/acme-challenge/other"); status != 200 || !strings.HasPrefix(body, "a: ") {
				t.Errorf("a path of the site's own: %d %q", status, body)
			}
		})
	}
}

// TestRenewal: a certificate that ends soon is shown until there is another; when
// the authority is away it still is.
func TestRenewal(t *testing.T) {
	s := startACME(t, true)
	s.with(func(ca *acmeServer) { ca.age = acmeLife * 9 / 10 })
	old := s.shown("x.example")
	other := s.shown("w.example")
	for _, c := range []*x509.Certificate{old, other} {
		if left := time.Until(c.NotAfter); left > acmeLife/9 {
			t.Fatalf("%v are left", left)
		}
	}

	s.with(func(ca *acmeServer) { ca.age = 0 })
	if c := s.shown("x.example"); !c.Equal(old) {
		t.Error("a client waited for the renewal")
	}
	eventually(t, 30*time.Second, "the new certificate", func() bool { return !s.shown("x.example").Equal(old) })
	if left := time.Until(s.shown("x.example").NotAfter); left < acmeLife*9/10 {
		t.Errorf("the new one has %v left", left)
	}
	if got := s.certificates.Stats(s.Sites()); got.Held != 2 || !got.Expires.Equal(other.NotAfter) || got.Failed > 0 {
		t.Errorf("counted %+v", got)
	}

	s.with(func(ca *acmeServer) { ca.down = true })
	failed := func() uint64 { return s.certificates.Stats(nil).Failed }
	eventually(t, 30*time.Second, "a renewal to fail", func() bool {
		if c := s.shown("w.example"); !c.Equal(other) {
			t.Fatal("another certificate, of an authority that is away")
		}
		return failed() > 0
	})
	if c := s.shown("w.example"); !c.Equal(other) {
		t.Error("another certificate, of an authority that is away")
	}
}
