package agentlink

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"strings"
	"time"

	"github.com/starpatch/starpatch/host"
	"github.com/starpatch/starpatch/problem"
)

// Token lets one host join once. Its text, <id>.<secret>.<CA hash>, is shown once to the operator and kept nowhere.
type Token struct {
	ID     string // 16 hexadecimal digits; not secret
	Secret string // 32 hexadecimal digits
	CAHash string // pki.Hash of the CA that the agent must find
}

// TokenRecord is what the controller keeps of a token. It is the JSON in the state store.
type TokenRecord struct {
	ID         string    `json:"id"`
	SecretHash string    `json:"secret_hash"` // SHA-256 of the secret, hexadecimal
	Host       string    `json:"host"`        // the one host that may join with it
	Created    time.Time `json:"created"`
	Expires    time.Time `json:"expires"`
	Used       time.Time `json:"used"`          // first use; zero: never
	Key        string    `json:"key,omitempty"` // SHA-256 of the public key that used it, hexadecimal
}

// NewToken makes a token for the named host, good for ttl from now on, and the record to store before showing it.
func NewToken(name string, ttl time.Duration, caHash string, now time.Time) (Token, TokenRecord, error) {
	if err := host.CheckName(name); err != nil {
		return Token{}, TokenRecord{}, err
	}
	if ttl <= 0 {
		return Token{}, TokenRecord{}, problem.Errorf(problem.Invalid, "a join token cannot be valid for %v; give a positive duration", ttl)
	}
	var b [24]byte
	if _, err := rand.Read(b[:]); err != nil {
		return Token{}, TokenRecord{}, err
	}
	t := Token{ID: hex.EncodeToString(b[:8]), Secret: hex.EncodeToString(b[8:]), CAHash: caHash}
	return t, TokenRecord{ID: t.ID, SecretHash: hashSecret(t.Secret), Host: name, Created: now.UTC(), Expires: now.Add(ttl).UTC()}, nil
}

// String is the token's text, which holds the secret: do not log it.
func (t Token) String() string { return t.ID + "." + t.Secret + "." + t.CAHash }

// ParseToken reads a token's text; surrounding white space is ignored. The secret never appears in the error.
func ParseToken(s string) (Token, error) {
	parts := strings.Split(strings.TrimSpace(s), ".")
	if len(parts) == 3 && isHex(parts[0], 16) && isHex(parts[1], 32) && isHex(parts[2], 64) {
		return Token{ID: parts[0], Secret: parts[1], CAHash: parts[2]}, nil
	}
	return Token{}, problem.Errorf(problem.Invalid, "this is not a join token; expected the line that sw-patch-controller token create printed: <id>.<secret>.<CA hash>")
}

func isHex(s string, n int) bool {
	if len(s) != n {
		return false
	}
	for _, c := range []byte(s) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

func hashSecret(secret string) string {
	sum := sha256.Sum256([]byte(secret))
	return hex.EncodeToString(sum[:])
}

// Claim is one attempt to use a token.
type Claim struct {
	Token   string    // id of the token
	Secret  string    // as presented; do not store or log it
	Host    string    // name in the certificate request
	Key     string    // SHA-256 of the requesting public key, hexadecimal
	Serial  string    // of the certificate that will be handed out, as pki.Serial writes it
	Expires time.Time // of that certificate
}

// Redeem decides whether the claim may use the token, and returns the record to store before the certificate is handed
// out. The first key wins; the same key may come again while the token is valid, since the reply to it may have been
// lost. The caller commits the result with a compare on what it read, so that two keys cannot both be first.
func (r TokenRecord) Redeem(c Claim, now time.Time) (TokenRecord, error) {
	// One answer for an unknown id and a wrong secret, so that ids cannot be probed.
	if r.ID != c.Token || subtle.ConstantTimeCompare([]byte(r.SecretHash), []byte(hashSecret(c.Secret))) != 1 {
		return TokenRecord{}, ErrToken
	}
	if !now.Before(r.Expires) {
		return TokenRecord{}, problem.Errorf(problem.Unauthorized, "join token %s expired at %s; create a new one for %s", r.ID, r.Expires.Format(time.RFC3339), r.Host)
	}
	if c.Host != r.Host {
		return TokenRecord{}, problem.Errorf(problem.Forbidden, "join token %s is for %s, not for %s; create one for %s", r.ID, r.Host, c.Host, c.Host)
	}
	if !r.Used.IsZero() && r.Key != c.Key {
		return TokenRecord{}, problem.Errorf(problem.Conflict, "join token %s was used at %s by another key of %s; create a new one, and find out who used it if you did not", r.ID, r.Used.Format(time.RFC3339), r.Host)
	}
	if r.Used.IsZero() {
		r.Used, r.Key = now.UTC(), c.Key
	}
	return r, nil
}

// ErrToken is the answer to a token that does not exist or whose secret is wrong.
var ErrToken error = &problem.Error{Kind: problem.Unauthorized, Msg: "the controller does not know this join token; create one with sw-patch-controller token create"}
