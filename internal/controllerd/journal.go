package controllerd

import (
	"context"
	"encoding/json"
	"strings"

	"github.com/starpatch/starpatch/api"
	"github.com/starpatch/starpatch/internal/controller"
	"github.com/starpatch/starpatch/internal/journal"
	"github.com/starpatch/starpatch/internal/store"
)

// journalPage is how many records one answer of the API carries.
const journalPage = 1000

// maxText is how much of a text a journal record keeps, in bytes: enough for the IDs of a thousand patches.
const maxText = 24 << 10

// chain is the journal as the controller writes it.
type chain struct{ *journal.Journal }

// Commit implements [controller.Journal].
func (c chain) Commit(ctx context.Context, txn store.Txn, facts []controller.Fact) (int64, error) {
	records := make([]journal.Record, 0, len(facts))
	for _, f := range facts {
		r := journal.Record{Kind: journal.Kind(f.Action), Actor: short(f.Actor), Subject: short(f.Subject), Operation: f.Operation, Outcome: f.Outcome}
		if f.Detail != nil {
			detail, err := json.Marshal(shorten(f.Detail))
			if err != nil {
				return 0, err
			}
			r.Detail = detail
		}
		records = append(records, r)
	}
	return c.Journal.Commit(ctx, txn, records...)
}

func short(s string) string {
	if len(s) <= maxText {
		return s
	}
	return strings.ToValidUTF8(s[:maxText], "") + "..."
}

func shorten(detail map[string]any) map[string]any {
	out := make(map[string]any, len(detail))
	for k, v := range detail {
		if s, ok := v.(string); ok {
			v = short(s)
		}
		out[k] = v
	}
	return out
}

// Head implements [controller.Journal].
func (c chain) Head() api.JournalHead { return head(c.Journal.Head()) }

func head(h journal.Head) api.JournalHead { return api.JournalHead{Number: h.Number, Hash: h.Hash} }

// Page implements [controller.Journal].
func (c chain) Page(ctx context.Context, after int64) (api.JournalPage, error) {
	records, err := c.Read(ctx, after+1, journalPage)
	if err != nil {
		return api.JournalPage{}, err
	}
	out := api.JournalPage{Records: []json.RawMessage{}}
	for _, r := range records {
		line, err := json.Marshal(r)
		if err != nil {
			return api.JournalPage{}, err
		}
		out.Records = append(out.Records, line)
	}
	if len(records) == journalPage {
		out.Next = records[len(records)-1].Number
	}
	return out, nil
}

// Verify implements [controller.Journal].
func (c chain) Verify(ctx context.Context) (api.JournalCheck, error) {
	v, err := c.Journal.Verify(ctx)
	return api.JournalCheck{Head: head(v.Head), Records: v.Records}, err
}
