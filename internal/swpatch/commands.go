package swpatch

import (
	"context"
	"fmt"

	"github.com/starpatch/starpatch/internal/cli"
)

// command is one subcommand.
type command struct {
	name   string
	usage  string   // what follows the name on the usage line
	help   []string // paragraphs of its entry in the help; none: the entry is left out
	more   string   // what its own help says beyond that; may be empty
	flags  []string // options without a value
	valued []string // options with a value

	atLeast, atMost int  // words besides options; atMost < 0: any number
	files           bool // the words are files or folders, else names of patches and hosts
	everybody       bool
	uninterruptible bool
	later           bool // comes with a later version

	run func(context.Context, *session, cli.Options) error
}

// wants says what words the command takes.
func (c command) wants() string {
	switch {
	case c.atMost == 0:
		return "no arguments are expected"
	case c.atLeast > 0 && c.atLeast != c.atMost:
		return fmt.Sprintf("expected %s, with at least one argument", c.usage)
	}
	return fmt.Sprintf("expected %s", c.usage)
}

// listOfIDs follows the commands that take several patches.
const listOfIDs = "Patches are specified as a space-separated list of patch IDs."

// commands lists all subcommands, in the order of the help.
func commands() []command {
	return []command{
		{
			name: "upload", usage: "FILE...",
			help:    []string{"Upload one or more patches to the patching system."},
			more:    "Each file is named <patch ID>.patch. It is checked whole - integrity, signature, release, packages - before anything of it is kept.",
			atLeast: 1, atMost: -1, files: true, uninterruptible: true, run: upload,
		},
		{
			name: "upload-dir", usage: "DIR...",
			help:    []string{"Upload patches from one or more directories to the patching system."},
			more:    "Every *.patch file directly inside the directories is uploaded, as by upload. The directories are those of this machine.",
			atLeast: 1, atMost: -1, files: true, uninterruptible: true, run: uploadDir,
		},
		{
			name: "apply", usage: "ID... | --all [--release R]",
			help:  []string{"Apply one or more patches. This adds the specified patches to the repository, making the update(s) available to the hosts in the system. Use --all to apply all available patches.", listOfIDs},
			more:  "No host changes until host-install. --all takes the available patches of the running release; --release R takes those of release R, --release all those of every release.",
			flags: []string{"--all", "--skip-semantic"}, valued: []string{"--release"},
			atLeast: 0, atMost: -1, uninterruptible: true, run: apply,
		},
		{
			name: "remove", usage: "ID...",
			help:    []string{"Remove one or more patches. This removes the specified patches from the repository.", listOfIDs},
			more:    "No host changes until host-install. The patches stay in the patching system, as available.",
			flags:   []string{"--removeunremovable", "--skip-semantic", "--skipappcheck"},
			atLeast: 1, atMost: -1, uninterruptible: true, run: remove,
		},
		{
			name: "delete", usage: "ID...",
			help:    []string{"Delete one or more patches from the patching system.", listOfIDs},
			more:    "Only patches in state Available can be deleted: remove an applied one first and install on every host.",
			atLeast: 1, atMost: -1, uninterruptible: true, run: deletePatches,
		},
		{
			name: "query", usage: "[--release R] [all | applied | available | committed]",
			help:   []string{"Query system patches. Optionally, specify 'query applied' to query only those patches that are applied, or 'query available' to query those that are not."},
			more:   "RR is Y for a patch that needs a reboot. Patch State is what all hosts together report; n/a while no host is known.",
			valued: []string{"--release"},
			atMost: 1, everybody: true, run: query,
		},
		{
			name: "show", usage: "ID...",
			help:    []string{"Show details for specified patches."},
			atLeast: 1, atMost: -1, run: show,
		},
		{
			name: "what-requires", usage: "ID...",
			help:    []string{"List patches that require the specified patches."},
			atLeast: 1, atMost: -1, everybody: true, run: whatRequires,
		},
		{
			name: "query-hosts", usage: "",
			help:   []string{"Query patch states for hosts in the system."},
			more:   "Patch Current is Yes when the host has exactly what the repository wants, No when it does not, Pending until it has reported since the last apply or remove, and Failed when its last installation failed.",
			atMost: 0, everybody: true, run: queryHosts,
		},
		{
			name: "host-install", usage: "HOST [--force]",
			help:    []string{"Trigger patch install/remove on specified host. To force install on unlocked node, use the --force option."},
			more:    "Waits for the end of the installation and tells it. An interrupted wait leaves the installation running. Needs the controller's socket: the compatibility port has no operation to follow.",
			flags:   []string{"--force"},
			atLeast: 1, atMost: 1, run: hostInstall,
		},
		{
			name: "host-install-async", usage: "HOST [--force]",
			help:    []string{"Trigger patch install/remove on specified host. To force install on unlocked node, use the --force option. Note: This command returns immediately upon dispatching installation request."},
			flags:   []string{"--force"},
			atLeast: 1, atMost: 1, run: hostInstallAsync,
		},
		{
			name: "install-local", usage: "",
			help:  []string{"Trigger patch install/remove on the local host. This command can only be used for patch installation prior to initial configuration."},
			later: true,
		},
		{
			name: "drop-host", usage: "HOST",
			help:    []string{"Drop specified host from table."},
			more:    "The host comes back when its agent connects again.",
			atLeast: 1, atMost: 1, run: dropHost,
		},
		{
			name: "query-dependencies", usage: "ID... [--recursive]",
			help:    []string{"List dependencies for specified patch. Use --recursive for recursive query."},
			flags:   []string{"--recursive"},
			atLeast: 1, atMost: -1, run: queryDependencies,
		},
		{
			name: "is-applied", usage: "ID...",
			help:    []string{"Query Applied state for list of patches. Returns True if all are Applied, False otherwise."},
			more:    "Exits 0 for True and 1 for False. A committed patch is not Applied.",
			atLeast: 1, atMost: -1, run: isApplied,
		},
		{
			name: "is-available", usage: "ID...",
			help:    []string{"Query Available state for list of patches. Returns True if all are Available, False otherwise."},
			more:    "Exits 0 for True and 1 for False.",
			atLeast: 1, atMost: -1, run: isAvailable,
		},
		{
			name: "report-app-dependencies", usage: "--app NAME [ID...]",
			help:  []string{"Report application patch dependencies, specifying application name with --app option, plus a list of patches. Reported dependencies can be dropped by specifying app with no patch list."},
			later: true,
		},
		{
			name: "query-app-dependencies", usage: "",
			help:  []string{"Display set of reported application patch dependencies."},
			later: true,
		},
		{
			name: "commit", usage: "ID... | --all [--release R] [--dry-run]",
			help:  []string{"Commit patches to free disk space. WARNING: This action is irreversible!"},
			later: true,
		},
		{name: "init-release", usage: "R", later: true},
		{name: "del-release", usage: "R", later: true},
		{
			name: "log", usage: "OPERATION",
			more:    "Print what the package tools of a host said during an installation. host-install names the operation when it fails.",
			atLeast: 1, atMost: 1, run: operationLog,
		},
		{
			name: "completion", usage: "patches | hosts",
			more:    "Print all patch IDs on one line, or all host names one per line, for the completion of a shell.",
			atLeast: 1, atMost: 1, everybody: true, run: completion,
		},
	}
}
