package patchfile

import (
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"

	"github.com/starpatch/starpatch/patch"
	"github.com/starpatch/starpatch/problem"
)

// Classes of keys, as a patch's signer and the cert field of query_patch name them.
const (
	Formal = "formal" // released patches; always counts
	Dev    = "dev"    // developer patches; counts only where that was switched on
)

// RSA key sizes that are accepted, in bits. The original's keys have 2048.
const (
	minKeyBits = 2048
	maxKeyBits = 16384
)

// Key is a public key that may verify patches.
type Key struct {
	public *rsa.PublicKey
	id     string
}

// ID is the SHA-256 of the key's PKIX form, in lower-case hexadecimal.
func (k Key) ID() string { return k.id }

// NewKey takes an RSA public key of 2048 to 16384 bits.
func NewKey(public crypto.PublicKey) (Key, error) {
	k, ok := public.(*rsa.PublicKey)
	if !ok {
		return Key{}, problem.Errorf(problem.Invalid, "the key is not an RSA key, the only kind that patches are signed with")
	}
	if bits := k.N.BitLen(); bits < minKeyBits || bits > maxKeyBits {
		return Key{}, problem.Errorf(problem.Invalid, "the RSA key has %d bits; expected %d to %d", bits, minKeyBits, maxKeyBits)
	}
	der, err := x509.MarshalPKIXPublicKey(k)
	if err != nil {
		return Key{}, problem.Errorf(problem.Invalid, "cannot encode the RSA key: %w", err)
	}
	sum := sha256.Sum256(der)
	return Key{public: k, id: hex.EncodeToString(sum[:])}, nil
}

// ParseKey reads a PEM public key or X.509 certificate. Of a certificate only the key is taken: as in the original,
// validity dates, chain and usage are not looked at; being in the trust store is what makes a key trusted.
func ParseKey(text []byte) (Key, error) {
	block, _ := pem.Decode(text)
	if block == nil {
		return Key{}, problem.Errorf(problem.Invalid, "it has no PEM block; expected a public key or a certificate in PEM form")
	}
	switch block.Type {
	case "PUBLIC KEY":
		k, err := x509.ParsePKIXPublicKey(block.Bytes)
		if err != nil {
			return Key{}, problem.Errorf(problem.Invalid, "cannot read the public key: %w", err)
		}
		return NewKey(k)
	case "RSA PUBLIC KEY":
		k, err := x509.ParsePKCS1PublicKey(block.Bytes)
		if err != nil {
			return Key{}, problem.Errorf(problem.Invalid, "cannot read the public key: %w", err)
		}
		return NewKey(k)
	case "CERTIFICATE":
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return Key{}, problem.Errorf(problem.Invalid, "cannot read the certificate: %w", err)
		}
		return NewKey(c.PublicKey)
	case "PRIVATE KEY", "RSA PRIVATE KEY", "ENCRYPTED PRIVATE KEY":
		return Key{}, problem.Errorf(problem.Invalid, "it is a private key, which must stay with who signs; expected its public key or certificate")
	}
	return Key{}, problem.Errorf(problem.Invalid, "it is a PEM %s; expected PUBLIC KEY or CERTIFICATE", block.Type)
}

// ParseSigningKey reads a PEM private RSA key, PKCS#1 or PKCS#8, without pass phrase.
func ParseSigningKey(text []byte) (*rsa.PrivateKey, error) {
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, problem.Errorf(problem.Invalid, "it has no PEM block; expected a private key in PEM form")
	}
	var k any
	var err error
	switch block.Type {
	case "RSA PRIVATE KEY":
		if block.Headers["DEK-Info"] != "" {
			return nil, encrypted()
		}
		k, err = x509.ParsePKCS1PrivateKey(block.Bytes)
	case "PRIVATE KEY":
		k, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	case "ENCRYPTED PRIVATE KEY":
		return nil, encrypted()
	default:
		return nil, problem.Errorf(problem.Invalid, "it is a PEM %s; expected PRIVATE KEY or RSA PRIVATE KEY", block.Type)
	}
	if err != nil {
		return nil, problem.Errorf(problem.Invalid, "cannot read the private key: %w", err)
	}
	private, ok := k.(*rsa.PrivateKey)
	if !ok {
		return nil, problem.Errorf(problem.Invalid, "the key is not an RSA key, the only kind that patches are signed with")
	}
	if _, err := NewKey(private.Public()); err != nil {
		return nil, err
	}
	return private, nil
}

func encrypted() error {
	return problem.Errorf(problem.NotSupported, "the private key is protected by a pass phrase, which is not supported; decrypt it with openssl pkey first")
}

// Trust says whose signatures count. The zero Trust accepts nothing.
type Trust struct {
	Formal []Key
	Dev    []Key // leave empty where development patches are not accepted
	// AcceptPKCS1v15 also takes signatures in the older padding, after PSS did not fit. The original always does, though
	// no tool ever makes such patches.
	AcceptPKCS1v15 bool
}

// verify finds the key that made sig over digest.
func (t Trust) verify(digest [sha256.Size]byte, sig []byte) (patch.Signer, bool) {
	for _, c := range [...]struct {
		class string
		keys  []Key
	}{{Formal, t.Formal}, {Dev, t.Dev}} {
		for _, k := range c.keys {
			if k.verify(digest, sig, t.AcceptPKCS1v15) {
				return patch.Signer{Class: c.class, Key: k.id}, true
			}
		}
	}
	return patch.Signer{}, false
}

func (k Key) verify(digest [sha256.Size]byte, sig []byte, pkcs1v15 bool) bool {
	pss := &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: crypto.SHA256}
	if rsa.VerifyPSS(k.public, crypto.SHA256, digest[:], sig, pss) == nil {
		return true
	}
	return pkcs1v15 && rsa.VerifyPKCS1v15(k.public, crypto.SHA256, digest[:], sig) == nil
}

// markerText is what the dev marker signs. It is part of the format: existing markers carry a signature of it.
const markerText = "Titanium patching"

// CheckMarker says whether marker, the content of the dev marker file, is a formal key's permission to accept development
// patches on this system.
func (t Trust) CheckMarker(marker []byte) error {
	digest := sha256.Sum256([]byte(markerText))
	for _, k := range t.Formal {
		if k.verify(digest, marker, t.AcceptPKCS1v15) {
			return nil
		}
	}
	return problem.Errorf(problem.Invalid, "the dev marker is not signed by a formal key, so development patches are not accepted")
}

// Has says in which class the key with this ID is; "" when it is in none.
func (t Trust) Has(id string) string {
	for _, k := range t.Formal {
		if k.id == id {
			return Formal
		}
	}
	for _, k := range t.Dev {
		if k.id == id {
			return Dev
		}
	}
	return ""
}
