package rpm_test

import (
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/starpatch/starpatch/internal/rpm"
	"github.com/starpatch/starpatch/internal/rpmmake"
)

// askRPM compares pairs with rpm itself, all in one process.
func askRPM(t testing.TB, pairs [][2]rpm.EVR) []int {
	t.Helper()
	var args []string
	for _, p := range pairs {
		a, b := p[0].String(), p[1].String()
		args = append(args, "--eval", fmt.Sprintf(`%%[v"%s" > v"%s" ? 1 : v"%[1]s" < v"%[2]s" ? 2 : 0]`, a, b))
	}
	out, err := exec.Command("rpm", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("rpm: %v: %s", err, out)
	}
	lines := strings.Fields(string(out))
	if len(lines) != len(pairs) {
		t.Fatalf("rpm answered %d of %d questions: %s", len(lines), len(pairs), out)
	}
	got := make([]int, len(pairs))
	for i, l := range lines {
		got[i] = map[string]int{"0": 0, "1": 1, "2": -1}[l]
	}
	return got
}

func TestOrdersAsRPMDoes(t *testing.T) {
	versions := []string{
		"1.0-1", "1:1.0-1", "2.0-1", "1.0-2", "1.0-10", "1.0-9", "1.0~rc1-1", "1.0~rc1~git1-1", "1.0^git1-1", "1.0^git1~pre-1", "1.0.1-1", "1.0a-1", "1.0b-1",
		"1.a-1", "1..0-1", "1_0-1", "001.0-1", "1.0-1.tis", "1.0-1.tis.2", "1.0-1.tis.10", "10:0-0", "~-1", "^-1", "a-1", "a1-1", "1a-1", "1.0.-1", "1.0+-1",
		"99999999999999999999-1", "100000000000000000000-1", "0-0", "00-0", "1.0-0~", "2147483647:1-1", "5.5p1-1", "5.5p10-1", "xyz10-1", "xyz10.1-1",
	}
	var pairs [][2]rpm.EVR
	for _, a := range versions {
		for _, b := range versions {
			pairs = append(pairs, [2]rpm.EVR{rpmmake.EVR(a), rpmmake.EVR(b)})
		}
	}
	for chunk := range slices.Chunk(pairs, 500) {
		for i, want := range askRPM(t, chunk) {
			if got := chunk[i][0].Compare(chunk[i][1]); got != want {
				t.Errorf("%s against %s: %d; rpm says %d", chunk[i][0], chunk[i][1], got, want)
			}
		}
	}
}

func drawEVR(t *rapid.T, label string) rpm.EVR {
	part := rapid.StringMatching(`[019aZ]([0129ab.~^_+]{0,5})`)
	return rpm.EVR{Epoch: rapid.IntRange(0, 2).Draw(t, label+" epoch"), Version: part.Draw(t, label+" version"), Release: part.Draw(t, label+" release")}
}

func TestOrdersRandomVersionsAsRPMDoes(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		pairs := make([][2]rpm.EVR, 100)
		for i := range pairs {
			pairs[i] = [2]rpm.EVR{drawEVR(rt, "a"), drawEVR(rt, "b")}
		}
		for i, want := range askRPM(t, pairs) {
			if got := pairs[i][0].Compare(pairs[i][1]); got != want {
				rt.Fatalf("%s against %s: %d; rpm says %d", pairs[i][0], pairs[i][1], got, want)
			}
		}
	})
}

func TestTheOrderIsTotal(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b, c := drawEVR(t, "a"), drawEVR(t, "b"), drawEVR(t, "c")
		checkTotal(t, a, b, c)
	})
}

// checkTotal demands that the three can be sorted, and that it does not matter from where one starts.
func checkTotal(t interface {
	Fatalf(format string, args ...any)
}, a, b, c rpm.EVR) {
	if a.Compare(a) != 0 {
		t.Fatalf("%s differs from itself", a)
	}
	if a.Compare(b) != -b.Compare(a) {
		t.Fatalf("%s and %s: %d one way, %d the other", a, b, a.Compare(b), b.Compare(a))
	}
	if a.Compare(b) <= 0 && b.Compare(c) <= 0 && a.Compare(c) > 0 {
		t.Fatalf("%s <= %s <= %s, yet the first is newer than the last", a, b, c)
	}
	if a.Compare(b) == 0 && a.Compare(c) != b.Compare(c) {
		t.Fatalf("%s equals %s, yet they compare differently with %s", a, b, c)
	}
}

func FuzzCompare(f *testing.F) {
	f.Add("1.0-1", "1:1.0-1", "2.0-1")
	f.Add("1.0~rc1-1", "1.0-1", "1.0^git-1")
	f.Add("1.a-1", "1..0-1.tis", "10-01")
	f.Fuzz(func(t *testing.T, a, b, c string) {
		x, y, z := fuzzEVR(a), fuzzEVR(b), fuzzEVR(c)
		checkTotal(t, x, y, z)
		// What a package may be called is what rpm can be asked about.
		if !nameable(x) || !nameable(y) {
			return
		}
		if got, want := x.Compare(y), askRPM(t, [][2]rpm.EVR{{x, y}})[0]; got != want {
			t.Fatalf("%s against %s: %d; rpm says %d", x, y, got, want)
		}
	})
}

// fuzzEVR makes some version of any text.
func fuzzEVR(s string) rpm.EVR {
	version, release, _ := strings.Cut(s, "-")
	epoch := 0
	if len(s) > 2 && s[1] == ':' && s[0] >= '0' && s[0] <= '9' {
		epoch, version = int(s[0]-'0'), version[min(2, len(version)):]
	}
	return rpm.EVR{Epoch: epoch, Version: version, Release: release}
}

func nameable(e rpm.EVR) bool {
	n, err := rpm.ParseFileName(rpm.NEVRA{Name: "x", EVR: e, Arch: "noarch"}.FileName())
	return err == nil && n.Version == e.Version && n.Release == e.Release // no dash of the release was taken for the name's
}
