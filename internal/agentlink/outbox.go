package agentlink

import (
	"slices"
	"sync"

	pb "github.com/starpatch/starpatch/internal/agentlink/linkpb"
)

// outbox is what an agent has to tell and has not been acknowledged, across streams. It is safe for concurrent use.
type outbox struct {
	wake chan struct{} // holds one when there may be something to take

	mu         sync.Mutex
	report     []byte // JSON of the newest report; nil: none, or acknowledged
	number     uint64 // of that report
	reportSent bool   // on this stream
	progress   []Progress
	sent       int // how many of progress, from the front, were sent on this stream
	facts      bool
	epoch      uint64 // to acknowledge; 0: none
}

func newOutbox() outbox { return outbox{wake: make(chan struct{}, 1)} }

func (o *outbox) change(f func()) {
	o.mu.Lock()
	f()
	o.mu.Unlock()
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// restart makes everything that is not acknowledged due again, for a new stream, whose hello tells facts and epoch anew.
func (o *outbox) restart() {
	o.change(func() { o.reportSent, o.sent, o.facts, o.epoch = false, 0, false, 0 })
}

func (o *outbox) factsChanged()    { o.change(func() { o.facts = true }) }
func (o *outbox) ack(epoch uint64) { o.change(func() { o.epoch = epoch }) }

func (o *outbox) putReport(text []byte) {
	o.change(func() {
		o.number++
		o.report, o.reportSent = text, false
	})
}

// putProgress adds p, or puts it in the place of the same state of the same operation if that has not been sent yet.
func (o *outbox) putProgress(p Progress) {
	o.change(func() {
		for i := o.sent; i < len(o.progress); i++ {
			if q := &o.progress[i]; q.Operation == p.Operation && q.State == p.State {
				*q = p
				return
			}
		}
		o.progress = append(o.progress, p)
	})
}

// take returns what is due on this stream: whether facts changed, and the messages in the order to send them. A report
// goes before any progress, so that the end of an operation is never seen without what the host looks like after it.
func (o *outbox) take() (facts bool, messages []*pb.AgentMessage) {
	o.mu.Lock()
	defer o.mu.Unlock()
	facts, o.facts = o.facts, false
	if o.epoch != 0 {
		messages = append(messages, &pb.AgentMessage{Kind: &pb.AgentMessage_Ack{Ack: &pb.Ack{Epoch: o.epoch}}})
		o.epoch = 0
	}
	if o.report != nil && !o.reportSent {
		messages = append(messages, split(o.number, o.report)...)
		o.reportSent = true
	}
	for ; o.sent < len(o.progress); o.sent++ {
		messages = append(messages, &pb.AgentMessage{Kind: &pb.AgentMessage_Progress{Progress: o.progress[o.sent].wire()}})
	}
	return facts, messages
}

// reportAcked forgets the report with this number; a newer one stays.
func (o *outbox) reportAcked(number uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if number == o.number {
		o.report = nil
	}
}

// progressAcked forgets the first such state that was sent, and says whether there was one.
func (o *outbox) progressAcked(operation, state string) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	i := slices.IndexFunc(o.progress[:o.sent], func(p Progress) bool { return p.Operation == operation && p.State == state })
	if i < 0 {
		return false
	}
	o.progress = slices.Delete(o.progress, i, i+1)
	o.sent--
	return true
}
