// Package e2e drives the real binaries on real hosts: every test starts a lab of its own, speaks to it as an operator
// does, and asks rpm, not us, what is installed. It has no code of its own outside its tests.
package e2e
