// Package api holds the request and response types of the REST interfaces: upstream's patching API, whose replies are
// byte for byte those of the original (spelled out by the field order of these structs), and our own /api/v1.
package api

import "time"

// Messages is the common reply of upstream's mutating routes: newline-terminated lines in each.
type Messages struct {
	Info    string `json:"info"`
	Warning string `json:"warning"`
	Error   string `json:"error"`
}

// ErrorOnly replaces a whole reply when the request was rejected outright.
type ErrorOnly struct {
	Error string `json:"error"`
}

// PatchInfo is one patch in a reply. Optional text elements that were absent in the metadata are nil and left out.
type PatchInfo struct {
	RepoState              string   `json:"repostate"`
	PatchState             string   `json:"patchstate"`
	Release                string   `json:"sw_version"`
	Status                 *string  `json:"status,omitempty"`
	Unremovable            *string  `json:"unremovable,omitempty"`
	Summary                *string  `json:"summary,omitempty"`
	Description            *string  `json:"description,omitempty"`
	InstallInstructions    *string  `json:"install_instructions,omitempty"`
	Warnings               *string  `json:"warnings,omitempty"`
	ApplyActiveReleaseOnly *string  `json:"apply_active_release_only,omitempty"`
	RebootRequired         string   `json:"reboot_required"`
	Controller             []string `json:"personality-controller,omitempty"`
	ControllerWorker       []string `json:"personality-controller-worker,omitempty"`
	ControllerWorkerLowLat []string `json:"personality-controller-worker-lowlatency,omitempty"`
	Storage                []string `json:"personality-storage,omitempty"`
	Worker                 []string `json:"personality-worker,omitempty"`
	WorkerLowLatency       []string `json:"personality-worker-lowlatency,omitempty"`
	Requires               []string `json:"requires"`
}

// Query is the reply of query: one entry per patch ID.
type Query struct {
	Patches map[string]PatchInfo `json:"pd"`
	Error   string               `json:"error,omitempty"` // set alone when the request was refused
}

// Show is the reply of show.
type Show struct {
	Metadata map[string]PatchInfo `json:"metadata"`
	Contents map[string][]string  `json:"contents"`
	Error    string               `json:"error"`
}

// HostInfo is one host in the reply of query_hosts.
type HostInfo struct {
	IP                 string            `json:"ip"`
	Hostname           string            `json:"hostname"`
	PatchCurrent       bool              `json:"patch_current"`
	SecsSinceAck       int64             `json:"secs_since_ack"`
	PatchFailed        bool              `json:"patch_failed"`
	StaleDetails       bool              `json:"stale_details"`
	Installed          map[string]string `json:"installed"` // name to version-release@arch
	ToRemove           []string          `json:"to_remove"`
	MissingPkgs        []string          `json:"missing_pkgs"`
	NodeType           *string           `json:"nodetype"` // null until the host has reported
	Subfunctions       []string          `json:"subfunctions"`
	Release            string            `json:"sw_version"`
	State              string            `json:"state"`
	RequiresReboot     bool              `json:"requires_reboot"`
	AllowInsvcPatching bool              `json:"allow_insvc_patching"`
	InterimState       bool              `json:"interim_state"`
}

// QueryHosts is the reply of query_hosts, sorted by host name.
type QueryHosts struct {
	Hosts []HostInfo `json:"data"`
	Error string     `json:"error,omitempty"` // set alone when the request was refused
}

// Operation is one piece of work on one host (own API).
type Operation struct {
	ID       string    `json:"id"`
	Host     string    `json:"host"`
	Kind     string    `json:"kind"` // [OperationInstall]
	State    string    `json:"state"`
	Detail   string    `json:"detail,omitempty"` // why it failed or was rejected, one sentence
	Force    bool      `json:"force,omitempty"`
	Release  string    `json:"release"`
	Revision int64     `json:"revision"` // generation of the update repository to be installed
	By       string    `json:"by"`       // who asked
	Created  time.Time `json:"created"`
	Updated  time.Time `json:"updated"`
	Version  int64     `json:"version"` // store revision of this value; ids of server-sent events
}

// OperationInstall is the kind of operation that brings a host to a generation of its update repository.
const OperationInstall = "install"

// The states of an operation. Done, failed, rejected and restart-pending are final.
const (
	OperationRequested      = "requested" // saved by the controller
	OperationAccepted       = "accepted"  // durable on the host
	OperationRunning        = "running"
	OperationDone           = "done"
	OperationFailed         = "failed"
	OperationRejected       = "rejected"
	OperationRestartPending = "restart-pending"
)

// Final says that the operation will not change any more.
func (o Operation) Final() bool {
	switch o.State {
	case OperationDone, OperationFailed, OperationRejected, OperationRestartPending:
		return true
	}
	return false
}

// InstallRequest asks for a host-install (POST /api/v1/hosts/{host}/install); the answer is 202 with an Operation.
type InstallRequest struct {
	Force bool `json:"force,omitempty"`
}

// Problem is the body of every refusal of an own route (RFC 9457).
type Problem struct {
	Type   string `json:"type"`
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail"`
	Kind   string `json:"kind"` // problem.Kind
}
