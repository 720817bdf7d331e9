package pki

import (
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"

	"github.com/starpatch/starpatch/internal/durable"
	"github.com/starpatch/starpatch/problem"
)

const (
	certBlock = "CERTIFICATE"
	keyBlock  = "PRIVATE KEY"
)

func encodeCertificates(ders ...[]byte) []byte {
	var out []byte
	for _, d := range ders {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: certBlock, Bytes: d})...)
	}
	return out
}

func encodeKey(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: keyBlock, Bytes: der}), nil
}

// blocks returns the contents of all PEM blocks of one type.
func blocks(text []byte, kind string) [][]byte {
	var out [][]byte
	for {
		var b *pem.Block
		if b, text = pem.Decode(text); b == nil {
			return out
		}
		if b.Type == kind {
			out = append(out, b.Bytes)
		}
	}
}

// readCertificates returns the certificates in a file, at least one.
func readCertificates(path string) ([]*x509.Certificate, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var certs []*x509.Certificate
	for _, der := range blocks(text, certBlock) {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, problem.Errorf(problem.Invalid, "%s holds a certificate that cannot be read: %v", path, err)
		}
		certs = append(certs, c)
	}
	if len(certs) == 0 {
		return nil, problem.Errorf(problem.Invalid, "%s holds no certificate", path)
	}
	return certs, nil
}

// readKey returns the one private key in a file.
func readKey(path string) (*ecdsa.PrivateKey, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	keys := blocks(text, keyBlock)
	if len(keys) != 1 {
		return nil, problem.Errorf(problem.Invalid, "%s holds %d private keys; expected one", path, len(keys))
	}
	k, err := x509.ParsePKCS8PrivateKey(keys[0])
	if err != nil {
		return nil, problem.Errorf(problem.Invalid, "the private key in %s cannot be read", path)
	}
	key, ok := k.(*ecdsa.PrivateKey)
	if !ok {
		return nil, problem.Errorf(problem.Invalid, "the private key in %s is of another kind; expected ECDSA P-256", path)
	}
	return key, nil
}

func writeFile(dir, name string, text []byte, mode os.FileMode) error {
	if err := durable.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return durable.WriteFile(filepath.Join(dir, name), text, mode)
}
