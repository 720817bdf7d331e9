package cli

import (
	"strings"
	"unicode/utf8"
)

// Column is the head of one column of a [Table].
type Column struct {
	Header string
	Left   bool // values stand at the left; else centred
}

// Table returns rows under centred headers and a line of =, two blanks between columns, each as wide as its longest
// value. Cells are padded to the full width, so that lines may end in blanks; the odd blank of a centred cell is on its
// right. Every row has one value per column.
func Table(cols []Column, rows [][]string) string {
	widths := make([]int, len(cols))
	for i, c := range cols {
		widths[i] = utf8.RuneCountInString(c.Header)
		for _, r := range rows {
			widths[i] = max(widths[i], utf8.RuneCountInString(r[i]))
		}
	}
	var b strings.Builder
	line := func(cell func(i int) string) {
		for i := range cols {
			if i > 0 {
				b.WriteString("  ")
			}
			b.WriteString(cell(i))
		}
		b.WriteByte('\n')
	}
	line(func(i int) string { return centre(cols[i].Header, widths[i]) })
	line(func(i int) string { return strings.Repeat("=", widths[i]) })
	for _, r := range rows {
		line(func(i int) string {
			if cols[i].Left {
				return r[i] + strings.Repeat(" ", widths[i]-utf8.RuneCountInString(r[i]))
			}
			return centre(r[i], widths[i])
		})
	}
	return b.String()
}

func centre(s string, width int) string {
	pad := width - utf8.RuneCountInString(s)
	return strings.Repeat(" ", pad/2) + s + strings.Repeat(" ", pad-pad/2)
}
