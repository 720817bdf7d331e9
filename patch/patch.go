// Package patch is what a patch is and what may be done with it: identity, metadata, states, and the pure rules of
// apply, remove, delete and commit. It reads no file and knows no store; decisions come back as values with reasons.
package patch

import (
	"regexp"
	"slices"
	"strings"

	"github.com/starpatch/starpatch/host"
	"github.com/starpatch/starpatch/internal/rpm"
	"github.com/starpatch/starpatch/problem"
)

// ID names a patch; the file is <ID>.patch.
type ID string

var idGrammar = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._-]{0,254}$`)

// ParseID refuses what would be unsafe in a path, a URL segment or a shell argument.
func ParseID(s string) (ID, error) {
	if !idGrammar.MatchString(s) {
		return "", problem.Errorf(problem.Invalid, "%q is not a patch ID; expected 1 to 255 letters, digits, '.', '_' or '-', not starting with '.' or '-'", s)
	}
	return ID(s), nil
}

var releaseGrammar = regexp.MustCompile(`^[0-9A-Za-z][0-9A-Za-z._]{0,31}$`)

// ParseRelease refuses a software release that would be unsafe in a path.
func ParseRelease(s string) (string, error) {
	if !releaseGrammar.MatchString(s) || strings.Contains(s, "..") {
		return "", problem.Errorf(problem.Invalid, "%q is not a release; expected letters, digits, '.' or '_', like 19.09", s)
	}
	return s, nil
}

// Status is the release status in the metadata.
type Status string

// The statuses that mean something. Readers know Obsolete as another spelling of OBS.
const (
	Development Status = "DEV"
	Released    Status = "REL"
	ObsoleteOBS Status = "OBS"
	Obsolete    Status = "Obsolete"
)

// IsObsolete says that the status is one of the two spellings of obsolete.
func (s Status) IsObsolete() bool { return s == ObsoleteOBS || s == Obsolete }

// ParseStatus takes what patch_build and modify_patch may write.
func ParseStatus(s string) (Status, error) {
	switch st := Status(s); st {
	case Development, Released, ObsoleteOBS:
		return st, nil
	}
	return "", problem.Errorf(problem.Invalid, "%q is not a status; expected DEV, REL or OBS", s)
}

// Action is a semantic check's moment.
type Action string

// The two semantic actions.
const (
	PreApply  Action = "pre-apply"
	PreRemove Action = "pre-remove"
)

// Text is an optional text element: an absent element and an empty one are told apart, because replies are.
type Text struct {
	Value   string `json:"value,omitempty"`
	Present bool   `json:"present,omitempty"`
}

// Some is a present text.
func Some(s string) Text { return Text{Value: s, Present: true} }

// Metadata is the content of metadata.xml. Lists are sorted and without duplicates.
type Metadata struct {
	ID                     ID                            `json:"id"`
	Release                string                        `json:"sw_version"` // "unknown" when the element is missing
	Summary                Text                          `json:"summary"`
	Description            Text                          `json:"description"`
	InstallInstructions    Text                          `json:"install_instructions"`
	Warnings               Text                          `json:"warnings"`
	Status                 Text                          `json:"status"`
	Unremovable            Text                          `json:"unremovable"`
	RebootRequired         Text                          `json:"reboot_required"`
	ApplyActiveReleaseOnly Text                          `json:"apply_active_release_only"`
	Personalities          map[host.Personality][]string `json:"personalities,omitempty"` // names of new packages
	Contents               []string                      `json:"contents"`                // RPM file names
	Requires               []ID                          `json:"requires,omitempty"`
	Semantics              []Action                      `json:"semantics,omitempty"`
}

// InService says that the patch needs no reboot: only the exact text N means so.
func (m Metadata) InService() bool { return m.RebootRequired.Value == "N" }

// Removable is false only for the exact text Y.
func (m Metadata) Removable() bool { return m.Unremovable.Value != "Y" }

// Package is one RPM of a patch as the store holds it.
type Package struct {
	File   string    `json:"file"` // name in contents
	NEVRA  rpm.NEVRA `json:"nevra"`
	SHA256 string    `json:"sha256"` // lower-case hexadecimal, names the blob
	Size   int64     `json:"size"`   // bytes
	Built  int64     `json:"built"`  // the RPM header's build time, Unix seconds; 0: none
}

// RepoState is what the operator asked for.
type RepoState string

// The repo states.
const (
	RepoAvailable RepoState = "Available"
	RepoApplied   RepoState = "Applied"
	RepoCommitted RepoState = "Committed"
)

// State is what all hosts together say of a patch.
type State string

// The patch states.
const (
	Available     State = "Available"
	PartialApply  State = "Partial-Apply"
	Applied       State = "Applied"
	PartialRemove State = "Partial-Remove"
	Committed     State = "Committed"
	NotApplicable State = "n/a"
)

// Signer says under which kind of trust a patch was accepted.
type Signer struct {
	Class string `json:"class"` // formal or dev
	Key   string `json:"key"`   // SHA-256 of the public key (PKIX DER), lower-case hexadecimal
}

// Patch is one patch as the store holds it: the saved record, without anything that hosts say.
type Patch struct {
	Metadata
	RepoState RepoState         `json:"repo_state"`
	Packages  []Package         `json:"packages"`         // in order of Contents
	Checks    map[Action]string `json:"checks,omitempty"` // SHA-256 of each semantic check's blob
	XML       string            `json:"xml"`              // SHA-256 of metadata.xml, kept as a blob; former ones of a re-import stay in the journal
	Signer    Signer            `json:"signer"`
	Changed   int64             `json:"changed,omitempty"` // generation of the last apply or remove; 0: never applied
}

// Provides returns the package with this key, or false.
func (p Patch) Provides(k rpm.Key) (Package, bool) {
	i := slices.IndexFunc(p.Packages, func(q Package) bool { return q.NEVRA.Key() == k })
	if i < 0 {
		return Package{}, false
	}
	return p.Packages[i], true
}

// Group says that the patch brings the package name as new to hosts of personality hp.
func (p Patch) Group(hp host.Personality, name string) bool {
	return slices.Contains(p.Personalities[hp], name)
}
