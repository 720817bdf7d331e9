package lab

import (
	"fmt"
	"net/netip"
	"os/exec"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/starpatch/starpatch/problem"
)

// With --netns the keeper's own network namespace is the switch that the hosts are plugged into. It has no name, so it
// ends with the keeper, and every cable with its host.

// bridge is the switch's name inside the keeper's namespace.
const bridge = "switch"

// makeSwitch moves the calling thread, and with it every process that it starts, into a new network namespace.
func makeSwitch() error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return problem.Errorf(problem.Unavailable, "cannot make the lab's network: %w", err)
	}
	return run("ip", "link add "+bridge+" type bridge", "link set "+bridge+" up")
}

// plug gives the host whose init is pid its network card, mgmt0.
func plug(h Host, pid int) error {
	port := "p-" + h.Name
	if err := run("ip", "link add "+port+" type veth peer name mgmt0 address "+hardware(h.Address)+" netns "+strconv.Itoa(pid), "link set "+port+" master "+bridge+" up"); err != nil {
		return err
	}
	in := "--net=/proc/" + strconv.Itoa(pid) + "/ns/net ip "
	return run("nsenter", in+"link set lo up", in+"addr add "+h.Address+"/24 dev mgmt0", in+"link set mgmt0 up")
}

// hardware is the address of a host's network card. It follows from the host's own, because a card stays the same over a
// reboot: the other hosts remember it.
func hardware(address string) string {
	ip := netip.MustParseAddr(address).As4()
	return fmt.Sprintf("02:00:%02x:%02x:%02x:%02x", ip[0], ip[1], ip[2], ip[3])
}

// run runs one program several times; each line is its arguments.
func run(program string, lines ...string) error {
	for _, line := range lines {
		if out, err := exec.Command(program, strings.Fields(line)...).CombinedOutput(); err != nil {
			return problem.Errorf(problem.Unavailable, "cannot set up the lab's network: %s %s: %w: %s", program, line, err, strings.TrimSpace(string(out)))
		}
	}
	return nil
}
