package swpatch

import (
	"fmt"
	"slices"
	"strings"

	"github.com/starpatch/starpatch/internal/cli"
)

// column is where the text of help entries and of show begins.
const column = 20

// entry wraps a label and its text: four blanks, the label in 15 columns, the text, further lines at column 20.
func (s *session) entry(label, text string) string {
	return cli.Fill(fmt.Sprintf("    %-15s %s", label, text), s.Width, "", strings.Repeat(" ", column)) + "\n"
}

// below wraps a text at column 20.
func (s *session) below(text string) string {
	indent := strings.Repeat(" ", column)
	return cli.Fill(text, s.Width, indent, indent) + "\n"
}

// help prints the list of subcommands, laid out and worded as the original's.
func (s *session) help() {
	s.out.Line("usage: sw-patch [--debug]")
	s.out.Line("                  <subcommand> ...")
	s.out.Line("")
	s.out.Line("Subcomands:")
	s.out.Line("")
	for _, c := range commands() {
		if len(c.help) == 0 {
			continue
		}
		s.out.Text(s.entry(c.name+":", c.help[0]))
		for _, p := range c.help[1:] {
			s.out.Text(s.below(p))
		}
		s.out.Line("")
	}
	s.out.Text(s.entry("--os-region-name:", "Send the request to a specified region"))
}

// helpFor prints the help of one subcommand, or of all when none is named.
func (s *session) helpFor(args []string) error {
	if len(args) == 0 {
		s.help()
		return nil
	}
	i := slices.IndexFunc(commands(), func(c command) bool { return c.name == args[0] })
	if i < 0 {
		return usagef("%q is not a subcommand", args[0])
	}
	c := commands()[i]
	s.out.Line("%s", strings.TrimRight("usage: sw-patch [--debug] "+c.name+" "+c.usage, " "))
	for _, p := range append(slices.Clone(c.help), c.more) {
		if p != "" {
			s.out.Line("")
			s.out.Line("%s", cli.Fill(p, s.Width, "", ""))
		}
	}
	if c.later {
		s.out.Line("")
		s.out.Line("Not available in this version yet.")
	}
	return nil
}
