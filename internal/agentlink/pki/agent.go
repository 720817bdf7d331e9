package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/starpatch/starpatch/host"
	"github.com/starpatch/starpatch/internal/durable"
	"github.com/starpatch/starpatch/problem"
)

// The file names of an agent's identity in its folder.
const (
	agentFile   = "agent.pem"
	joiningFile = "joining-key.pem"
	tokenFile   = "joined-with"
)

// Identity is what an agent has after joining: its key, its certificate and the CA that it trusts. It does not change;
// Renew makes the next one.
type Identity struct {
	dir  string
	pair *tls.Certificate
	ca   *x509.Certificate
}

// LoadIdentity reads an agent's identity; the error has kind not-found before it has joined.
func LoadIdentity(dir string) (*Identity, error) {
	pair, err := loadPair(filepath.Join(dir, agentFile))
	if errors.Is(err, os.ErrNotExist) {
		return nil, problem.Errorf(problem.NotFound, "this host has not joined a system yet: %s holds no certificate; give the agent a join token", dir)
	}
	if err != nil {
		return nil, err
	}
	cas, err := readCertificates(filepath.Join(dir, caCertFile))
	if err != nil {
		return nil, err
	}
	return &Identity{dir: dir, pair: pair, ca: cas[0]}, nil
}

// Host is the name in the certificate.
func (id *Identity) Host() string { return id.pair.Leaf.Subject.CommonName }

// Certificate is the agent's certificate; do not change it.
func (id *Identity) Certificate() *x509.Certificate { return id.pair.Leaf }

// Pair is the certificate with its key; do not change it.
func (id *Identity) Pair() *tls.Certificate { return id.pair }

// Files are the PEM files for programs such as dnf. Certificate and key are the same file, so that a renewal replaces
// both at once; programs skip the block that they do not look for.
func (id *Identity) Files() (cert, key, ca string) {
	pair := filepath.Join(id.dir, agentFile)
	return pair, pair, filepath.Join(id.dir, caCertFile)
}

// ClientTLS is the configuration to reach a controller by one of the names or addresses in its certificate. With
// serverName empty the TLS client must fill it in, as net/http does.
func (id *Identity) ClientTLS(serverName string) *tls.Config {
	roots := x509.NewCertPool()
	roots.AddCert(id.ca)
	return &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots, Certificates: []tls.Certificate{*id.pair}, ServerName: serverName}
}

// JoiningKey returns the key of a join that is under way, making it durable before first use: if the reply is lost, the
// same key asks again, and the used token lets it in.
func JoiningKey(dir string) (*ecdsa.PrivateKey, error) {
	key, err := readKey(filepath.Join(dir, joiningFile))
	if err == nil || !errors.Is(err, os.ErrNotExist) {
		return key, err
	}
	if key, err = NewKey(); err != nil {
		return nil, err
	}
	text, err := encodeKey(key)
	if err != nil {
		return nil, err
	}
	return key, writeFile(dir, joiningFile, text, 0o600)
}

// JoinedWith says whether dir holds an identity that was got, completely, with the token of this id.
func JoinedWith(dir, token string) (bool, error) {
	if _, err := os.Stat(filepath.Join(dir, joiningFile)); !errors.Is(err, os.ErrNotExist) {
		return false, err
	}
	if _, err := os.Stat(filepath.Join(dir, agentFile)); err != nil {
		if errors.Is(err, os.ErrNotExist) {
			err = nil
		}
		return false, err
	}
	text, err := os.ReadFile(filepath.Join(dir, tokenFile))
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	return strings.TrimSpace(string(text)) == token, err
}

// NewKey makes an agent's key.
func NewKey() (*ecdsa.PrivateKey, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) }

// Request makes the certificate request (DER) for the named host.
func Request(key *ecdsa.PrivateKey, name string) ([]byte, error) {
	return x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: subject(AgentRole, name)}, key)
}

// Pinned is the configuration for the first connection to a controller, when all that is known of the CA is the hash in
// the token. The handshake fails, before anything is sent, unless the controller shows a CA with that hash and a
// certificate of that CA for serverName.
func Pinned(hash, serverName string) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		ServerName: serverName,
		// The chain is verified below, against the pinned CA instead of the machine's own ones.
		InsecureSkipVerify: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			for _, ca := range cs.PeerCertificates {
				if Hash(ca) != hash {
					continue
				}
				roots := x509.NewCertPool()
				roots.AddCert(ca)
				_, err := cs.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: roots, DNSName: serverName, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
				return err
			}
			return ErrOtherCA
		},
	}
}

// ErrOtherCA is what [Pinned] fails with when the controller's CA is not the one in the token.
var ErrOtherCA error = &problem.Error{Kind: problem.Forbidden, Msg: "the controller's certificate authority is not the one that the join token names; the token is for another system, or something stands between this host and the controller"}

// SaveIdentity checks that the controller's reply fits the key, the name and the CA hash (hexadecimal), and makes it
// durable, together with the id of the token that was used. It takes the place of an earlier identity.
func SaveIdentity(dir, name, token, hash string, key *ecdsa.PrivateKey, certDER, caDER []byte, now time.Time) (*Identity, error) {
	ca, err := x509.ParseCertificate(caDER)
	if err != nil {
		return nil, problem.Errorf(problem.Invalid, "the controller's reply holds no readable CA certificate: %v", err)
	}
	if Hash(ca) != hash {
		return nil, ErrOtherCA
	}
	cert, err := checkIssued(ca, name, key, certDER, now)
	if err != nil {
		return nil, err
	}
	if err := writeFile(dir, caCertFile, encodeCertificates(ca.Raw), 0o644); err != nil {
		return nil, err
	}
	pair, err := savePair(dir, agentFile, key, cert)
	if err != nil {
		return nil, err
	}
	if err := writeFile(dir, tokenFile, []byte(token+"\n"), 0o600); err != nil {
		return nil, err
	}
	// Last of all: as long as the key is there, a join is under way.
	if err := durable.Remove(filepath.Join(dir, joiningFile)); err != nil {
		return nil, err
	}
	return &Identity{dir: dir, pair: pair, ca: ca}, nil
}

// Renew checks a new certificate for a new key and makes both durable.
func (id *Identity) Renew(key *ecdsa.PrivateKey, certDER []byte, now time.Time) (*Identity, error) {
	cert, err := checkIssued(id.ca, id.Host(), key, certDER, now)
	if err != nil {
		return nil, err
	}
	pair, err := savePair(id.dir, agentFile, key, cert)
	if err != nil {
		return nil, err
	}
	return &Identity{dir: id.dir, pair: pair, ca: id.ca}, nil
}

func checkIssued(ca *x509.Certificate, name string, key *ecdsa.PrivateKey, der []byte, now time.Time) (*x509.Certificate, error) {
	if err := host.CheckName(name); err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, problem.Errorf(problem.Invalid, "the controller's reply holds no readable certificate: %v", err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca)
	if _, err := cert.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		return nil, problem.Errorf(problem.Invalid, "the controller's reply holds a certificate that its own CA did not sign for now: %v; compare the clocks of this host and the controller", err)
	}
	if !key.PublicKey.Equal(cert.PublicKey) || cert.Subject.CommonName != name || RoleOf(cert) != AgentRole {
		return nil, problem.Errorf(problem.Invalid, "the controller's reply holds a certificate for another key or host than %s", name)
	}
	return cert, nil
}
