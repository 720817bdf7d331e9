package server

import (
	"bytes"
	"encoding/json"
	"unicode/utf16"
	"unicode/utf8"
)

// compatJSON encodes v as the original's replies are: one line, ", " and ": " as separators, everything outside
// printable ASCII as \uXXXX, no newline at the end.
func compatJSON(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return nil, err
	}
	return respell(bytes.TrimSuffix(b.Bytes(), []byte("\n"))), nil
}

// respell widens the separators of compact JSON and escapes what is not printable ASCII inside its strings. What stays as
// it is goes over in whole runs: the reply about 10,000 hosts has 4 MB.
func respell(in []byte) []byte {
	out := make([]byte, 0, len(in)+len(in)/8)
	quoted, from := false, 0
	for i := 0; i < len(in); i++ {
		switch c := in[i]; {
		case c == '"':
			quoted = !quoted
		case c == '\\':
			i++ // what is escaped does not end the string
		case !quoted && (c == ',' || c == ':'):
			out = append(append(out, in[from:i+1]...), ' ')
			from = i + 1
		case c >= 0x7f:
			r, n := utf8.DecodeRune(in[i:])
			out = escape(append(out, in[from:i]...), r)
			i += n - 1
			from = i + 1
		}
	}
	return append(out, in[from:]...)
}

func escape(out []byte, r rune) []byte {
	if r1, r2 := utf16.EncodeRune(r); r1 != utf8.RuneError {
		return escape(escape(out, r1), r2)
	}
	const digits = "0123456789abcdef"
	return append(out, '\\', 'u', digits[r>>12&15], digits[r>>8&15], digits[r>>4&15], digits[r&15])
}
