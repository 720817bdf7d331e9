package patchfile

import (
	"crypto/md5"
	"encoding/hex"
	"fmt"
	"strings"
)

// checksum is the first signature: all ones combined by exclusive or with the MD5 of every signed member.
type checksum [md5.Size]byte

// add combines c with the MD5 of one more member; order does not matter.
func (c *checksum) add(sum []byte) {
	for i := range c {
		c[i] ^= sum[i]
	}
}

// text is the signature member for the MD5s that were added: the number in hexadecimal without leading zeros.
func (c checksum) text() string {
	for i := range c {
		c[i] ^= 0xff
	}
	s := strings.TrimLeft(hex.EncodeToString(c[:]), "0")
	if s == "" {
		return "0"
	}
	return s
}

// check compares with the text of a signature member, read as the original does: blanks around it, 0x before it and
// leading zeros mean nothing.
func (c checksum) check(text string) error {
	digits := strings.ToLower(strings.TrimSpace(text))
	digits = strings.TrimPrefix(digits, "0x")
	if digits == "" || strings.Trim(digits, "0123456789abcdef") != "" {
		return fmt.Errorf("signature is %q; expected a number in hexadecimal", text)
	}
	if digits = strings.TrimLeft(digits, "0"); digits == "" {
		digits = "0"
	}
	if want := c.text(); digits != want {
		return fmt.Errorf("signature is %.40q and should be %s for these members", text, want)
	}
	return nil
}
