package agentlink

import (
	"strings"
	"unicode/utf8"

	"github.com/starpatch/starpatch/api"
	"github.com/starpatch/starpatch/host"
	pb "github.com/starpatch/starpatch/internal/agentlink/linkpb"
	"github.com/starpatch/starpatch/problem"
)

// This file turns wire messages into checked values and back. Nothing that has not passed here reaches a Controller or
// a Handler.

// checkWord refuses what is not a short word that is safe in a file name, a store key and a terminal.
func checkWord(what, s string) error {
	ok := s != "" && len(s) <= 64 && s[0] != '.' && s[0] != '-'
	for _, c := range []byte(s) {
		ok = ok && (c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("._-", c) >= 0)
	}
	if !ok {
		return problem.Errorf(problem.Invalid, "%.80q is not a valid %s; expected at most 64 letters, digits, dots, dashes and underscores", s, what)
	}
	return nil
}

// checkText refuses what is not one line or paragraph of printable text.
func checkText(what, s string, limit int) error {
	if len(s) > limit {
		return problem.Errorf(problem.TooLarge, "the %s has %d bytes; at most %d are accepted", what, len(s), limit)
	}
	if !utf8.ValidString(s) || strings.ContainsFunc(s, isControl) {
		return problem.Errorf(problem.Invalid, "the %s holds control characters or is not UTF-8", what)
	}
	return nil
}

func (h Hello) wire() *pb.Hello {
	return &pb.Hello{
		ProtocolMin: ProtocolMin, ProtocolMax: ProtocolMax,
		Personality: string(h.Facts.Personality), Release: h.Facts.Release, BootId: h.Facts.BootID,
		Locked: h.Facts.Locked, AgentVersion: h.Facts.Agent,
		LastOperation: h.LastOperation, Epoch: h.Epoch,
	}
}

func parseHello(m *pb.Hello) (Hello, error) {
	version, err := negotiate(m.GetProtocolMin(), m.GetProtocolMax())
	if err != nil {
		return Hello{}, err
	}
	p, err := host.ParsePersonality(m.GetPersonality())
	if err != nil {
		return Hello{}, err
	}
	h := Hello{
		Facts: host.Facts{
			Personality: p, Release: m.GetRelease(), BootID: m.GetBootId(),
			Locked: m.GetLocked(), Agent: m.GetAgentVersion(), Protocol: version,
		},
		LastOperation: m.GetLastOperation(), Epoch: m.GetEpoch(),
	}
	if err := checkWord("release", h.Facts.Release); err != nil {
		return Hello{}, err
	}
	if err := checkWord("boot id", h.Facts.BootID); err != nil {
		return Hello{}, err
	}
	if err := checkText("agent version", h.Facts.Agent, 128); err != nil {
		return Hello{}, err
	}
	if h.LastOperation != "" {
		if err := checkWord("operation id", h.LastOperation); err != nil {
			return Hello{}, err
		}
	}
	return h, nil
}

// negotiate picks the greatest protocol version that both sides speak.
func negotiate(lowest, greatest uint32) (int, error) {
	v := min(greatest, ProtocolMax)
	if v < max(lowest, ProtocolMin) || lowest > greatest {
		return 0, problem.Errorf(problem.NotSupported, "the agent speaks versions %d to %d of the agent link and this controller versions %d to %d; bring agent and controller to within one minor version of each other", lowest, greatest, ProtocolMin, ProtocolMax)
	}
	return int(v), nil
}

func (p Progress) wire() *pb.Progress {
	return &pb.Progress{Operation: p.Operation, State: p.State, Detail: p.Detail, Output: p.Output}
}

func parseProgress(m *pb.Progress) (Progress, error) {
	p := Progress{Operation: m.GetOperation(), State: m.GetState(), Detail: m.GetDetail(), Output: m.GetOutput()}
	return p, p.check()
}

func (p Progress) check() error {
	if err := checkWord("operation id", p.Operation); err != nil {
		return err
	}
	if p.State != api.OperationAccepted && p.State != api.OperationRunning && !p.Final() {
		return problem.Errorf(problem.Invalid, "%.80q is not a state that an agent reports; expected accepted, running, done, failed, rejected or restart-pending", p.State)
	}
	if err := checkText("detail of operation "+p.Operation, p.Detail, MaxDetail); err != nil {
		return err
	}
	if len(p.Output) > 0 && !p.Final() {
		return problem.Errorf(problem.Invalid, "operation %s is %s and has output already; output comes with the final state", p.Operation, p.State)
	}
	if len(p.Output) > MaxOutput {
		return problem.Errorf(problem.TooLarge, "the output of operation %s has %d bytes; at most %d are accepted", p.Operation, len(p.Output), MaxOutput)
	}
	return nil
}

// printable makes of what an agent's tools said a text that checkText accepts: control characters become blanks, and
// what is over the limit is cut off at the end.
func printable(s string, limit int) string {
	s = strings.Map(func(r rune) rune {
		if isControl(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	if more := "..."; len(s) > limit {
		s = strings.ToValidUTF8(s[:limit-len(more)], "") + more
	}
	return s
}

func isControl(r rune) bool { return r < ' ' && r != '\n' && r != '\t' || r >= 0x7f && r < 0xa0 }

func (d Desired) wire() *pb.Desired {
	m := &pb.Desired{Epoch: d.Epoch, Release: d.Release, Revision: d.Revision, RepomdSha256: d.RepomdSHA256}
	if o := d.Operation; o != nil {
		m.Operation = &pb.Operation{Id: o.ID, Kind: o.Kind, Force: o.Force, InServiceOnly: o.InServiceOnly}
	}
	return m
}

func parseDesired(m *pb.Desired) (Desired, error) {
	d := Desired{Epoch: m.GetEpoch(), Release: m.GetRelease(), Revision: m.GetRevision(), RepomdSHA256: m.GetRepomdSha256()}
	if o := m.GetOperation(); o != nil {
		d.Operation = &Operation{ID: o.GetId(), Kind: o.GetKind(), Force: o.GetForce(), InServiceOnly: o.GetInServiceOnly()}
	}
	return d, d.check()
}

func (d Desired) check() error {
	if d.Epoch == 0 || d.Revision < 1 {
		return problem.Errorf(problem.Invalid, "a desired state needs an epoch and a revision of 1 or more, not %d and %d", d.Epoch, d.Revision)
	}
	if err := checkWord("release", d.Release); err != nil {
		return err
	}
	if !isHex(d.RepomdSHA256, 64) {
		return problem.Errorf(problem.Invalid, "%.80q is not a SHA-256 in hexadecimal", d.RepomdSHA256)
	}
	if d.Operation != nil {
		if err := checkWord("operation id", d.Operation.ID); err != nil {
			return err
		}
		return checkWord("kind of operation", d.Operation.Kind)
	}
	return nil
}

func parseWelcome(m *pb.Welcome, controller string) (Welcome, error) {
	w := Welcome{Protocol: int(m.GetProtocol()), Repository: m.GetRepository(), Controller: controller}
	if w.Protocol < ProtocolMin || w.Protocol > ProtocolMax {
		return Welcome{}, problem.Errorf(problem.NotSupported, "controller %s chose version %d of the agent link, which was not offered", controller, w.Protocol)
	}
	if err := checkText("repository URL", w.Repository, 1024); err != nil {
		return Welcome{}, err
	}
	if !strings.HasPrefix(w.Repository, "https://") {
		return Welcome{}, problem.Errorf(problem.Invalid, "controller %s names %.80q as package repository; expected an https URL", controller, w.Repository)
	}
	return w, nil
}
