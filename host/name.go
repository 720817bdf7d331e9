package host

import "github.com/starpatch/starpatch/problem"

// MaxName is the longest host name, in bytes: the limit of a certificate's common name and of a DNS label.
const MaxName = 63

// CheckName refuses what cannot be a host's name. Names are used in file names, store keys and certificates, so they are
// lower-case letters, digits and dashes, and start and end with a letter or digit.
func CheckName(name string) error {
	ok := name != "" && len(name) <= MaxName && name[0] != '-' && name[len(name)-1] != '-'
	for _, c := range []byte(name) {
		ok = ok && (c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-')
	}
	if !ok {
		return problem.Errorf(problem.Invalid, "%q is not a host name; expected at most %d lower-case letters, digits and dashes, with a letter or digit first and last", name, MaxName)
	}
	return nil
}
