// Package version is the version that the programs tell of themselves.
package version

// Version is set by the linker to what git describe says.
var Version = "unknown"
