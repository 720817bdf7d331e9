package swpatch

import (
	"context"
	"maps"
	"slices"
	"strings"

	"github.com/starpatch/starpatch/api"
	"github.com/starpatch/starpatch/internal/cli"
)

func show(ctx context.Context, s *session, o cli.Options) error {
	r, err := s.ctl.Show(ctx, o.Words...)
	if err != nil {
		return err
	}
	if s.debug {
		if err := s.printReply(); err != nil {
			return err
		}
	} else {
		for _, id := range slices.Sorted(maps.Keys(r.Metadata)) {
			s.out.Text(s.details(id, r.Metadata[id], r.Contents[id]))
		}
		s.refused(r.Error)
	}
	if r.Error != "" {
		return errSaid
	}
	return nil
}

// details is everything about one patch; what is empty is left out. Two empty lines follow.
func (s *session) details(id string, p api.PatchInfo, contents []string) string {
	var b strings.Builder
	b.WriteString(id + ":\n")
	field := func(label, value string) {
		if value != "" {
			b.WriteString(s.entry(label, value))
		}
	}
	// lines is a text whose own line ends stay.
	lines := func(label, value string) {
		for i, l := range strings.Split(value, "\n") {
			switch {
			case value == "":
			case i == 0:
				b.WriteString(s.entry(label, l))
			default:
				b.WriteString(s.below(l))
			}
		}
	}
	list := func(label string, items []string) {
		if len(items) == 0 {
			return
		}
		b.WriteString("    " + label + "\n")
		for _, item := range slices.Sorted(slices.Values(items)) {
			b.WriteString(strings.Repeat(" ", column) + item + "\n")
		}
	}
	field("Release:", p.Release)
	field("Patch State:", p.PatchState)
	if p.PatchState == notApplicable {
		field("Repo State:", p.RepoState)
	}
	field("Status:", value(p.Status))
	field("Unremovable:", value(p.Unremovable))
	field("RR:", p.RebootRequired)
	field("Apply Active Release Only:", value(p.ApplyActiveReleaseOnly))
	field("Summary:", value(p.Summary))
	lines("Description:", value(p.Description))
	if text := value(p.InstallInstructions); text != "" {
		b.WriteString("    Install Instructions:\n")
		for l := range strings.SplitSeq(text, "\n") {
			b.WriteString(s.below(l))
		}
	}
	lines("Warnings:", value(p.Warnings))
	list("Requires:", p.Requires)
	list("Contents:", contents)
	b.WriteString("\n\n")
	return b.String()
}

func value(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}
