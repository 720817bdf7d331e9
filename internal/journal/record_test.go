package journal

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/starpatch/starpatch/problem"
)

// filled is a record with something in every field.
func filled(t *testing.T) Record {
	t.Helper()
	var r Record
	v := reflect.ValueOf(&r).Elem()
	for i := range v.NumField() {
		name := v.Type().Field(i).Name
		switch f := v.Field(i); f.Interface().(type) {
		case int, int64:
			f.SetInt(int64(i + 1))
		case string, Kind:
			f.SetString("field " + fmt.Sprint(i))
		case time.Time:
			f.Set(reflect.ValueOf(time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)))
		case json.RawMessage:
			f.SetBytes([]byte(`{"a":[1,"\u003cb\u003e",null]}`))
		default:
			t.Fatalf("the test cannot fill the field %s", name)
		}
	}
	r.Prev = genesis
	return r
}

func TestEveryFieldOfARecordIsSaved(t *testing.T) {
	want := filled(t)
	line, err := seal(&want)
	if err != nil {
		t.Fatal(err)
	}
	got, err := parse(line)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("read back (-want +got):\n%s", diff)
	}
	for i := range reflect.TypeFor[Record]().NumField() {
		if reflect.ValueOf(got).Field(i).IsZero() {
			t.Errorf("field %s was not saved", reflect.TypeFor[Record]().Field(i).Name)
		}
	}
	if again, err := json.Marshal(got); err != nil || !bytes.Equal(again, line) {
		t.Errorf("as JSON %s, %v; want the line %s", again, err, line)
	}
}

func TestWhatIsNotTextIsMadeText(t *testing.T) {
	r := filled(t)
	r.Actor, r.Subject, r.Outcome = "a\xffb", "\u2028<&>", "line\nbreak\x00"
	line, err := seal(&r)
	if err != nil {
		t.Fatal(err)
	}
	got, err := parse(line)
	if err != nil {
		t.Fatal(err)
	}
	if got.Actor != "a\uFFFDb" || got.Subject != r.Subject || got.Outcome != r.Outcome || bytes.ContainsAny(line, "\n\x00") {
		t.Errorf("got %q", line)
	}
}

func TestARecordThatSealWouldNotWriteIsRefused(t *testing.T) {
	r := filled(t)
	line, err := seal(&r)
	if err != nil {
		t.Fatal(err)
	}
	good := string(line)
	for _, c := range []struct {
		name, line string
		want       problem.Kind
	}{
		{"nothing", "", problem.Internal},
		{"no object", `[]`, problem.Internal},
		{"a changed word", strings.Replace(good, "field 4", "field 5", 1), problem.Internal},
		{"a blank", strings.Replace(good, `":`, `": `, 1), problem.Internal},
		{"an unknown field", strings.Replace(good, `{"format"`, `{"more":1,"format"`, 1), problem.Internal},
		{"another spelling", strings.Replace(good, `"actor"`, `"Actor"`, 1), problem.Internal},
		{"more after the end", good + "{}", problem.Internal},
		{"no hash", good[:strings.Index(good, `,"hash"`)] + "}", problem.Internal},
		{"no number", strings.Replace(good, `"number":2`, `"number":0`, 1), problem.Internal},
		{"no place in the chain", strings.Replace(good, genesis, "", 1), problem.Internal},
		{"too long", strings.Replace(good, "field 4", strings.Repeat("x", MaxRecord), 1), problem.Internal},
		{"a newer format", strings.Replace(good, `"format":1`, `"format":2`, 1), problem.NotSupported},
		{"a newer format with fields unknown here", strings.Replace(good, `"format":1`, `"format":2,"new":true`, 1), problem.NotSupported},
	} {
		if _, err := parse([]byte(c.line)); err == nil || problem.KindOf(err) != c.want {
			t.Errorf("%s: got %v, want a refusal of kind %q", c.name, err, c.want)
		}
	}
}

func FuzzRecord(f *testing.F) {
	r := Record{Number: 1, Time: time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC), Kind: "upload", Actor: "uid 0", Subject: "P1", Outcome: "done", Prev: genesis}
	for _, detail := range []string{"", `{"a":1}`, `"\u2028"`, "null", "[1e400]"} {
		r.Detail = nil
		if detail != "" {
			r.Detail = json.RawMessage(detail)
		}
		line, err := seal(&r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(line)
		f.Add(bytes.Replace(line, []byte(`"format":1`), []byte(`"format":9`), 1))
		f.Add(line[:len(line)/2])
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		r, err := parse(line)
		if err != nil {
			return
		}
		again, err := seal(&r)
		if err != nil || !bytes.Equal(again, line) {
			t.Errorf("accepted %q, which is written back as %q, %v", line, again, err)
		}
	})
}

// FuzzSeal looks for contents that are saved and cannot be read back.
func FuzzSeal(f *testing.F) {
	f.Add("upload", "uid 0", "P1", "op", "done", []byte(`{"a": "<>&\u2028"}`), int64(1), int64(5))
	f.Add("a", "\xff", "\u2028", "\x00", "\"\\", []byte(nil), int64(-1), int64(999999999))
	f.Fuzz(func(t *testing.T, kind, actor, subject, op, outcome string, detail []byte, sec, nsec int64) {
		r := Record{Number: 1, Time: time.Unix(sec, nsec), Kind: Kind(kind), Actor: actor, Subject: subject, Operation: op, Outcome: outcome, Detail: detail, Prev: genesis}
		line, err := seal(&r)
		if err != nil {
			return
		}
		if _, err := parse(line); err != nil {
			t.Errorf("cannot read back %q: %v", line, err)
		}
	})
}
