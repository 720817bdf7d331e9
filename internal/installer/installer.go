// Package installer is the contract of what carries package transactions out on one host. Deciding what to install is
// not here (host.MakePlan), nor is what happens around a transaction (internal/agent). One driver exists: installer/dnf.
package installer

import (
	"context"
	"errors"
	"time"

	"github.com/starpatch/starpatch/internal/process"
	"github.com/starpatch/starpatch/internal/rpm"
)

// MaxOutput is how much of a tool's output a [Result] keeps, from its end, in bytes.
const MaxOutput = 32 << 10

// ErrInterrupted is the cause when somebody ended a package tool: its transaction may be half-done, and nothing is wrong
// with the packages, so it can be repeated.
var ErrInterrupted = errors.New("the package tool was interrupted")

// ErrUnreachable is the cause when the package repository could not be reached, or a connection to it broke: nothing was
// changed, and the same may well succeed later.
var ErrUnreachable = errors.New("the package repository cannot be reached")

// Source is where packages come from: the repositories of one generation, reached with the host's own certificate.
type Source struct {
	Release string
	Base    string // URL of the base repository
	Updates string // URL of the generation of the update repository
	CA      string // PEM files; empty for repositories that need none
	Cert    string
	Key     string
}

// Result is what a tool said and how long it took. It is filled in when there is an error too.
type Result struct {
	Output []byte        // tail of what the tools wrote
	Took   time.Duration // time spent inside the outside programs
}

// Started is told the identity of an outside program before it runs; when it returns an error, nothing runs. Whoever
// saves it can find the program again after a crash of its own. It may be called more than once in one transaction.
type Started func(process.ID) error

// Tools changes the packages of one host. Its methods may be called concurrently and run one after the other, because
// the package database takes one at a time.
//
// Install, Remove and Repair return nil only when every package tool ended well and no scriptlet failed. After any error
// the database may hold the old state, the new one or something between: only Installed tells. When ctx ends, a
// transaction that has begun is finished first.
type Tools interface {
	// Installed lists what the package database has, sorted; a package that is in it twice is listed twice. While
	// somebody else changes packages it waits.
	Installed(ctx context.Context) ([]rpm.NEVRA, error)
	// Install brings exactly these builds in, up or down, with what they require, in one transaction. The packages are
	// kept until Clean.
	Install(ctx context.Context, src Source, packages []rpm.NEVRA, started Started) (Result, error)
	// Remove takes exactly these builds away, in one transaction; it never takes what requires them.
	Remove(ctx context.Context, packages []rpm.NEVRA, started Started) (Result, error)
	// Repair installs package files over whatever is there, in one transaction: other versions, the same version again,
	// and versions that an interrupted transaction left twice.
	Repair(ctx context.Context, files []string, started Started) (Result, error)
	// Kept lists the package files of the last Install. After a crash in the middle of a download some may be damaged or
	// missing; once its transaction had begun, all are there.
	Kept() ([]string, error)
	// Sweep deletes what unpacking these package files left behind when it was killed, and returns how many files.
	Sweep(ctx context.Context, files []string) (int, error)
	// Clean deletes the packages that Install kept.
	Clean() error
}
