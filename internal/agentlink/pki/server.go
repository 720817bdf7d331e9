package pki

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/starpatch/starpatch/host"
	"github.com/starpatch/starpatch/problem"
)

// serverFile holds a controller's private key and certificate together, so that they are replaced in one step.
const serverFile = "controller.pem"

// Server is a controller's own certificate, replaced by itself when it is two thirds through. It is safe for concurrent use.
type Server struct {
	ca    *CA
	names []string
	ips   []netip.Addr

	mu   sync.Mutex // also held while a replacement is written, once in 60 days
	cert *tls.Certificate
}

// Server loads the controller's certificate from the CA's folder, or issues one if there is none, if the names or
// addresses have changed, or if it is two thirds through. The first name is the controller's host name.
func (ca *CA) Server(names []string, ips []netip.Addr, now time.Time) (*Server, error) {
	if len(names) == 0 {
		return nil, problem.Errorf(problem.Invalid, "a controller's certificate needs a name")
	}
	if err := host.CheckName(names[0]); err != nil {
		return nil, err
	}
	s := &Server{ca: ca, names: sortedSet(names[1:], names[0]), ips: slices.Compact(slices.SortedFunc(slices.Values(ips), netip.Addr.Compare))}
	if c, err := loadPair(filepath.Join(ca.dir, serverFile)); err == nil && s.fits(c.Leaf, now) {
		s.cert = s.chain(c)
		return s, nil
	}
	if err := s.issue(now); err != nil {
		return nil, err
	}
	return s, nil
}

// sortedSet keeps first in front; it becomes the common name.
func sortedSet(rest []string, first string) []string {
	rest = slices.Compact(slices.Sorted(slices.Values(rest)))
	return append([]string{first}, slices.DeleteFunc(rest, func(n string) bool { return n == first })...)
}

// fits says that cert is still what Server would issue.
func (s *Server) fits(cert *x509.Certificate, now time.Time) bool {
	var ips []netip.Addr
	for _, ip := range cert.IPAddresses {
		a, ok := netip.AddrFromSlice(ip)
		if !ok {
			return false
		}
		ips = append(ips, a.Unmap())
	}
	return cert.CheckSignatureFrom(s.ca.cert) == nil && slices.Equal(cert.DNSNames, s.names) && slices.Equal(ips, s.ips) &&
		now.After(cert.NotBefore) && now.Before(RenewAt(cert))
}

func (s *Server) issue(now time.Time) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	t := &x509.Certificate{
		Subject:     subject(ControllerRole, s.names[0]),
		DNSNames:    s.names,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	for _, ip := range s.ips {
		t.IPAddresses = append(t.IPAddresses, ip.AsSlice())
	}
	cert, err := s.ca.sign(t, &key.PublicKey, now)
	if err != nil {
		return err
	}
	pair, err := savePair(s.ca.dir, serverFile, key, cert)
	if err != nil {
		return err
	}
	s.cert = s.chain(pair)
	return nil
}

// chain appends the CA: a joining agent finds in it what its token pins.
func (s *Server) chain(c *tls.Certificate) *tls.Certificate {
	c.Certificate = [][]byte{c.Leaf.Raw, s.ca.cert.Raw}
	return c
}

// Certificate returns the certificate to use now.
func (s *Server) Certificate(now time.Time) (*tls.Certificate, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now.After(RenewAt(s.cert.Leaf)) {
		if err := s.issue(now); err != nil {
			return nil, err
		}
	}
	return s.cert, nil
}

// ServerTLS is the configuration of a TLS 1.3 listener of a controller. clients says whether callers must show a
// certificate of our CA: tls.NoClientCert, tls.VerifyClientCertIfGiven or tls.RequireAndVerifyClientCert. Revoked
// certificates are refused during the handshake; revoked gets a serial as [Serial] writes it, and nil refuses none.
func (s *Server) ServerTLS(clients tls.ClientAuthType, revoked func(serial string) bool) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return s.Certificate(time.Now())
		},
		ClientAuth: clients,
		ClientCAs:  s.ca.Pool(),
		// A resumed session would outlive a revocation; a full handshake costs about a millisecond.
		SessionTicketsDisabled: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			if len(cs.VerifiedChains) > 0 && revoked != nil && revoked(Serial(cs.PeerCertificates[0])) {
				return problem.Errorf(problem.Forbidden, "the certificate of %s has been revoked", cs.PeerCertificates[0].Subject.CommonName)
			}
			return nil
		},
	}
}

// Agent returns the host name in the certificate with which the peer of a connection proved that it is an agent.
// Connections without certificate, and certificates of controllers, are refused.
func Agent(cs tls.ConnectionState) (string, error) {
	if len(cs.VerifiedChains) == 0 {
		return "", problem.Errorf(problem.Unauthorized, "no certificate was shown; only agents that have joined may connect")
	}
	cert := cs.PeerCertificates[0]
	if RoleOf(cert) != AgentRole {
		return "", problem.Errorf(problem.Forbidden, "the certificate of %q is not an agent's", cert.Subject.CommonName)
	}
	if err := host.CheckName(cert.Subject.CommonName); err != nil {
		return "", err
	}
	return cert.Subject.CommonName, nil
}

// savePair writes key and certificate into one file of mode 0600.
func savePair(dir, name string, key *ecdsa.PrivateKey, cert *x509.Certificate) (*tls.Certificate, error) {
	keyPEM, err := encodeKey(key)
	if err != nil {
		return nil, err
	}
	if err := writeFile(dir, name, bytes.Join([][]byte{encodeCertificates(cert.Raw), keyPEM}, nil), 0o600); err != nil {
		return nil, err
	}
	return &tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key, Leaf: cert}, nil
}

// loadPair reads what savePair wrote.
func loadPair(path string) (*tls.Certificate, error) {
	certs, err := readCertificates(path)
	if err != nil {
		return nil, err
	}
	key, err := readKey(path)
	if err != nil {
		return nil, err
	}
	if !key.PublicKey.Equal(certs[0].PublicKey) {
		return nil, problem.Errorf(problem.Conflict, "the private key and the certificate in %s do not belong together", path)
	}
	return &tls.Certificate{Certificate: [][]byte{certs[0].Raw}, PrivateKey: key, Leaf: certs[0]}, nil
}
