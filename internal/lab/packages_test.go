package lab

import (
	"strings"
	"testing"

	"github.com/starpatch/starpatch/host"
	"github.com/starpatch/starpatch/internal/rpmmake"
)

func TestEveryPlainHostHasTwentyPackagesAndWhatTheyRequire(t *testing.T) {
	for _, p := range []host.Personality{host.Controller, host.Storage, host.Worker, host.ControllerWorker} {
		specs, err := load{}.base(p)
		if err != nil {
			t.Fatal(err)
		}
		if want := 20; p != host.ControllerWorker && len(specs) != want {
			t.Errorf("%s: got %d packages, want %d", p, len(specs), want)
		}
		have := map[string]bool{}
		for _, s := range specs {
			if have[s.Name] {
				t.Errorf("%s has %s twice", p, s.Name)
			}
			have[s.Name] = true
		}
		for _, s := range specs {
			for _, r := range s.Requires {
				if !have[r] {
					t.Errorf("%s: %s requires %s, which is not there", p, s.Name, r)
				}
			}
		}
	}
}

func TestAnotherVersionOfAPackageIsAnotherPackage(t *testing.T) {
	for _, name := range []string{Service, "lab-kernel", "lab-osd", "lab-libcore"} {
		one, err := load{}.version(name, rpmmake.EVR("1.0-1"))
		if err != nil {
			t.Fatal(err)
		}
		two, err := load{}.version(name, rpmmake.EVR("1.0-2"))
		if err != nil {
			t.Fatal(err)
		}
		if one.Name != name || two.FileName() == one.FileName() || string(one.Files[0].Body) == string(two.Files[0].Body) {
			t.Errorf("%s: versions 1.0-1 (%s) and 1.0-2 (%s) do not differ as they should", name, one.FileName(), two.FileName())
		}
	}
}

func TestBootIDsAreNewEveryTime(t *testing.T) {
	a, b := bootID(), bootID()
	if a == b || len(a) != 36 || strings.Count(a, "-") != 4 {
		t.Errorf("got %q and %q", a, b)
	}
}

func TestANetworkCardKeepsTheAddressThatFollowsFromItsHosts(t *testing.T) {
	if got, want := hardware("192.168.204.11"), "02:00:c0:a8:cc:0b"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}
