package agentlink

import (
	"context"
	"encoding/json"
	"slices"
	"testing"
	"unicode"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	"github.com/starpatch/starpatch/api"
	"github.com/starpatch/starpatch/host"
	pb "github.com/starpatch/starpatch/internal/agentlink/linkpb"
)

// strict is a session that fails the test when something reaches it that the link promises to keep out.
type strict struct{ t *testing.T }

// clean fails for text that could hurt a terminal, a path or a store key.
func (s strict) clean(texts ...string) {
	for _, text := range texts {
		for _, r := range text {
			if unicode.IsControl(r) && r != '\n' && r != '\t' {
				s.t.Errorf("%q came through", text)
			}
		}
		if text == ".." || len(text) > MaxReport {
			s.t.Errorf("%.100q came through", text)
		}
	}
}

func (s strict) Hello(_ context.Context, h Hello) error {
	if _, err := host.ParsePersonality(string(h.Facts.Personality)); err != nil || h.Facts.Protocol != 1 {
		s.t.Errorf("%+v came through", h)
	}
	s.clean(h.Facts.Release, h.Facts.BootID, h.Facts.Agent, h.LastOperation)
	return nil
}

func (s strict) Report(_ context.Context, r host.Report) error {
	s.clean(r.Release, r.Failure, r.RejectReason)
	s.clean(r.Missing...)
	for _, n := range r.ToRemove {
		s.clean(n.Name, n.Version, n.Release, n.Arch)
	}
	text, err := json.Marshal(r)
	if err != nil {
		s.t.Fatal(err)
	}
	again, err := parseReport(text)
	if err != nil || !cmp.Equal(again, r) {
		s.t.Errorf("what was accepted is not accepted again: %v\n%s", err, cmp.Diff(again, r))
	}
	return nil
}

func (s strict) Progress(_ context.Context, p Progress) error {
	s.clean(p.Operation, p.State, p.Detail)
	if p.State == api.OperationRequested || len(p.Output) > MaxOutput || len(p.Detail) > MaxDetail {
		s.t.Errorf("%+v came through", p)
	}
	return nil
}

func (s strict) Ack(context.Context, uint64) error { return nil }
func (s strict) Desired() <-chan Desired           { return nil }
func (s strict) Detach(error)                      {}

func encode(f *testing.F, m proto.Message) []byte {
	f.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		f.Fatal(err)
	}
	return b
}

func FuzzAgentMessage(f *testing.F) {
	f.Add(encode(f, &pb.AgentMessage{Kind: &pb.AgentMessage_Hello{Hello: &pb.Hello{ProtocolMin: 1, ProtocolMax: 2, Personality: "worker", Release: "19.09", BootId: "b", AgentVersion: "v1", LastOperation: "o", Epoch: 3}}}))
	f.Add(encode(f, &pb.AgentMessage{Kind: &pb.AgentMessage_Report{Report: &pb.ReportPart{Number: 1, Parts: 1, Json: []byte(
		`{"release":"19.09","revision":2,"state":"idle","installed":[{"have":{"name":"a","version":"1","release":"2","arch":"x86_64"},"wanted":{"epoch":1,"version":"2","release":"1"}}],"to_remove":[{"name":"b","version":"1","release":"2","arch":"noarch"}],"missing":["c"],"failure":"x"}`)}}}))
	f.Add(encode(f, &pb.AgentMessage{Kind: &pb.AgentMessage_Progress{Progress: &pb.Progress{Operation: "o", State: "done", Detail: "fine", Output: []byte("x")}}}))
	f.Add(encode(f, &pb.AgentMessage{Kind: &pb.AgentMessage_Ack{Ack: &pb.Ack{Epoch: 9}}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		m := new(pb.AgentMessage)
		if proto.Unmarshal(b, m) != nil {
			return
		}
		var reports assembler
		if _, err := hear(t.Context(), strict{t}, &reports, m); err != nil && err.Error() == "" {
			t.Error("a refusal without a word")
		}
	})
}

func FuzzControllerMessage(f *testing.F) {
	f.Add(encode(f, &pb.ControllerMessage{Kind: &pb.ControllerMessage_Welcome{Welcome: &pb.Welcome{Protocol: 1, Repository: "https://192.0.2.1:8443"}}}))
	f.Add(encode(f, &pb.ControllerMessage{Kind: &pb.ControllerMessage_Desired{Desired: &pb.Desired{Epoch: 1, Release: "19.09", Revision: 1, Operation: &pb.Operation{Id: "o", Kind: "install"}}}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		m := new(pb.ControllerMessage)
		if proto.Unmarshal(b, m) != nil {
			return
		}
		switch k := m.GetKind().(type) {
		case *pb.ControllerMessage_Welcome:
			if w, err := parseWelcome(k.Welcome, "c"); err == nil {
				strict{t}.clean(w.Repository)
			}
		case *pb.ControllerMessage_Desired:
			if d, err := parseDesired(k.Desired); err == nil {
				if again, err := parseDesired(d.wire()); err != nil || !cmp.Equal(again, d) {
					t.Errorf("got %+v, %v, want %+v", again, err, d)
				}
			}
		}
	})
}

// However a report is cut into parts, what comes out is what went in; and no parts take more memory than the cap.
func FuzzReportParts(f *testing.F) {
	f.Add([]byte(`{"release":"19.09","revision":1,"state":"idle"}`), uint16(7))
	f.Add([]byte(`{"release":"19.09","revision":1,"state":"installing","missing":["a","b"]}`), uint16(1))
	f.Add([]byte(`null`), uint16(0))
	f.Fuzz(func(t *testing.T, text []byte, size uint16) {
		chunks := slices.Collect(slices.Chunk(text, int(size)+1))
		if len(chunks) == 0 {
			chunks = [][]byte{nil}
		}
		var a assembler
		want, refused := parseReport(text)
		for i, c := range chunks {
			got, whole, err := a.add(&pb.ReportPart{Number: 1, Part: uint32(i), Parts: uint32(len(chunks)), Json: c})
			if len(a.text) > MaxReport {
				t.Fatalf("%d bytes are kept", len(a.text))
			}
			if err != nil {
				if refused == nil && len(chunks) <= maxParts && len(text) <= MaxReport {
					t.Error(err)
				}
				return
			}
			if whole != (i == len(chunks)-1) {
				t.Fatalf("whole %v after part %d of %d", whole, i, len(chunks))
			}
			if whole && !cmp.Equal(got, want) {
				t.Error(cmp.Diff(got, want))
			}
		}
	})
}

func FuzzToken(f *testing.F) {
	f.Add("0123456789abcdef.0123456789abcdef0123456789abcdef.0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef")
	f.Fuzz(func(t *testing.T, s string) {
		tok, err := ParseToken(s)
		if err != nil {
			return
		}
		if again, err := ParseToken(tok.String()); err != nil || again != tok {
			t.Errorf("got %v, %v", again, err)
		}
	})
}
