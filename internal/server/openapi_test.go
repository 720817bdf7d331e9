package server

import (
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"

	"github.com/starpatch/starpatch/api"
)

// TestTheDescriptionIsTheTable compares api/openapi.yaml with the route table and the types of package api.
func TestTheDescriptionIsTheTable(t *testing.T) {
	text, err := os.ReadFile("../../api/openapi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var doc struct {
		Paths      map[string]map[string]any
		Components struct {
			Schemas map[string]struct {
				Required   []string
				Properties map[string]any
			}
		}
	}
	if err := yaml.Unmarshal(text, &doc); err != nil {
		t.Fatal(err)
	}
	var described, served []string
	for path, methods := range doc.Paths {
		for m := range methods {
			described = append(described, strings.ToUpper(m)+" "+path)
		}
	}
	for _, rt := range routes {
		if rt.service == OwnService {
			for _, m := range rt.methods {
				served = append(served, m+" "+rt.pattern)
			}
		}
	}
	slices.Sort(described)
	slices.Sort(served)
	if diff := cmp.Diff(served, described); diff != "" {
		t.Errorf("routes (-served +described):\n%s", diff)
	}
	for _, v := range []any{api.Status{}, api.ReleaseStatus{}, api.Listener{}, api.InstallRequest{}, api.Operation{}, api.OperationLog{}, api.TokenRequest{}, api.Token{},
		api.TrustKey{}, api.TrustRequest{}, api.FeedRequest{}, api.JournalHead{}, api.JournalPage{}, api.JournalCheck{}, api.Problem{}} {
		typ := reflect.TypeOf(v)
		schema, ok := doc.Components.Schemas[typ.Name()]
		if !ok {
			t.Errorf("%s is not described", typ.Name())
			continue
		}
		var fields, required []string
		for field := range typ.Fields() {
			name, options, _ := strings.Cut(field.Tag.Get("json"), ",")
			fields = append(fields, name)
			if options != "omitempty" {
				required = append(required, name)
			}
		}
		var properties []string
		for p := range schema.Properties {
			properties = append(properties, p)
		}
		slices.Sort(fields)
		slices.Sort(properties)
		slices.Sort(required)
		slices.Sort(schema.Required)
		if diff := cmp.Diff(fields, properties); diff != "" {
			t.Errorf("fields of %s (-type +description):\n%s", typ.Name(), diff)
		}
		if diff := cmp.Diff(required, schema.Required); diff != "" {
			t.Errorf("required fields of %s (-type +description):\n%s", typ.Name(), diff)
		}
	}
}
