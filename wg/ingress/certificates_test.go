package ingress

import (
	"context"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// secure runs an Ingress with HTTPS beside HTTP, and certificates of an authority
// of its own.
func secure(t *testing.T, rs replicas, dir string) (f *front, https string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f = run(t, rs, func(c *Config) {
		certificates, err := NewCertificates(CertConfig{Dir: dir, Directory: Internal, HTTP: c.HTTP, HTTPS: l, Logger: c.Logger,
			Allowed: func(name string) bool { return f.Serves(name) }})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(certificates.Close)
		c.HTTPS, c.TLS, c.Challenge = l, certificates.TLS(), certificates.Challenge
	})
	return f, l.Addr().String()
}

// curl asks for a URL of x.example, and for others, where the front is.
func curl(t *testing.T, f *front, https string, args ...string) (string, error) {
	t.Helper()
	tool, err := exec.LookPath("curl")
	if err != nil {
		t.Skip("curl is not there")
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var given []string
	for _, name := range []string{"x.example", "y.example"} {
		given = append(given, "--connect-to", name+":80:"+f.address, "--connect-to", name+":443:"+https)
	}
	out, err := exec.CommandContext(ctx, tool, append(append(given, "--silent", "--show-error", "--noproxy", "*"), args...)...).CombinedOutput()
	return string(out), err
}

// TestCurl: HTTP, HTTPS of the own authority, and HTTP/2 in both.
func TestCurl(t *testing.T) {
	dir := t.TempDir()
	f, https := secure(t, replicas{"a": serveReplica(t, "a", says("a"))}, dir)
	f.serves("x.example", 80, "a")
	ca := filepath.Join(dir, authorityCert)
	for _, tt := range []struct {
		args string
		want string
	}{
		{"http://x.example/1", "a: GET /1 |1.1 200"},
		{"--cacert " + ca + " https://x.example/2", "a: GET /2 |2 200"},
		{"--cacert " + ca + " --http1.1 https://x.example/3", "a: GET /3 |1.1 200"},
		{"--http2-prior-knowledge http://x.example/4", "a: GET /4 |2 200"},
		{"--cacert " + ca + " --data n=1 https://x.example/5", "a: POST /5 n=1|2 200"},
		{"http://y.example/", "no such site here\n|1.1 404"},
	} {
		got, err := curl(t, f, https, append([]string{"--write-out", "|%{http_version} %{http_code}"}, strings.Fields(tt.args)...)...)
		if err != nil || got != tt.want {
			t.Errorf("curl %s: %q, %v, want %q", tt.args, got, err, tt.want)
		}
	}
	if got, err := curl(t, f, https, "https://x.example/"); err == nil {
		t.Errorf("a client that does not know the authority trusts it: %q", got)
	}
	if got, err := curl(t, f, https, "--cacert", ca, "https://y.example/"); err == nil {
		t.Errorf("there is a certificate for a site that is not served: %q", got)
	}
}

// TestAuthority: what it signs is good for the names asked for and nothing else;
// the folder keeps it, and what does not belong together is refused.
func TestAuthority(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ingress")
	a, err := openAuthority(dir)
	if err != nil {
		t.Fatal(err)
	}
	b, err := openAuthority(dir)
	if err != nil || b.id != a.id {
		t.Fatalf("another authority after a restart: %v", err)
	}
	if info, err := os.Stat(filepath.Join(dir, authorityKey)); err != nil || info.Mode() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(a.cert)
	f, https := secure(t, replicas{"a": serveReplica(t, "a", says("a"))}, dir)
	f.serves("x.example", 80, "a")
	leaf, err := dialTLS(https, "x.example", roots)
	if err != nil {
		t.Fatal(err)
	}
	if leaf.IsCA || fmt.Sprint(leaf.DNSNames) != "[x.example]" || leaf.NotAfter.Sub(leaf.NotBefore) > 32*24*time.Hour {
		t.Errorf("CA %v, names %v, until %v", leaf.IsCA, leaf.DNSNames, leaf.NotAfter)
	}
	other, err := openAuthority(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if other.id == a.id {
		t.Error("two authorities are one")
	}
	if err := os.Remove(filepath.Join(dir, authorityKey)); err != nil {
		t.Fatal(err)
	}
	if again, err := openAuthority(dir); err != nil || again.id == a.id {
		t.Errorf("without its key: %v, %v", again, err)
	}
	for _, bad := range []string{"", "nonsense", "-----BEGIN EC PRIVATE KEY-----\nAAAA\n-----END EC PRIVATE KEY-----\n"} {
		if err := os.WriteFile(filepath.Join(dir, authorityKey), []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := openAuthority(dir); err == nil {
			t.Errorf("%q passes for a key", bad)
		}
	}
}
