package dnf

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/starpatch/starpatch/internal/installer"
)

// The limits of what is told of a tool's output beside its tail.
const (
	maxLine  = 512 // bytes of one line
	maxLines = 8   // of each kind
)

// said is what matters of a tool's output.
type said struct {
	tail       []byte   // at most installer.MaxOutput bytes
	scriptlets []string // lines that say that a scriptlet failed
	errors     []string // lines that say why a transaction failed
	// unreachable says that a connection to a repository could not be made or broke: dnf then quotes the error of
	// libcurl. An answer that is a refusal (404, 403) is quoted as a status code and is not meant.
	unreachable bool
}

// digest reads the output from its start, however long it is, in bounded memory.
func digest(f *os.File) (said, error) {
	var s said
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return s, err
	}
	r := bufio.NewReaderSize(f, 4<<10)
	for {
		line, err := r.ReadSlice('\n')
		s.tail = append(s.tail, line...)
		if len(s.tail) > 2*installer.MaxOutput {
			s.tail = append(s.tail[:0], s.tail[len(s.tail)-installer.MaxOutput:]...)
		}
		s.note(line)
		if errors.Is(err, io.EOF) {
			s.tail = bytes.Clone(s.tail[max(0, len(s.tail)-installer.MaxOutput):])
			return s, nil
		}
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return s, err
		}
	}
}

func (s *said) note(line []byte) {
	text := strings.TrimSpace(string(line[:min(len(line), maxLine)]))
	lower := strings.ToLower(text)
	s.unreachable = s.unreachable || strings.Contains(lower, "curl error (")
	add := func(to *[]string) {
		if slices.Contains(*to, text) {
			return // dnf says many things twice
		}
		if len(*to) < maxLines {
			*to = append(*to, text)
		}
	}
	// Of a scriptlet in Lua rpm says that the script failed, and neither its exit code nor the word scriptlet tell.
	if strings.Contains(lower, "scriptlet failed") || strings.Contains(lower, "lua script failed") || strings.Contains(lower, "error in") && strings.Contains(lower, "scriptlet") {
		add(&s.scriptlets)
		add(&s.errors)
		return
	}
	for _, mark := range []string{"error", "nothing provides", "is needed by", "conflicts with", "problem", "no match for argument", "already installed", "does not verify", "can't create transaction lock"} {
		if strings.Contains(lower, mark) {
			add(&s.errors)
			return
		}
	}
}

func lastLine(b []byte) []byte {
	b = bytes.TrimSpace(b)
	return b[bytes.LastIndexByte(b, '\n')+1:]
}

// quote makes ": text" of what a tool said, or nothing.
func quote(b []byte) string {
	b = bytes.TrimSpace(b)
	if len(b) == 0 {
		return ""
	}
	return ": " + string(b[:min(len(b), maxLine)])
}
