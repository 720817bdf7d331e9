// Package host is what the system knows of one host: its name, personality and release, what it last reported, and the
// pure plan that turns installed packages into wanted ones.
package host

import (
	"slices"
	"strings"
	"time"

	"github.com/starpatch/starpatch/internal/rpm"
	"github.com/starpatch/starpatch/problem"
)

// Personality is a node type as patches name it.
type Personality string

// The six personalities of the patch format.
const (
	Controller                 Personality = "controller"
	Worker                     Personality = "worker"
	WorkerLowLatency           Personality = "worker-lowlatency"
	Storage                    Personality = "storage"
	ControllerWorker           Personality = "controller-worker"
	ControllerWorkerLowLatency Personality = "controller-worker-lowlatency"
)

// Personalities lists all six in the order in which metadata and groups are written.
func Personalities() []Personality {
	return []Personality{Controller, ControllerWorker, ControllerWorkerLowLatency, Storage, Worker, WorkerLowLatency}
}

// ParsePersonality refuses anything but the six.
func ParsePersonality(s string) (Personality, error) {
	if p := Personality(s); slices.Contains(Personalities(), p) {
		return p, nil
	}
	return "", problem.Errorf(problem.Invalid, "%q is not a personality; expected one of controller, worker, worker-lowlatency, storage, controller-worker, controller-worker-lowlatency", s)
}

// ParseSubfunctions reads the comma list of platform.conf (controller,worker,lowlatency) in any order and returns the
// personality that it names.
func ParseSubfunctions(s string) (Personality, error) {
	var c, w, l, st bool
	for f := range strings.SplitSeq(s, ",") {
		switch strings.TrimSpace(f) {
		case "controller":
			c = true
		case "worker", "compute":
			w = true
		case "lowlatency":
			l = true
		case "storage":
			st = true
		default:
			return "", problem.Errorf(problem.Invalid, "%q is not a subfunction; expected controller, worker, storage or lowlatency", f)
		}
	}
	var parts []string
	for _, f := range []struct {
		on   bool
		name string
	}{{c, "controller"}, {w, "worker"}, {st, "storage"}, {l, "lowlatency"}} {
		if f.on {
			parts = append(parts, f.name)
		}
	}
	return ParsePersonality(strings.Join(parts, "-"))
}

// Subfunctions is the list that REST replies show: the personality taken apart at its dashes.
func (p Personality) Subfunctions() []string { return strings.Split(string(p), "-") }

// NodeType is the first subfunction: controller, worker or storage.
func (p Personality) NodeType() string { return p.Subfunctions()[0] }

// AgentState is what the patch agent of a host is doing, as spelled in REST replies and tables.
type AgentState string

// The agent states.
const (
	Idle            AgentState = "idle"
	Installing      AgentState = "installing"
	InstallFailed   AgentState = "install-failed"
	InstallRejected AgentState = "install-rejected"
)

// ParseAgentState refuses anything but the four.
func ParseAgentState(s string) (AgentState, error) {
	switch st := AgentState(s); st {
	case Idle, Installing, InstallFailed, InstallRejected:
		return st, nil
	}
	return "", problem.Errorf(problem.Invalid, "%q is not an agent state; expected idle, installing, install-failed or install-rejected", s)
}

// Facts are what an agent says of its host when it connects and whenever one of them changes.
type Facts struct {
	Personality Personality `json:"personality"`
	Release     string      `json:"release"`  // SW_VERSION of the host
	BootID      string      `json:"boot_id"`  // changes with every boot
	Locked      bool        `json:"locked"`   // /var/run/.node_locked exists
	Agent       string      `json:"agent"`    // version of the agent program
	Protocol    int         `json:"protocol"` // of the agent link, 1 or more
}

// Report is how a host differs from what it should have, complete and current as of Revision. It is the only source of
// patch state. A Report with Revision 0 was never made.
type Report struct {
	Release        string       `json:"release"`
	Revision       int64        `json:"revision"`        // generation of the update repository that it was made against; 0: none yet
	State          AgentState   `json:"state"`           //
	Installed      []Difference `json:"installed"`       // installed packages whose version is not the wanted one, sorted
	ToRemove       []rpm.NEVRA  `json:"to_remove"`       // installed, brought by a patch, and in neither repository, sorted
	Missing        []string     `json:"missing"`         // package names of the host's group that are not installed, sorted
	Cut            bool         `json:"cut,omitempty"`   // the lists above were cut at the report cap
	Counts         Counts       `json:"counts,omitzero"` // lengths of the three lists before they were cut; zero unless Cut
	PatchFailed    bool         `json:"patch_failed"`    // the last install failed and nothing has mended it
	RequiresReboot bool         `json:"requires_reboot"` // software changed that only a reboot activates
	Failure        string       `json:"failure,omitempty"`
	RejectReason   string       `json:"reject_reason,omitempty"`
}

// Counts are lengths of the lists of a [Report].
type Counts struct {
	Installed int `json:"installed"`
	ToRemove  int `json:"to_remove"`
	Missing   int `json:"missing"`
}

// Difference is one installed package that should be at another version.
type Difference struct {
	Have   rpm.NEVRA `json:"have"`
	Wanted rpm.EVR   `json:"wanted"`
}

// Current says that the host has exactly what the generation of its report wants.
func (r Report) Current() bool {
	return r.Revision > 0 && len(r.Installed) == 0 && len(r.ToRemove) == 0 && len(r.Missing) == 0
}

// Host is the controller's record of one host: its facts, its last report and when it was last heard.
type Host struct {
	Name     string    `json:"name"`
	IP       string    `json:"ip"`
	Facts    Facts     `json:"facts"`
	Report   Report    `json:"report"`
	Reported time.Time `json:"reported"` // UTC; zero: never
	Since    time.Time `json:"since"`    // first joined, UTC
}
