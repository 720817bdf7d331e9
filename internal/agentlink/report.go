package agentlink

import (
	"encoding/json"
	"sort"
	"unicode/utf8"

	"github.com/starpatch/starpatch/host"
	pb "github.com/starpatch/starpatch/internal/agentlink/linkpb"
	"github.com/starpatch/starpatch/internal/rpm"
	"github.com/starpatch/starpatch/problem"
)

// partSize is how much of a report goes into one message; the rest of MaxMessage is for framing.
const partSize = 48 << 10

// maxParts is how many parts a report may come in: more than enough for MaxReport in small slices.
const maxParts = 64

// maxReason is the limit of a report's failure and reject reason, in bytes.
const maxReason = 32 << 10

// CutReport returns the report and its JSON within MaxReport bytes. A longer one keeps the first entries of each of its
// lists, at least one of each, says that it was cut and how long the lists were.
func CutReport(r host.Report) (host.Report, []byte, error) {
	text, err := json.Marshal(r)
	if err != nil || len(text) <= MaxReport {
		return r, text, err
	}
	whole := r
	cut := func(n int) (host.Report, []byte, error) {
		c := whole
		c.Cut = true
		c.Counts = host.Counts{Installed: len(whole.Installed), ToRemove: len(whole.ToRemove), Missing: len(whole.Missing)}
		c.Installed = whole.Installed[:min(n, len(whole.Installed))]
		c.ToRemove = whole.ToRemove[:min(n, len(whole.ToRemove))]
		c.Missing = whole.Missing[:min(n, len(whole.Missing))]
		text, err := json.Marshal(c)
		return c, text, err
	}
	most := max(len(r.Installed), len(r.ToRemove), len(r.Missing))
	n := sort.Search(most, func(i int) bool { // the smallest i for which i+2 entries are too many
		_, text, e := cut(i + 2)
		if e != nil {
			err = e
		}
		return len(text) > MaxReport
	})
	if err != nil {
		return r, nil, err
	}
	r, text, err = cut(n + 1)
	if err == nil && len(text) > MaxReport {
		err = problem.Errorf(problem.TooLarge, "the report has %d bytes after cutting its lists; at most %d can be sent", len(text), MaxReport)
	}
	return r, text, err
}

// split makes the messages that carry one report.
func split(number uint64, text []byte) []*pb.AgentMessage {
	n := max(1, (len(text)+partSize-1)/partSize)
	out := make([]*pb.AgentMessage, n)
	for i := range out {
		part := text[min(len(text), i*partSize):min(len(text), (i+1)*partSize)]
		out[i] = &pb.AgentMessage{Kind: &pb.AgentMessage_Report{Report: &pb.ReportPart{Number: number, Part: uint32(i), Parts: uint32(n), Json: part}}}
	}
	return out
}

// assembler puts the parts of reports together again. Parts come in order; the first part of a greater number abandons
// an incomplete report. After an error the stream is of no use.
type assembler struct {
	number uint64
	next   uint32
	parts  uint32
	text   []byte
}

// add returns the report and true with its last part.
func (a *assembler) add(m *pb.ReportPart) (host.Report, bool, error) {
	number, part, parts := m.GetNumber(), m.GetPart(), m.GetParts()
	switch {
	case parts == 0 || parts > maxParts:
		return host.Report{}, false, problem.Errorf(problem.TooLarge, "a report came in %d parts; expected 1 to %d", parts, maxParts)
	case part == 0 && number > a.number:
		*a = assembler{number: number, parts: parts}
	case number != a.number || parts != a.parts || part != a.next:
		return host.Report{}, false, problem.Errorf(problem.Invalid, "part %d of %d of report %d came where part %d of %d of report %d was expected", part, parts, number, a.next, a.parts, a.number)
	}
	if len(a.text)+len(m.GetJson()) > MaxReport {
		return host.Report{}, false, problem.Errorf(problem.TooLarge, "report %d has more than %d bytes", number, MaxReport)
	}
	a.text = append(a.text, m.GetJson()...)
	a.next++
	if a.next < a.parts {
		return host.Report{}, false, nil
	}
	text := a.text
	a.text = nil
	r, err := parseReport(text)
	return r, err == nil, err
}

// parseReport decodes and checks a report. Unknown fields are ignored: the agent may be newer.
func parseReport(text []byte) (host.Report, error) {
	var r host.Report
	if err := json.Unmarshal(text, &r); err != nil {
		return host.Report{}, problem.Errorf(problem.Invalid, "the report cannot be read: %v", err)
	}
	return r, checkReport(r)
}

func checkReport(r host.Report) error {
	if err := checkWord("release", r.Release); err != nil {
		return err
	}
	if r.Revision < 0 {
		return problem.Errorf(problem.Invalid, "the report is about generation %d; expected 0 or more", r.Revision)
	}
	if _, err := host.ParseAgentState(string(r.State)); err != nil {
		return err
	}
	for _, d := range r.Installed {
		if err := checkNEVRA(d.Have); err != nil {
			return err
		}
		if err := checkNEVRA(rpm.NEVRA{Name: d.Have.Name, Arch: d.Have.Arch, EVR: d.Wanted}); err != nil {
			return err
		}
	}
	for _, n := range r.ToRemove {
		if err := checkNEVRA(n); err != nil {
			return err
		}
	}
	for _, n := range r.Missing {
		if err := checkPackageWord("package name", n); err != nil {
			return err
		}
	}
	if c := r.Counts; c.Installed < 0 || c.ToRemove < 0 || c.Missing < 0 {
		return problem.Errorf(problem.Invalid, "the report counts fewer than no packages")
	}
	if err := checkText("failure", r.Failure, maxReason); err != nil {
		return err
	}
	return checkText("reject reason", r.RejectReason, maxReason)
}

// checkNEVRA is stricter than a reader of names must be and laxer than rpm is: base packages of any distribution must
// pass, and nothing may hurt a terminal or a path.
func checkNEVRA(n rpm.NEVRA) error {
	if n.Epoch < 0 {
		return problem.Errorf(problem.Invalid, "package %.80q has epoch %d", n.Name, n.Epoch)
	}
	for _, f := range [...]struct{ what, s string }{{"package name", n.Name}, {"package version", n.Version}, {"package release", n.Release}, {"package architecture", n.Arch}} {
		if err := checkPackageWord(f.what, f.s); err != nil {
			return err
		}
	}
	return nil
}

func checkPackageWord(what, s string) error {
	ok := s != "" && len(s) <= 256 && utf8.ValidString(s) && s[0] != '.' && s[0] != '-'
	for _, c := range []byte(s) {
		ok = ok && c > ' ' && c != 0x7f && c != '/'
	}
	if !ok {
		return problem.Errorf(problem.Invalid, "%.80q is not a %s", s, what)
	}
	return nil
}
