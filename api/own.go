package api

import (
	"encoding/json"
	"time"
)

// Status is what a controller says of itself (GET /api/v1/status).
type Status struct {
	Version    string          `json:"version"`    // of the program
	Controller string          `json:"controller"` // its host name
	Release    string          `json:"release"`    // running software release
	Started    time.Time       `json:"started"`    // UTC
	Patches    int             `json:"patches"`
	Hosts      int             `json:"hosts"`     // known
	Connected  int             `json:"connected"` // of them, those whose agent holds a connection now
	Releases   []ReleaseStatus `json:"releases"`
	Journal    JournalHead     `json:"journal"`
	FsyncP99   float64         `json:"fsync_p99_ms"` // of the state store's disk, measured at start; milliseconds
	Listeners  []Listener      `json:"listeners"`
	Warnings   []string        `json:"warnings"` // what an operator should look at; never null
}

// ReleaseStatus is one software release that the controller holds a base feed of.
type ReleaseStatus struct {
	Release  string `json:"release"`
	Revision int64  `json:"revision"` // generation of its update repository
	Repomd   string `json:"repomd_sha256"`
	Packages int    `json:"packages"` // in the base feed
}

// JournalHead is the last record of this controller's journal chain.
type JournalHead struct {
	Number int64  `json:"number"`
	Hash   string `json:"hash"` // SHA-256, lower-case hexadecimal
}

// Listener is one open port or socket and what it serves.
type Listener struct {
	Address  string   `json:"address"`
	Services []string `json:"services"`
	TLS      bool     `json:"tls"`
}

// TokenRequest asks for a join token (POST /api/v1/tokens).
type TokenRequest struct {
	Host string `json:"host"`
	TTL  string `json:"ttl,omitempty"` // a Go duration; empty: one hour
}

// Token is a join token. Secret is shown once, in the answer to its creation.
type Token struct {
	ID      string    `json:"id"`
	Host    string    `json:"host"`
	Expires time.Time `json:"expires"`
	Used    bool      `json:"used"`
	Secret  string    `json:"token,omitempty"`
}

// TrustKey is one public key that patches are verified with.
type TrustKey struct {
	Class  string `json:"class"`  // formal or dev
	Name   string `json:"name"`   // of the file
	Key    string `json:"key"`    // SHA-256 of the public key (PKIX DER), lower-case hexadecimal
	Counts bool   `json:"counts"` // whether patches signed with it are accepted now
}

// TrustRequest adds a public key (POST /api/v1/trust).
type TrustRequest struct {
	Class string `json:"class"`
	Name  string `json:"name"`
	PEM   string `json:"pem"`
}

// FeedRequest brings the base packages of a release in (POST /api/v1/feeds) from a folder on the controller.
type FeedRequest struct {
	Release string `json:"release"`
	Dir     string `json:"dir"`
}

// JournalPage is a run of journal records (GET /api/v1/journal?after=N).
type JournalPage struct {
	Records []json.RawMessage `json:"records"`
	Next    int64             `json:"next"` // pass as after for the rest; 0: that was all
}

// JournalCheck is the outcome of verifying the journal's chain of hashes (GET /api/v1/journal/verify).
type JournalCheck struct {
	Head    JournalHead `json:"head"`
	Records int64       `json:"records"`
}

// OperationLog is the kept output of an operation's tools (GET /api/v1/operations/{id}/log).
type OperationLog struct {
	ID     string `json:"id"`
	Output string `json:"output"`
}

// Dependencies is the reply of query_dependencies.
type Dependencies struct {
	Patches []string `json:"patches"`
	Error   string   `json:"error"`
}

// CommitReply is the reply of commit and commit_dry_run.
type CommitReply struct {
	Info  string `json:"info"`
	Error string `json:"error"`
}

// ApplyOptions are the parameters of apply.
type ApplyOptions struct {
	SkipSemantic bool
	Release      string // with --all: patches of this release only; empty: of every release
}

// RemoveOptions are the parameters of remove.
type RemoveOptions struct {
	RemoveUnremovable bool
	SkipAppCheck      bool
	SkipSemantic      bool
}
