package server

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// TestRespellingKeepsTheMeaning: whatever the texts are, the reply is printable ASCII and reads back as it was.
func TestRespellingKeepsTheMeaning(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := rapid.MapOf(rapid.String(), rapid.SliceOf(rapid.String())).Draw(t, "reply")
		text, err := compatJSON(want)
		if err != nil {
			t.Fatal(err)
		}
		if i := strings.IndexFunc(string(text), func(r rune) bool { return r < ' ' || r > '~' }); i >= 0 {
			t.Errorf("%q has something unprintable at %d", text, i)
		}
		var got map[string][]string
		if err := json.Unmarshal(text, &got); err != nil {
			t.Fatal(err)
		}
		valid := map[string][]string{}
		for k, v := range want {
			var list []string
			if v != nil {
				list = []string{}
			}
			for _, s := range v {
				list = append(list, strings.ToValidUTF8(s, "\uFFFD"))
			}
			valid[strings.ToValidUTF8(k, "\uFFFD")] = list
		}
		if diff := cmp.Diff(valid, got); diff != "" {
			t.Errorf("read back (-want +got):\n%s", diff)
		}
	})
}
