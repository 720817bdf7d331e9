package cli

import (
	"encoding/json"
	"os"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// The cases were made by Python itself: testdata/fill.py.
func TestFillIsPythonsTextwrapFill(t *testing.T) {
	text, err := os.ReadFile("testdata/fill.json")
	if err != nil {
		t.Fatal(err)
	}
	var cases []struct {
		Text  string `json:"text"`
		Width int    `json:"width"`
		First string `json:"first"`
		Rest  string `json:"rest"`
		Want  string `json:"want"`
	}
	if err := json.Unmarshal(text, &cases); err != nil {
		t.Fatal(err)
	}
	for _, c := range cases {
		if got := Fill(c.Text, c.Width, c.First, c.Rest); got != c.Want {
			t.Errorf("Fill(%q, %d, %q, %q):\n got %q\nwant %q", c.Text, c.Width, c.First, c.Rest, got, c.Want)
		}
	}
}

func TestFillLosesNothingButBlanksAndStaysInside(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.StringOf(rapid.RuneFrom([]rune("  --abcdé中1_.\t\n"))).Draw(t, "text")
		width := rapid.IntRange(21, 60).Draw(t, "width")
		indent := strings.Repeat(" ", rapid.IntRange(0, 20).Draw(t, "indent"))
		lines := Wrap(text, width, indent, indent)
		squeeze := strings.NewReplacer(" ", "", "\t", "", "\n", "")
		if got, want := squeeze.Replace(strings.Join(lines, "")), squeeze.Replace(text); got != want {
			t.Fatalf("got %q, want %q", got, want)
		}
		for _, l := range lines {
			if n := len([]rune(l)); n > width {
				t.Fatalf("line of %d columns, at most %d allowed: %q", n, width, l)
			}
			if !strings.HasPrefix(l, indent) {
				t.Fatalf("line without its indent: %q", l)
			}
		}
	})
}
