// Package pki is the certificate authority of one system and the certificates that controllers and agents hold.
//
// There is one self-signed CA (ECDSA P-256) per system. It signs two kinds of certificates: a controller's, good as TLS
// server and client for the names and addresses of its machine, and an agent's, good as TLS client only, whose common
// name is the host's name. The kind is in the organizational unit, so that a controller's certificate is never taken for
// that of the agent on the same machine. Certificates live for 90 days and are replaced after two thirds of that time.
package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/starpatch/starpatch/host"
	"github.com/starpatch/starpatch/problem"
)

// Lifetime is how long controllers' and agents' certificates are valid.
const Lifetime = 90 * 24 * time.Hour

const (
	caLifetime = 20 * 365 * 24 * time.Hour
	// skew is how far a certificate's validity starts in the past, for hosts whose clocks are behind.
	skew = time.Hour
	// maxCSR is the largest certificate request that is looked at, in bytes; a P-256 one has about 250.
	maxCSR = 4096
)

// The file names of the CA in its folder.
const (
	caCertFile = "ca.pem"
	caKeyFile  = "ca-key.pem"
)

const organization = "starpatch"

// Role is what a certificate is for; it stands in the organizational unit.
type Role string

// The roles.
const (
	ControllerRole Role = "controller"
	AgentRole      Role = "agent"
)

// CA signs certificates. It is safe for concurrent use.
type CA struct {
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// CreateCA makes the CA of a new system in dir, which is created with mode 0700. A CA that is already there is refused:
// replacing it would lock every agent out.
func CreateCA(dir string, now time.Time) (*CA, error) {
	if _, err := os.Stat(filepath.Join(dir, caCertFile)); err == nil {
		return nil, problem.Errorf(problem.Conflict, "%s already holds a certificate authority; every agent trusts it, so it is not replaced", dir)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	t := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{Organization: []string{organization}, CommonName: "starpatch CA " + hex.EncodeToString(serial.Bytes()[:4])},
		NotBefore:             now.Add(-skew).UTC(),
		NotAfter:              now.Add(caLifetime).UTC(),
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLenZero:        true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	keyPEM, err := encodeKey(key)
	if err != nil {
		return nil, err
	}
	// The key comes first: a crash in between leaves a key without certificate, which the next run replaces.
	if err := writeFile(dir, caKeyFile, keyPEM, 0o600); err != nil {
		return nil, err
	}
	if err := writeFile(dir, caCertFile, encodeCertificates(der), 0o644); err != nil {
		return nil, err
	}
	return &CA{dir: dir, cert: cert, key: key}, nil
}

// LoadCA reads the CA that CreateCA made in dir; without one the error has kind not-found.
func LoadCA(dir string) (*CA, error) {
	certs, err := readCertificates(filepath.Join(dir, caCertFile))
	if errors.Is(err, os.ErrNotExist) {
		return nil, problem.Errorf(problem.NotFound, "%s holds no certificate authority; run sw-patch-controller init", dir)
	}
	if err != nil {
		return nil, err
	}
	key, err := readKey(filepath.Join(dir, caKeyFile))
	if err != nil {
		return nil, err
	}
	if !key.PublicKey.Equal(certs[0].PublicKey) || !certs[0].IsCA {
		return nil, problem.Errorf(problem.Conflict, "%s and %s in %s do not belong together; restore both from a backup", caCertFile, caKeyFile, dir)
	}
	return &CA{dir: dir, cert: certs[0], key: key}, nil
}

// Certificate is the CA's own certificate; do not change it.
func (ca *CA) Certificate() *x509.Certificate { return ca.cert }

// PEM is the CA's certificate as agents and clients keep it.
func (ca *CA) PEM() []byte { return encodeCertificates(ca.cert.Raw) }

// Hash is [Hash] of the CA's certificate: the last part of every join token.
func (ca *CA) Hash() string { return Hash(ca.cert) }

// Hash is the SHA-256 of a certificate's DER form, in hexadecimal.
func Hash(cert *x509.Certificate) string {
	sum := sha256.Sum256(cert.Raw)
	return hex.EncodeToString(sum[:])
}

// Pool holds the CA's certificate alone.
func (ca *CA) Pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(ca.cert)
	return p
}

// SignAgent signs the certificate of the agent on the named host. The request's common name must be that name, and its
// key ECDSA P-256; whatever else it asks for is ignored.
func (ca *CA) SignAgent(csr []byte, name string, now time.Time) (*x509.Certificate, error) {
	if err := host.CheckName(name); err != nil {
		return nil, err
	}
	pub, err := checkCSR(csr, name)
	if err != nil {
		return nil, err
	}
	return ca.sign(&x509.Certificate{
		Subject:     subject(AgentRole, name),
		DNSNames:    []string{name},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, pub, now)
}

// RequestName is the common name that the certificate request asks for; nothing else of it has been checked.
func RequestName(csr []byte) (string, error) {
	if len(csr) > maxCSR {
		return "", problem.Errorf(problem.TooLarge, "the certificate request has %d bytes; at most %d are accepted", len(csr), maxCSR)
	}
	req, err := x509.ParseCertificateRequest(csr)
	if err != nil {
		return "", problem.Errorf(problem.Invalid, "the certificate request cannot be read: %v", err)
	}
	return req.Subject.CommonName, host.CheckName(req.Subject.CommonName)
}

// RequestKey checks the certificate request as [CA.SignAgent] does and returns the SHA-256 of its public key, in
// hexadecimal: what a used token stays bound to.
func RequestKey(csr []byte, name string) (string, error) {
	pub, err := checkCSR(csr, name)
	if err != nil {
		return "", err
	}
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(der)
	return hex.EncodeToString(sum[:]), nil
}

func checkCSR(csr []byte, name string) (*ecdsa.PublicKey, error) {
	if len(csr) > maxCSR {
		return nil, problem.Errorf(problem.TooLarge, "the certificate request of %s has %d bytes; at most %d are accepted", name, len(csr), maxCSR)
	}
	req, err := x509.ParseCertificateRequest(csr)
	if err != nil {
		return nil, problem.Errorf(problem.Invalid, "the certificate request of %s cannot be read: %v", name, err)
	}
	if err := req.CheckSignature(); err != nil {
		return nil, problem.Errorf(problem.Invalid, "the certificate request of %s is not signed by its own key", name)
	}
	if req.Subject.CommonName != name {
		return nil, problem.Errorf(problem.Forbidden, "the certificate request is for %q, which is not %s", req.Subject.CommonName, name)
	}
	pub, ok := req.PublicKey.(*ecdsa.PublicKey)
	if !ok || pub.Curve != elliptic.P256() {
		return nil, problem.Errorf(problem.Invalid, "the certificate request of %s has another kind of key; expected ECDSA P-256", name)
	}
	return pub, nil
}

// sign completes the template with what all certificates share.
func (ca *CA) sign(t *x509.Certificate, pub *ecdsa.PublicKey, now time.Time) (*x509.Certificate, error) {
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	t.SerialNumber = serial
	t.NotBefore = now.Add(-skew).UTC()
	t.NotAfter = now.Add(Lifetime).UTC()
	t.BasicConstraintsValid = true
	t.KeyUsage = x509.KeyUsageDigitalSignature
	der, err := x509.CreateCertificate(rand.Reader, t, ca.cert, pub, ca.key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

func subject(role Role, name string) pkix.Name {
	return pkix.Name{Organization: []string{organization}, OrganizationalUnit: []string{string(role)}, CommonName: name}
}

// RoleOf says what a certificate of our CA is for; "" is none of ours.
func RoleOf(cert *x509.Certificate) Role {
	for _, r := range []Role{ControllerRole, AgentRole} {
		if slices.Equal(cert.Subject.OrganizationalUnit, []string{string(r)}) {
			return r
		}
	}
	return ""
}

// Serial is a certificate's serial number as deny lists and logs show it: hexadecimal.
func Serial(cert *x509.Certificate) string { return cert.SerialNumber.Text(16) }

// RenewAt is when a certificate should be replaced: after two thirds of its life.
func RenewAt(cert *x509.Certificate) time.Time {
	born := cert.NotBefore.Add(skew)
	return born.Add(cert.NotAfter.Sub(born) * 2 / 3)
}

// newSerial is 127 random bits with the topmost of 16 bytes never zero, so that no two certificates share it.
func newSerial() (*big.Int, error) {
	b := make([]byte, 16)
	if _, err := rand.Read(b); err != nil {
		return nil, err
	}
	b[0] = b[0]&0x7f | 0x40
	return new(big.Int).SetBytes(b), nil
}
