package agentlink

import (
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/starpatch/starpatch/api"
	pb "github.com/starpatch/starpatch/internal/agentlink/linkpb"
)

// Whatever is lost on the way, in the end the controller has the newest report and every state of every operation in
// order, and never saw the end of an operation before a report that had been made before it.
func TestOutboxLosesNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		o := newOutbox()
		var made, ops int
		var want []string         // states in the order they were made
		after := map[string]int{} // by operation that ended: how many reports had been made
		var got []string
		newest, broken := 0, false
		deliver := func(ack bool) {
			if broken {
				return
			}
			_, messages := o.take()
			for _, m := range messages {
				if !rapid.Bool().Draw(t, "arrives") && !ack {
					broken = true // nothing more arrives on this stream
					return
				}
				switch k := m.GetKind().(type) {
				case *pb.AgentMessage_Report:
					var n int
					if _, err := fmt.Sscan(string(k.Report.GetJson()), &n); err != nil {
						t.Fatal(err)
					}
					newest = max(newest, n)
					if ack || rapid.Bool().Draw(t, "report acked") {
						o.reportAcked(k.Report.GetNumber())
					}
				case *pb.AgentMessage_Progress:
					p := k.Progress
					if p.GetState() == api.OperationDone && newest < after[p.GetOperation()] {
						t.Fatalf("%s was done before report %d was seen, only %d", p.GetOperation(), after[p.GetOperation()], newest)
					}
					if s := p.GetOperation() + " " + p.GetState(); !slices.Contains(got, s) {
						got = append(got, s)
					}
					if ack || rapid.Bool().Draw(t, "progress acked") {
						o.progressAcked(p.GetOperation(), p.GetState())
					}
				}
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"report": func(*rapid.T) {
				made++
				o.putReport(fmt.Append(nil, made))
			},
			"operation": func(*rapid.T) {
				ops++
				id := fmt.Sprintf("op-%d", ops)
				for _, s := range []string{api.OperationAccepted, api.OperationRunning, api.OperationDone} {
					o.putProgress(Progress{Operation: id, State: s})
					want = append(want, id+" "+s)
				}
				after[id] = made
			},
			"stream": func(*rapid.T) {
				o.restart()
				broken = false
				deliver(false)
			},
			"more": func(*rapid.T) { deliver(false) },
		})
		o.restart()
		broken = false
		deliver(true)
		o.restart()
		if _, rest := o.take(); len(rest) > 0 {
			t.Fatalf("%d messages are left after all was acknowledged", len(rest))
		}
		if newest != made {
			t.Fatalf("report %d is the newest that arrived, of %d", newest, made)
		}
		if diff := cmp.Diff(got, want); diff != "" {
			t.Fatal(diff)
		}
	})
}
