package lab

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/starpatch/starpatch/host"
	"github.com/starpatch/starpatch/problem"
)

func TestTopologyNamesItsHosts(t *testing.T) {
	for _, c := range []struct {
		in   string
		want string // name=personality, in order
	}{
		{"2+2+2", "compute-0=worker compute-1=worker controller-0=controller controller-1=controller storage-0=storage storage-1=storage"},
		{"2+2", "compute-0=worker compute-1=worker controller-0=controller controller-1=controller"},
		{"1+0+0", "controller-0=controller"},
		{"1+1+1", "compute-0=worker controller-0=controller storage-0=storage"},
		{"aio-sx", "controller-0=controller-worker"},
		{"aio-dx", "controller-0=controller-worker controller-1=controller-worker"},
	} {
		top, err := ParseTopology(c.in)
		if err != nil {
			t.Errorf("%s: %v", c.in, err)
			continue
		}
		var got []string
		for _, h := range top.Hosts() {
			got = append(got, h.Name+"="+string(h.Personality))
		}
		if diff := cmp.Diff(c.want, strings.Join(got, " ")); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.in, diff)
		}
		again, err := ParseTopology(top.String())
		if err != nil || again != top {
			t.Errorf("%s: read back from %q: got %+v, %v; want %+v", c.in, top.String(), again, err, top)
		}
	}
}

func TestTopologyRefusesWhatIsNone(t *testing.T) {
	for _, c := range []struct {
		in   string
		kind problem.Kind
		want string
	}{
		{"", problem.Invalid, "is not a topology"},
		{"2", problem.Invalid, "is not a topology"},
		{"2+2+2+2", problem.Invalid, "is not a topology"},
		{"2+-1", problem.Invalid, "is not a topology"},
		{"2+x", problem.Invalid, "is not a topology"},
		{"aio", problem.Invalid, "aio-sx or aio-dx"},
		{"0+1", problem.Invalid, "has 0 controllers; a lab has 1 or 2"},
		{"3+1", problem.Invalid, "has 3 controllers; a lab has 1 or 2"},
		{"2+100+100", problem.TooLarge, "has 202 hosts; a lab has at most 200"},
	} {
		_, err := ParseTopology(c.in)
		if problem.KindOf(err) != c.kind || err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: got %v, want %q of kind %s", c.in, err, c.want, c.kind)
		}
	}
}

func TestEveryPersonalityHasASubfunctionLineThatReadsBack(t *testing.T) {
	for _, p := range host.Personalities() {
		got, err := host.ParseSubfunctions(strings.Join(p.Subfunctions(), ","))
		if err != nil || got != p {
			t.Errorf("%s: got %s, %v", p, got, err)
		}
	}
}
