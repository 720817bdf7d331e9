package lab

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/starpatch/starpatch/host"
	"github.com/starpatch/starpatch/problem"
)

// Release is the software release of every host in a lab.
const Release = "19.09"

// maxHosts is how many hosts fit into a lab's own /24.
const maxHosts = 200

// Topology says which hosts a lab has.
type Topology struct {
	Controllers, Storages, Workers int
	AllInOne                       bool // controllers are workers too, and there are no others
}

// ParseTopology reads N+M+K (controllers, storage hosts, workers), N+K (controllers, workers), aio-sx or aio-dx.
func ParseTopology(s string) (Topology, error) {
	switch s {
	case "aio-sx":
		return Topology{Controllers: 1, AllInOne: true}, nil
	case "aio-dx":
		return Topology{Controllers: 2, AllInOne: true}, nil
	}
	var n []int
	for part := range strings.SplitSeq(s, "+") {
		i, err := strconv.ParseUint(part, 10, 8)
		if err != nil {
			return Topology{}, badTopology(s)
		}
		n = append(n, int(i))
	}
	var t Topology
	switch len(n) {
	case 2:
		t = Topology{Controllers: n[0], Workers: n[1]}
	case 3:
		t = Topology{Controllers: n[0], Storages: n[1], Workers: n[2]}
	default:
		return Topology{}, badTopology(s)
	}
	if t.Controllers != 1 && t.Controllers != 2 {
		return Topology{}, problem.Errorf(problem.Invalid, "topology %s has %d controllers; a lab has 1 or 2", s, t.Controllers)
	}
	if all := t.Controllers + t.Storages + t.Workers; all > maxHosts {
		return Topology{}, problem.Errorf(problem.TooLarge, "topology %s has %d hosts; a lab has at most %d", s, all, maxHosts)
	}
	return t, nil
}

func badTopology(s string) error {
	return problem.Errorf(problem.Invalid, "%q is not a topology; expected controllers+storage+workers like 2+2+2, controllers+workers like 2+2, aio-sx or aio-dx", s)
}

// String is the topology as [ParseTopology] reads it.
func (t Topology) String() string {
	switch {
	case t.AllInOne && t.Controllers == 1:
		return "aio-sx"
	case t.AllInOne:
		return "aio-dx"
	case t.Storages == 0:
		return fmt.Sprintf("%d+%d", t.Controllers, t.Workers)
	}
	return fmt.Sprintf("%d+%d+%d", t.Controllers, t.Storages, t.Workers)
}

// Hosts names the hosts and their personalities, sorted by name, without addresses.
func (t Topology) Hosts() []Host {
	controller := host.Controller
	if t.AllInOne {
		controller = host.ControllerWorker
	}
	var all []Host
	for _, kind := range []struct {
		name        string
		count       int
		personality host.Personality
	}{{"controller", t.Controllers, controller}, {"storage", t.Storages, host.Storage}, {"compute", t.Workers, host.Worker}} {
		for i := range kind.count {
			all = append(all, Host{Name: fmt.Sprintf("%s-%d", kind.name, i), Personality: kind.personality})
		}
	}
	slices.SortFunc(all, func(a, b Host) int { return strings.Compare(a.Name, b.Name) })
	return all
}
