// Package bench measures the real programs beside baseline.py, which does the same work in the plainest way: Debian's
// python3 with tarfile, hashlib and gzip at level 9, one step after the other. The figures of a run, and how they are read,
// are in docs/perf.md.
package bench
