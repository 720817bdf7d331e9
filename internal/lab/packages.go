package lab

import (
	_ "embed"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/starpatch/starpatch/host"
	"github.com/starpatch/starpatch/internal/rpm"
	"github.com/starpatch/starpatch/internal/rpmmake"
	"github.com/starpatch/starpatch/problem"
)

// Service is the name of the service that runs on every host and tells its version, and of its package.
const Service = "demo-service"

// arch is the architecture of the packages that carry programs.
const arch = "x86_64"

//go:embed files/restart-service
var restartService []byte

// small is a package of a few text files, as most of a host's are.
type small struct {
	name     string
	requires []string
	config   bool // it has a configuration file that an administrator may change
	script   bool // its scriptlets keep a note below /var/lib/lab
}

// everywhere are the small packages of every host; with base, init, patching and the service they are 17.
var everywhere = []small{
	{name: "lab-libcore"},
	{name: "lab-libcrypto", requires: []string{"lab-libcore"}, config: true},
	{name: "lab-libnet", requires: []string{"lab-libcrypto"}},
	{name: "lab-libdb", requires: []string{"lab-libcore"}, script: true},
	{name: "lab-logging", requires: []string{"lab-libcore"}, config: true, script: true},
	{name: "lab-timesync", requires: []string{"lab-libnet"}, config: true, script: true},
	{name: "lab-ssh", requires: []string{"lab-libcrypto"}, config: true},
	{name: "lab-monitoring", requires: []string{"lab-libnet", "lab-logging"}, script: true},
	{name: "lab-tools", requires: []string{"lab-libcore"}},
	{name: "lab-kernel", script: true},
}

// special are the three small packages that make a host what it is.
var special = []struct {
	of       []host.Personality
	packages []small
}{
	{[]host.Personality{host.Controller, host.ControllerWorker}, []small{
		{name: "lab-database", requires: []string{"lab-libdb"}, config: true, script: true},
		{name: "lab-api", requires: []string{"lab-database", "lab-libnet"}},
		{name: "lab-dashboard", requires: []string{"lab-api"}, config: true},
	}},
	{[]host.Personality{host.Storage}, []small{
		{name: "lab-osd-lib", requires: []string{"lab-libdb"}},
		{name: "lab-osd", requires: []string{"lab-osd-lib"}, config: true, script: true},
		{name: "lab-osd-tools", requires: []string{"lab-osd"}},
	}},
	{[]host.Personality{host.Worker, host.ControllerWorker}, []small{
		{name: "lab-vswitch", requires: []string{"lab-libnet"}, config: true, script: true},
		{name: "lab-hypervisor", requires: []string{"lab-vswitch"}},
		{name: "lab-guest-tools", requires: []string{"lab-hypervisor"}},
	}},
}

// baseEVR is the version of the lab's own packages in the base load.
const baseEVR = "1.0-1"

func (p small) spec(evr rpm.EVR) rpmmake.Spec {
	s := rpmmake.Spec{Name: p.name, EVR: evr, Requires: append([]string{"lab-filesystem"}, p.requires...),
		Files: []rpmmake.File{{Path: "/usr/lib/lab/" + p.name, Body: fmt.Appendf(nil, "%s %s\n", p.name, evr)}}}
	if p.config {
		s.Files = append(s.Files, rpmmake.File{Path: "/etc/lab/" + p.name + ".conf", Body: []byte("# settings of " + p.name + "\n"), Config: true})
	}
	if p.script {
		s.Scripts = rpmmake.Scripts{
			Post:  fmt.Sprintf("mkdir -p /var/lib/lab\necho '%s' >/var/lib/lab/%s\n", evr, p.name),
			PreUn: fmt.Sprintf("if [ \"$1\" = 0 ]; then rm -f /var/lib/lab/%s; fi\n", p.name),
		}
	}
	return s
}

// initSpec is the package of the programs by which a host's scripts speak to its init.
func initSpec(evr rpm.EVR, program []byte) rpmmake.Spec {
	return rpmmake.Spec{Name: "lab-init", EVR: evr, Arch: arch, Requires: []string{"lab-busybox"}, Files: []rpmmake.File{
		{Path: "/usr/sbin/patch-restart-processes", Body: program, Mode: 0o755},
		{Path: "/usr/sbin/reboot", Link: "../bin/busybox"}, // signals process 1, as on any small system
	}}
}

// patchingSpec is the package of what in-service patch scripts rely on, besides what the agent brings along.
func patchingSpec(evr rpm.EVR) rpmmake.Spec {
	return rpmmake.Spec{Name: "lab-patching", EVR: evr, Requires: []string{"lab-bash", "lab-init"}, Files: []rpmmake.File{
		{Path: "/etc/patching", Dir: true},
		{Path: "/etc/patching/patch-scripts", Dir: true},
	}}
}

// copyScript is the scriptlet by which a package of an in-service patch has its script run, after its installation and
// after its removal.
const copyScript = `mkdir -p /run/patching/patch-scripts
cp /etc/patching/patch-scripts/demo-service /run/patching/patch-scripts/demo-service
`

// serviceTrailer is what follows the program in the service's file, with its version; cmd/lab-service reads it. So
// every version is another file, and only a new process tells a new version.
const serviceTrailer = "\nlab-service version "

func serviceSpec(evr rpm.EVR, program []byte) rpmmake.Spec {
	return rpmmake.Spec{Name: Service, EVR: evr, Arch: arch, Summary: "Tells its version over HTTP", Requires: []string{"lab-patching"},
		Files: []rpmmake.File{
			{Path: "/usr/sbin/demo-service", Body: slices.Concat(program, []byte(serviceTrailer+evr.String()+"\n")), Mode: 0o755},
			{Path: serviceDir + "/" + Service, Body: []byte("/usr/sbin/demo-service\n")},
			{Path: "/etc/patching/patch-scripts/demo-service", Body: restartService, Mode: 0o755},
		},
		Scripts: rpmmake.Scripts{Post: copyScript, PreUn: copyScript},
	}
}

// load is the set of packages that the hosts of a lab are made of.
type load struct {
	program []byte // lab-service
}

func readLoad(programs string) (load, error) {
	text, err := os.ReadFile(programs + "/lab-service")
	if err != nil {
		return load{}, problem.Errorf(problem.Unavailable, "cannot read the program of the lab's service: %w; build all programs into one folder by make build", err)
	}
	return load{text}, nil
}

// base are the packages of a personality, in the base version.
func (l load) base(p host.Personality) ([]rpmmake.Spec, error) {
	specs, err := rpmmake.Base(Release)
	if err != nil {
		return nil, err
	}
	evr := rpmmake.EVR(baseEVR)
	specs = append(specs, initSpec(evr, l.program), patchingSpec(evr), serviceSpec(evr, l.program))
	for _, s := range smallOf(p) {
		specs = append(specs, s.spec(evr))
	}
	return specs, nil
}

// smallOf lists the small packages of a personality.
func smallOf(p host.Personality) []small {
	all := slices.Clone(everywhere)
	for _, s := range special {
		if slices.Contains(s.of, p) {
			all = append(all, s.packages...)
		}
	}
	return all
}

// version makes another version of one of the lab's own packages, for a patch.
func (l load) version(name string, evr rpm.EVR) (rpmmake.Spec, error) {
	switch name {
	case Service:
		return serviceSpec(evr, l.program), nil
	case "lab-init":
		return initSpec(evr, l.program), nil
	case "lab-patching":
		return patchingSpec(evr), nil
	}
	names := []string{Service, "lab-init", "lab-patching"}
	for _, p := range host.Personalities() {
		for _, s := range smallOf(p) {
			if s.name == name {
				return s.spec(evr), nil
			}
			names = append(names, s.name)
		}
	}
	slices.Sort(names)
	return rpmmake.Spec{}, problem.Errorf(problem.NotFound, "the lab has no package %q of its own; expected one of %s", name, strings.Join(slices.Compact(names), ", "))
}

// rebootScript is the scriptlet by which a package says that a reboot is needed before its changes count.
const rebootScript = "touch /var/run/node_is_patched_rr\n"

// MakePackage writes another version of one of the lab's own packages, like demo-service 1.0-2, into folder dir, for a
// patch to carry, and returns the file's path. Its program is read from the folder programs. With reboot the package
// asks for a reboot instead of restarting the service.
func MakePackage(programs, dir, name, version string, reboot bool) (string, error) {
	l, err := readLoad(programs)
	if err != nil {
		return "", err
	}
	parsed, err := rpm.ParseFileName(name + "-" + version + ".noarch.rpm")
	if err != nil || parsed.Name != name {
		return "", problem.Errorf(problem.Invalid, "%q is not a version; expected VERSION-RELEASE like 1.0-2", version)
	}
	spec, err := l.version(name, parsed.EVR)
	if err != nil {
		return "", err
	}
	if reboot {
		if name == Service {
			spec.Scripts = rpmmake.Scripts{}
		}
		spec.Scripts.Post += rebootScript
		spec.Scripts.PreUn += rebootScript
	}
	return spec.WriteTo(dir)
}
