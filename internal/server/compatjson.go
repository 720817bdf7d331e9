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

// respell widens the separators of compact JSON and escapes what is not printable ASCII inside its strings.
func respell(in []byte) []byte {
	out := make([]byte, 0, len(in)+len(in)/8)
	quoted := false
	for i := 0; i < len(in); {
		c := in[i]
		switch {
		case !quoted && (c == ',' || c == ':'):
			out = append(out, c, ' ')
			i++
		case quoted && c == '\\':
			out = append(out, c, in[i+1])
			i += 2
		case c == '"':
			quoted = !quoted
			out = append(out, c)
			i++
		case c < 0x7f:
			out = append(out, c)
			i++
		default:
			r, n := utf8.DecodeRune(in[i:])
			out = escape(out, r)
			i += n
		}
	}
	return out
}

func escape(out []byte, r rune) []byte {
	if r1, r2 := utf16.EncodeRune(r); r1 != utf8.RuneError {
		return escape(escape(out, r1), r2)
	}
	const digits = "0123456789abcdef"
	return append(out, '\\', 'u', digits[r>>12&15], digits[r>>8&15], digits[r>>4&15], digits[r&15])
}
