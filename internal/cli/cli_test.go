package cli

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestTable(t *testing.T) {
	columns := []Column{{Header: "Patch ID", Left: true}, {Header: "RR"}, {Header: "Patch State"}}
	for _, tt := range []struct {
		name string
		rows [][]string
		want string
	}{
		{"an empty table is its header", nil, "Patch ID  RR  Patch State\n========  ==  ===========\n"},
		{"the odd blank of a centred cell is on its right", [][]string{{"001", "N", "Applied"}, {"0002", "Y", "Partial-Remove"}},
			"Patch ID  RR   Patch State  \n========  ==  ==============\n001       N      Applied    \n0002      Y   Partial-Remove\n"},
		{"a long value widens its column and centres the header", [][]string{{"补丁_0001_LONG", "Y", "n/a"}},
			"  Patch ID    RR  Patch State\n============  ==  ===========\n补丁_0001_LONG  Y       n/a    \n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(strings.SplitAfter(tt.want, "\n"), strings.SplitAfter(Table(columns, tt.rows), "\n")); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

func TestTextWidth(t *testing.T) {
	file, err := os.Create(filepath.Join(t.TempDir(), "no-terminal"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for _, tt := range []struct {
		name string
		env  map[string]string
		want int
	}{
		{"nothing known", nil, 72},
		{"a terminal type without a terminal is 80 columns", map[string]string{"TERM": "xterm"}, 76},
		{"COLUMNS counts first", map[string]string{"TERM": "xterm", "COLUMNS": "120"}, 116},
		{"60 columns are too few", map[string]string{"COLUMNS": "60"}, 72},
		{"61 are enough", map[string]string{"COLUMNS": "61"}, 57},
		{"nonsense is not a width", map[string]string{"COLUMNS": "wide"}, 72},
		{"a negative number is not a width", map[string]string{"COLUMNS": "-3"}, 72},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := TextWidth(func(k string) string { return tt.env[k] }, file); got != tt.want {
				t.Errorf("got %d, want %d", got, tt.want)
			}
		})
	}
}

func TestVisible(t *testing.T) {
	for _, tt := range []struct{ name, in, want string }{
		{"ordinary text stays", "Zeile eins\n\t补丁 \ufffd", "Zeile eins\n\t补丁 \ufffd"},
		{"escape sequences are shown, not obeyed", "\x1b[2Jgone\r\x07\u009b1m\x7f", `\x1b[2Jgone\x0d\x07\x9b1m\x7f`},
		{"bytes that are no text are shown", "a\xffb", `a\xffb`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := Visible(tt.in); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

type fullDisk struct{}

func (fullDisk) Write([]byte) (int, error) { return 0, errors.New("no space left on device") }

func TestOutputKeepsItsFirstErrorForFlush(t *testing.T) {
	o := NewOutput(fullDisk{})
	o.Line("%s", strings.Repeat("x", 1<<16))
	o.Text("more")
	if err := o.Flush(); err == nil {
		t.Error("got no error, want that of the disk")
	}
}

func TestJSON(t *testing.T) {
	got, err := JSON([]byte(`{"b":[],"a":{"z":[1,2.50,true,null],"ä":"line\n\"quoted\" <b> é 😀 \u007f\u0001"},"c":{}}`))
	if err != nil {
		t.Fatal(err)
	}
	// As Python prints it with sort_keys, indent 4 and separators (',', ': ').
	want := `{
    "a": {
        "z": [
            1,
            2.50,
            true,
            null
        ],
        "\u00e4": "line\n\"quoted\" <b> \u00e9 \ud83d\ude00 ` + "\x7f" + `\u0001"
    },
    "b": [],
    "c": {}
}`
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if _, err := JSON([]byte(`{`)); err == nil {
		t.Error("got no error for half an object")
	}
}

func TestParseOptions(t *testing.T) {
	flags, valued := []string{"--all"}, []string{"--release"}
	for _, tt := range []struct {
		name    string
		args    string
		want    Options
		refusal string
	}{
		{"options stand anywhere", "A --all B --release 19.09 C", Options{Words: []string{"A", "B", "C"}, Flags: map[string]bool{"--all": true}, Values: map[string]string{"--release": "19.09"}}, ""},
		{"a value may follow an equals sign", "--release=19.09", Options{Flags: map[string]bool{}, Values: map[string]string{"--release": "19.09"}}, ""},
		{"after -- nothing is an option", "-- --all -", Options{Words: []string{"--all", "-"}, Flags: map[string]bool{}, Values: map[string]string{}}, ""},
		{"an unknown option names the known ones", "--al", Options{}, "--al is not an option here; known: --all, --release"},
		{"a missing value is refused", "A --release", Options{}, "option --release needs a value"},
		{"an empty value is refused", "--release=", Options{}, "option --release needs a value"},
		{"a flag takes no value", "--all=yes", Options{}, "option --all takes no value"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := ParseOptions(strings.Fields(tt.args), flags, valued)
			if tt.refusal != "" {
				if err == nil || err.Error() != tt.refusal {
					t.Errorf("got %v, want %q", err, tt.refusal)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
	if _, err := ParseOptions([]string{"--x"}, nil, nil); err == nil || err.Error() != "--x is not an option here; there are none" {
		t.Errorf("got %v", err)
	}
}
