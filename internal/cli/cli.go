// Package cli is what the command lines share: text wrapping, tables, the width of the terminal, JSON for --debug, and
// options. It knows no command and no controller.
//
// Rules for everything that reaches a person: results go to standard output, complaints and progress to standard error;
// nothing moves or overwrites itself unless the stream is a terminal; control characters from elsewhere are shown, not obeyed.
package cli

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"unicode/utf8"

	"golang.org/x/term"
)

// narrow is the width of text where the terminal's is not known or too small to be of use, in columns.
const narrow = 72

// TextWidth returns the width that running text is wrapped to, in columns: four less than the terminal's.
//
// The terminal's width is what tput cols would say: COLUMNS, else that of the first of files that is a terminal, else 80
// if TERM is set. At 60 columns and below, and where nothing is known, text is 72 wide.
func TextWidth(getenv func(string) string, files ...*os.File) int {
	cols, err := strconv.Atoi(getenv("COLUMNS"))
	if err != nil || cols <= 0 {
		cols = 0
		for _, f := range files {
			if w, _, err := term.GetSize(int(f.Fd())); err == nil && w > 0 {
				cols = w
				break
			}
		}
	}
	if cols == 0 && getenv("TERM") != "" {
		cols = usual
	}
	if cols <= 60 {
		return narrow
	}
	return cols - 4
}

// IsTerminal says whether f is one.
func IsTerminal(f *os.File) bool { return term.IsTerminal(int(f.Fd())) }

// usual is the width of a terminal that does not tell its own, in columns.
const usual = 80

// Columns is how wide the terminal f is; 0 if f is none.
func Columns(f *os.File) int {
	if !IsTerminal(f) {
		return 0
	}
	if w, _, err := term.GetSize(int(f.Fd())); err == nil && w > 0 {
		return w
	}
	return usual
}

// Output is standard output as a command sees it: buffered, remembering its first error, and with control characters
// other than tab and newline made visible, since names and texts in it come from patch files and hosts.
type Output struct {
	w *bufio.Writer
}

// NewOutput returns an Output that writes to w.
func NewOutput(w io.Writer) *Output { return &Output{bufio.NewWriter(w)} }

// Write makes p visible. Its error is that of the first write that failed.
func (o *Output) Write(p []byte) (int, error) {
	if _, err := o.w.WriteString(Visible(string(p))); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Line writes one line. An error is kept for [Output.Flush].
func (o *Output) Line(format string, args ...any) {
	o.Text(fmt.Sprintf(format, args...) + "\n")
}

// Text writes s as it is. An error is kept for [Output.Flush].
func (o *Output) Text(s string) {
	// A bufio.Writer keeps its first error and returns it from Flush, which every command ends with.
	_, _ = o.Write([]byte(s))
}

// Flush writes what is buffered and returns the first error of all writes so far.
func (o *Output) Flush() error { return o.w.Flush() }

// Visible replaces control characters other than tab and newline, and bytes that are not UTF-8, with \xNN.
func Visible(s string) string {
	hidden := func(r rune) bool {
		return r < ' ' && r != '\n' && r != '\t' || r >= 0x7f && r < 0xa0 || r == utf8.RuneError
	}
	if strings.IndexFunc(s, hidden) < 0 {
		return s
	}
	var b strings.Builder
	for i, r := range s {
		switch {
		case r == utf8.RuneError:
			if _, size := utf8.DecodeRuneInString(s[i:]); size > 1 {
				b.WriteRune(r) // the replacement character itself
			} else {
				fmt.Fprintf(&b, `\x%02x`, s[i])
			}
		case hidden(r):
			fmt.Fprintf(&b, `\x%02x`, r)
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}
