package ingress

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"time"

	"github.com/caddyserver/certmagic"

	"github.com/formthefog/formation/store/whole"
)

// Lives of what the own authority signs.
const (
	authorityLife   = 10 * 365 * 24 * time.Hour
	certificateLife = 30 * 24 * time.Hour
)

// authority signs certificates that only those trust who were given its own.
type authority struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
	id   string
}

// Files of an authority, in its folder.
const (
	authorityKey  = "ca.key"
	authorityCert = "ca.crt"
)

// openAuthority reads that of a folder, or makes one.
func openAuthority(dir string) (*authority, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	key, err := os.ReadFile(filepath.Join(dir, authorityKey))
	if errors.Is(err, fs.ErrNotExist) {
		return makeAuthority(dir)
	}
	if err != nil {
		return nil, err
	}
	cert, err := os.ReadFile(filepath.Join(dir, authorityCert))
	if err != nil {
		return nil, err
	}
	return readAuthority(key, cert)
}

func readAuthority(key, cert []byte) (*authority, error) {
	keyBlock, _ := pem.Decode(key)
	certBlock, _ := pem.Decode(cert)
	if keyBlock == nil || certBlock == nil {
		return nil, fmt.Errorf("%s or %s is not in PEM", authorityKey, authorityCert)
	}
	private, err := x509.ParseECPrivateKey(keyBlock.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", authorityKey, err)
	}
	c, err := x509.ParseCertificate(certBlock.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", authorityCert, err)
	}
	if !private.PublicKey.Equal(c.PublicKey) {
		return nil, fmt.Errorf("%s is not the key of %s", authorityKey, authorityCert)
	}
	sum := sha256.Sum256(c.Raw)
	return &authority{key: private, cert: c, id: hex.EncodeToString(sum[:8])}, nil
}

// makeAuthority makes one. The key comes last: without it the next start makes
// both anew.
func makeAuthority(dir string) (*authority, error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	host, err := os.Hostname()
	if err != nil {
		return nil, err
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: "Formation ingress on " + host},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(authorityLife),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		return nil, err
	}
	keyDER, err := x509.MarshalECPrivateKey(private)
	if err != nil {
		return nil, err
	}
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	key := pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER})
	if err := whole.Write(filepath.Join(dir, authorityCert), cert, 0o644); err != nil {
		return nil, err
	}
	if err := whole.Write(filepath.Join(dir, authorityKey), key, 0o600); err != nil {
		return nil, err
	}
	return readAuthority(key, cert)
}

func serial() *big.Int {
	var b [16]byte
	// It never fails.
	_, _ = rand.Read(b[:])
	b[0] = b[0]&0x7f | 0x40 // positive, and of one length
	return new(big.Int).SetBytes(b[:])
}

// Issue implements certmagic.Issuer: it signs what is asked for, which was judged
// before.
func (a *authority) Issue(_ context.Context, csr *x509.CertificateRequest) (*certmagic.IssuedCertificate, error) {
	if err := csr.CheckSignature(); err != nil {
		return nil, fmt.Errorf("own authority: %w", err)
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: serial(), Subject: csr.Subject, DNSNames: csr.DNSNames, IPAddresses: csr.IPAddresses,
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(certificateLife),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, csr.PublicKey, a.key)
	if err != nil {
		return nil, fmt.Errorf("own authority: %w", err)
	}
	return &certmagic.IssuedCertificate{Certificate: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}, nil
}

// IssuerKey implements certmagic.Issuer.
func (a *authority) IssuerKey() string { return "own-" + a.id }
