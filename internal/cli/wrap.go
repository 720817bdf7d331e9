package cli

import (
	"strings"
	"unicode"
)

// Fill wraps text to lines of at most width columns and joins them with newlines. The first line begins with first, the
// others with rest; an empty text gives an empty string.
//
// It follows Python's textwrap.fill, since people compare our output with the original's: greedy; breaks at blanks and
// after hyphens inside words; words longer than a line are cut; tabs go to columns of 8; blanks at the very start stay.
func Fill(text string, width int, first, rest string) string {
	return strings.Join(Wrap(text, width, first, rest), "\n")
}

// Wrap returns the lines that [Fill] joins.
func Wrap(text string, width int, first, rest string) []string {
	chunks := split(blanks(text))
	var lines []string
	for len(chunks) > 0 {
		indent := first
		if len(lines) > 0 {
			indent = rest
		}
		room := width - len([]rune(indent))
		if len(lines) > 0 && blank(chunks[0]) {
			chunks = chunks[1:]
		}
		var line [][]rune
		used := 0
		for len(chunks) > 0 && used+len(chunks[0]) <= room {
			line, used = append(line, chunks[0]), used+len(chunks[0])
			chunks = chunks[1:]
		}
		if len(chunks) > 0 && len(chunks[0]) > room {
			end := cut(chunks[0], room, used)
			line = append(line, chunks[0][:end])
			chunks[0] = chunks[0][end:]
		}
		if len(line) > 0 && blank(line[len(line)-1]) {
			line = line[:len(line)-1]
		}
		if len(line) > 0 {
			var b strings.Builder
			b.WriteString(indent)
			for _, c := range line {
				b.WriteString(string(c))
			}
			lines = append(lines, b.String())
		}
	}
	return lines
}

// cut says how much of a chunk that fits on no line goes on the present one: all the room left, or up to the last hyphen
// in it; at least one character where there is no room at all.
func cut(chunk []rune, room, used int) int {
	left := room - used
	if room < 1 {
		left = 1
	}
	left = min(left, len(chunk))
	for i := left - 1; i > 0 && len(chunk) > left; i-- {
		if chunk[i] != '-' {
			continue
		}
		if strings.Trim(string(chunk[:i]), "-") != "" {
			return i + 1
		}
		break
	}
	return left
}

// blanks expands tabs and turns every other white space of ASCII into a blank.
func blanks(text string) []rune {
	out := make([]rune, 0, len(text))
	col := 0
	for _, r := range text {
		switch r {
		case '\t':
			for n := 8 - col%8; n > 0; n-- {
				out = append(out, ' ')
				col++
			}
		case '\n', '\r':
			out, col = append(out, ' '), 0
		case '\v', '\f':
			out, col = append(out, ' '), col+1
		default:
			out, col = append(out, r), col+1
		}
	}
	return out
}

// split takes a text apart into what a line break may not divide: runs of blanks, words, the parts of hyphenated words
// with their hyphens, and dashes between words.
func split(text []rune) [][]rune {
	var chunks [][]rune
	for i := 0; i < len(text); {
		end := chunkEnd(text, i)
		chunks = append(chunks, text[i:end:end])
		i = end
	}
	return chunks
}

func chunkEnd(text []rune, i int) int {
	if text[i] == ' ' {
		for i < len(text) && text[i] == ' ' {
			i++
		}
		return i
	}
	if n := dash(text, i); n > 0 {
		return i + n
	}
	for j := i + 1; ; j++ {
		switch {
		case j >= len(text) || text[j] == ' ':
			return j
		case hyphen(text, j):
			return j + 1
		case dash(text, j) > 0:
			return j
		}
	}
}

// hyphen says that the - at j divides a compound word: two letters, or a letter after a hyphenated one, stand before
// it, and two letters, perhaps with a hyphen between, after it.
func hyphen(text []rune, j int) bool {
	if text[j] != '-' {
		return false
	}
	is := func(k int, ok func(rune) bool) bool { return k >= 0 && k < len(text) && ok(text[k]) }
	dashAt := func(r rune) bool { return r == '-' }
	before := is(j-1, letter) && (is(j-2, letter) || is(j-2, dashAt) && is(j-3, letter))
	after := is(j+1, letter) && (is(j+2, letter) || is(j+2, dashAt) && is(j+3, letter))
	return before && after
}

// dash returns the length of a run of two or more - at j that stands between words, else 0.
func dash(text []rune, j int) int {
	if j == 0 || text[j] != '-' || !(word(text[j-1]) || strings.ContainsRune(`!"'&.,?`, text[j-1])) {
		return 0
	}
	n := 0
	for j+n < len(text) && text[j+n] == '-' {
		n++
	}
	if n < 2 || j+n >= len(text) || !word(text[j+n]) {
		return 0
	}
	return n
}

func word(r rune) bool   { return unicode.IsLetter(r) || unicode.IsNumber(r) || r == '_' }
func letter(r rune) bool { return word(r) && !unicode.Is(unicode.Nd, r) }

// blank says that c has nothing to see in it; white space beyond ASCII counts here, as it does for Python.
func blank(c []rune) bool {
	for _, r := range c {
		if !unicode.IsSpace(r) && (r < 0x1c || r > 0x1f) {
			return false
		}
	}
	return true
}
