package ingress

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
)

// acmeServer is an ACME authority (RFC 8555) on loopback, for one account. It
// checks every signature and nonce, asks by HTTP-01 at the address given whether
// the name is the client's, and signs what the order was for.
type acmeServer struct {
	t    *testing.T
	at   string // where names lead
	ca   *authority
	http *httptest.Server

	mu      sync.Mutex
	account *ecdsa.PublicKey
	thumb   string
	nonces  map[string]bool
	name    string // of the one order
	proven  bool
	issued  []byte // PEM
	asked   int    // HTTP-01 questions
}

const acmeToken = "dGhlIHRva2VuIG9mIHRoaXMgdGVzdA"

func newACME(t *testing.T, at string) *acmeServer {
	t.Helper()
	ca, err := openAuthority(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	s := &acmeServer{t: t, at: at, ca: ca, nonces: map[string]bool{}}
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
			s.name = o.Identifiers[0].Value
		}
		w.Header().Set("Location", s.url("/order/1"))
		s.say(w, 201, s.order())
	case "/order/1":
		s.say(w, 200, s.order())
	case "/authz/1":
		s.say(w, 200, map[string]any{"status": s.status("valid", "pending"), "identifier": map[string]string{"type": "dns", "value": s.name}, "challenges": []any{s.challenge()}})
	case "/challenge/1":
		s.prove()
		s.say(w, 200, s.challenge())
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

func (s *acmeServer) challenge() map[string]any {
	return map[string]any{"type": "http-01", "url": s.url("/challenge/1"), "token": acmeToken, "status": s.status("valid", "pending")}
}

func (s *acmeServer) order() map[string]any {
	out := map[string]any{"status": s.status("ready", "pending"), "identifiers": []any{map[string]string{"type": "dns", "value": s.name}},
		"authorizations": []string{s.url("/authz/1")}, "finalize": s.url("/finalize/1")}
	if s.issued != nil {
		out["status"], out["certificate"] = "valid", s.url("/certificate/1")
	}
	return out
}

// prove asks the name's site for the answer that only the account can give.
func (s *acmeServer) prove() {
	s.asked++
	r, err := http.NewRequestWithContext(s.t.Context(), "GET", "http://"+s.at+"/.well-known/acme-challenge/"+acmeToken, nil)
	if err != nil {
		s.t.Error(err)
		return
	}
	r.Host = s.name
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		s.t.Error(err)
		return
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	s.proven = err == nil && res.StatusCode == 200 && strings.TrimSpace(string(b)) == acmeToken+"."+s.thumb
	if !s.proven {
		s.t.Errorf("HTTP-01 is answered %s %q, %v", res.Status, b, err)
	}
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
	leaf, err := s.ca.Issue(s.t.Context(), csr)
	if err != nil {
		s.t.Error(err)
		return
	}
	s.issued = append(leaf.Certificate, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.ca.cert.Raw})...)
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

// TestACME: the first client that asks for a site gets a certificate of the
// authority, which is proven to by HTTP on the port that serves sites; the second
// gets the same.
func TestACME(t *testing.T) {
	https, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var f *front
	var ca *acmeServer
	var certificates *Certificates
	f = run(t, replicas{"a": serveReplica(t, "a", says("a"))}, func(c *Config) {
		ca = newACME(t, c.HTTP.Addr().String())
		trust := x509.NewCertPool()
		trust.AddCert(ca.http.Certificate())
		certificates, err = NewCertificates(CertConfig{Dir: t.TempDir(), Directory: ca.url("/directory"), Email: "me@example.org", Roots: trust,
			HTTP: c.HTTP, Logger: c.Logger, Allowed: func(name string) bool { return f.Serves(name) }})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(certificates.Close)
		c.HTTPS, c.TLS, c.Challenge = https, certificates.TLS(), certificates.Challenge
	})
	f.serves("x.example", 80, "a")
	roots := x509.NewCertPool()
	roots.AddCert(ca.ca.cert)
	first, err := dialTLS(https.Addr().String(), "x.example", roots)
	if err != nil {
		t.Fatal(err)
	}
	second, err := dialTLS(https.Addr().String(), "x.example", roots)
	if err != nil || !second.Equal(first) || fmt.Sprint(first.DNSNames) != "[x.example]" {
		t.Errorf("%v, names %v", err, first.DNSNames)
	}
	if _, err := dialTLS(https.Addr().String(), "y.example", roots); err == nil {
		t.Error("there is a certificate for a site that is not served")
	}
	s := certificates.Stats([]string{"w.example", "x.example"})
	if want := (CertStats{Obtained: 1, Refused: 1, Held: 1, Expires: first.NotAfter}); s != want {
		t.Errorf("counted %+v, want %+v", s, want)
	}
	ca.mu.Lock()
	defer ca.mu.Unlock()
	if ca.asked != 1 || ca.name != "x.example" {
		t.Errorf("%d questions about %s", ca.asked, ca.name)
	}
	if status, body := f.get("x.example", "/.well-known/acme-challenge/other"); status != 200 || !strings.HasPrefix(body, "a: ") {
		t.Errorf("a path of the site's own: %d %q", status, body)
	}
}
