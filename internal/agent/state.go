package agent

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"os"

	"github.com/starpatch/starpatch/host"
	"github.com/starpatch/starpatch/internal/agentlink"
	"github.com/starpatch/starpatch/internal/durable"
	"github.com/starpatch/starpatch/internal/process"
	"github.com/starpatch/starpatch/internal/rpm"
	"github.com/starpatch/starpatch/problem"
)

// format is that of the files in the state folder. A greater one was written by a newer agent and is refused.
const format = 1

// state is what the agent remembers: what it should do, what it last found, and how its last operation ended.
type state struct {
	Format  int                `json:"format"`
	Boot    string             `json:"boot"` // during which it was saved
	Desired *agentlink.Desired `json:"desired,omitempty"`
	// Repository is where packages last came from; a recovery may need it before a controller is there again.
	Repository string      `json:"repository,omitempty"`
	Report     host.Report `json:"report"`
	// RebootBoot is the boot during which a change was made that only a reboot activates; empty: none.
	RebootBoot string  `json:"reboot_boot,omitempty"`
	Result     *result `json:"result,omitempty"`
	// Unsettled are packages that are installed and whose last transaction told of a failed scriptlet. The next operation
	// installs them over themselves: with nothing else to do it would succeed without having mended anything.
	Unsettled []rpm.NEVRA `json:"unsettled,omitempty"`
}

// result is the end of an operation, kept until another one ends.
type result struct {
	Operation string `json:"operation"`
	State     string `json:"state"`
	Detail    string `json:"detail,omitempty"`
	Output    []byte `json:"output,omitempty"`
	Acked     bool   `json:"acked,omitempty"` // the controller has it durably
}

func (r result) progress() agentlink.Progress {
	return agentlink.Progress{Operation: r.Operation, State: r.State, Detail: r.Detail, Output: r.Output}
}

// phase says how far an operation is.
type phase string

const (
	phaseCompare phase = "compare" // nothing has been changed
	phaseRepair  phase = "repair"  // package files are being installed again
	phaseInstall phase = "install" // a transaction that brings packages in may run
	phaseRemove  phase = "remove"  // a transaction that takes packages away may run
	phaseScripts phase = "scripts" // packages are as they should be, in-service scripts may run
)

// journal is the intent of the one operation that may be in progress. It is written before what it tells is done, and
// deleted after the operation's end is in the state: so whoever finds one at start knows that, and what, to finish.
type journal struct {
	Format    int               `json:"format"`
	Boot      string            `json:"boot"`
	Operation string            `json:"operation"`
	Desired   agentlink.Desired `json:"desired"`
	Phase     phase             `json:"phase"`
	First     string            `json:"first"`             // digest of the installed set before the operation
	Before    string            `json:"before"`            // digest of the installed set before the present phase
	Repaired  bool              `json:"repaired"`          // packages were installed over themselves
	Packages  []intended        `json:"packages,omitzero"` // that the present phase brings or takes
	Tool      *process.ID       `json:"tool,omitempty"`    // outside program that may run
}

// intended is one package of a transaction.
type intended struct {
	rpm.NEVRA
	SHA256 string `json:"sha256,omitempty"` // of its file, for those that are brought
}

// load reads one of the two files strictly; ok is false if there is none.
func load(path string, v any, formatOf func() int) (ok bool, err error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	derr := d.Decode(v)
	if f := formatOf(); derr == nil && f != format || derr != nil && f > format {
		return false, problem.Errorf(problem.NotSupported, "%s has format %d and this agent knows %d; start the agent that wrote it, or a newer one", path, f, format)
	}
	if derr != nil {
		return false, problem.Errorf(problem.Invalid, "cannot read %s: %v; if it cannot be restored, remove it: the agent then compares everything anew", path, derr)
	}
	return true, nil
}

func save(path string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return durable.WriteFile(path, append(b, '\n'), 0o600)
}
