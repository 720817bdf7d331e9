package controller

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/starpatch/starpatch/api"
	"github.com/starpatch/starpatch/host"
	"github.com/starpatch/starpatch/internal/agentlink"
	"github.com/starpatch/starpatch/internal/store"
	"github.com/starpatch/starpatch/patch"
	"github.com/starpatch/starpatch/problem"
)

// fill sets every field of a saved struct to something that is not its zero.
func fill(t *testing.T, v reflect.Value, path string) {
	t.Helper()
	switch v.Kind() {
	case reflect.String:
		v.SetString("x" + path)
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int64:
		v.SetInt(7)
	case reflect.Uint64:
		v.SetUint(7)
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(t, v.Elem(), path)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		fill(t, v.Index(0), path)
	case reflect.Map:
		key, value := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
		fill(t, key, path)
		fill(t, value, path)
		v.Set(reflect.MakeMap(v.Type()))
		v.SetMapIndex(key, value)
	case reflect.Struct:
		if v.Type() == reflect.TypeFor[time.Time]() {
			v.Set(reflect.ValueOf(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)))
			return
		}
		for i := range v.NumField() {
			fill(t, v.Field(i), path+"."+v.Type().Field(i).Name)
		}
	default:
		t.Fatalf("%s: the test cannot fill a %s", path, v.Kind())
	}
}

// TestEveryFieldOfARecordIsSaved finds a forgotten tag.
func TestEveryFieldOfARecordIsSaved(t *testing.T) {
	for _, record := range []any{&patchRecord{}, &releaseRecord{}, &hostRecord{}, &desiredRecord{}, &operationRecord{}, &outputRecord{}, &tokenRecord{}, &certificateRecord{}} {
		name := reflect.TypeOf(record).Elem().Name()
		t.Run(name, func(t *testing.T) {
			v := reflect.ValueOf(record).Elem()
			fill(t, v, "")
			v.FieldByName("Format").SetInt(recordFormat)
			b, err := encodeRecord("k", record)
			if err != nil {
				t.Fatal(err)
			}
			again := reflect.New(v.Type())
			if err := decodeRecord("k", b, again.Interface()); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(record, again.Interface(), cmp.Exporter(func(reflect.Type) bool { return true })); diff != "" {
				t.Errorf("saved and read again (-saved +read):\n%s", diff)
			}
		})
	}
}

func TestRecordsThatCannotBeReadStopTheStart(t *testing.T) {
	for _, tt := range []struct{ name, key, value, want string }{
		{"a newer format", "hosts/a", `{"format":2,"host":{}}`, "record hosts/a has format 2, written by a newer version; this version reads up to 1"},
		{"no format", "hosts/a", `{"host":{}}`, "it has no format number"},
		{"an unknown field", "hosts/a", `{"format":1,"colour":"red"}`, `unknown field "colour"`},
		{"something after the end", "hosts/a", `{"format":1,"host":{"name":"a"}} x`, "cannot read record hosts/a"},
		{"no JSON", "tokens/a", `x`, "cannot read record tokens/a"},
		{"a record under another's key", "hosts/a", `{"format":1,"host":{"name":"b"}}`, `it is of "b"`},
		{"a patch ID that could be a path", "patches/../x", `{"format":1,"patch":{"id":"../x"}}`, "is not a patch ID"},
		{"a repo state that does not exist", "releases/19.09", `{"format":1,"release":"19.09","placed":{"P":{"state":"Gone"}}}`, "is not a repo state"},
		{"a package that is none", "releases/19.09", `{"format":1,"release":"19.09","gone":["x"]}`, "is not an RPM file name"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := newSnapshot().loadRecord(store.Item{Key: tt.key, Value: []byte(tt.value), Rev: 2})
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

// FuzzRecords loads records as a store might hold them: nothing may crash the start, and what is accepted is saved again
// with the same meaning.
func FuzzRecords(f *testing.F) {
	seed := func(key string, record any) {
		b, err := encodeRecord(key, record)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(key, b)
	}
	seed("patches/P1", patchRecord{Format: 1, Patch: simple("P1", true, "P0")})
	seed("releases/19.09", releaseRecord{Format: 1, Release: "19.09", Revision: 3, Placed: map[patch.ID]place{"P1": {patch.RepoApplied, 2}}, Gone: []string{"a-1-1.noarch.rpm"}})
	seed("hosts/compute-0", hostRecord{1, host.Host{Name: "compute-0", Facts: facts(), Report: current(3)}})
	seed("desired/compute-0", desiredRecord{Format: 1, Host: "compute-0", Release: "19.09", Operation: &operation{ID: "op-1"}})
	seed("operations/op-1", operationRecord{1, api.Operation{ID: "op-1", Host: "compute-0", State: api.OperationRunning}})
	seed("tokens/t", tokenRecord{1, agentlink.TokenRecord{ID: "t", Host: "compute-0"}})
	seed("certificates/compute-0", certificateRecord{Format: 1, Host: "compute-0"})
	f.Fuzz(func(t *testing.T, key string, value []byte) {
		s := newSnapshot()
		if err := s.loadRecord(store.Item{Key: key, Value: value, Rev: 5}); err != nil {
			return
		}
		// Whatever was accepted can be evaluated and shown.
		s.evaluation()
		for name := range s.hosts.all {
			s.desired(name)
		}
		for id, p := range s.patches {
			again, err := json.Marshal(patchRecord{Format: 1, Patch: p})
			if err != nil {
				t.Fatal(err)
			}
			if err := newSnapshot().loadRecord(store.Item{Key: patchPrefix + string(id), Value: again, Rev: 5}); err != nil {
				t.Errorf("%s is refused after it was saved again: %v", id, err)
			}
		}
	})
}

// FuzzReport gives the controller what an agent might say: it is refused, or becomes state that can be shown and saved.
func FuzzReport(f *testing.F) {
	for _, r := range []host.Report{{}, current(1), {Release: "19.09", Revision: 2, State: host.InstallFailed, PatchFailed: true, Failure: "no", Missing: []string{"a"}, Cut: true}} {
		b, err := json.Marshal(r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var rep host.Report
		if err := json.Unmarshal(b, &rep); err != nil {
			return
		}
		if err := checkReport(rep); err != nil {
			if problem.KindOf(err) == problem.Internal {
				t.Errorf("refused without a kind: %v", err)
			}
			return
		}
		s := newSnapshot()
		s.setPatch(patchRecord{Format: 1, Patch: simple("P1", true)}, 2)
		s.setHost(host.Host{Name: "compute-0", Facts: facts(), Report: rep}, 3)
		e, _ := s.hosts.get("compute-0")
		hostInfo(e, s.evaluation().Hosts["compute-0"], presence{}, time.Time{}, time.Time{})
		v, err := encodeRecord("hosts/compute-0", hostRecord{1, e.host})
		if err != nil {
			return // too large
		}
		again := newSnapshot()
		if err := again.loadRecord(store.Item{Key: "hosts/compute-0", Value: v, Rev: 3}); err != nil {
			t.Fatal(err)
		}
		if got, _ := again.hosts.get("compute-0"); !sameReport(got.host.Report, rep) {
			t.Errorf("saved and read again: %+v, not %+v", got.host.Report, rep)
		}
	})
}
