package cli

import (
	"slices"
	"strings"

	"github.com/starpatch/starpatch/problem"
)

// Options are the words of a command line, taken apart.
type Options struct {
	Words  []string          // what is not an option, in order
	Flags  map[string]bool   // options without a value that were given
	Values map[string]string // options with a value that were given; the last one counts
}

// ParseOptions takes args apart. Options may stand anywhere; --name VALUE and --name=VALUE mean the same; what follows
// -- is no option. flags and valued are the names that are known, with their dashes; any other option is refused.
func ParseOptions(args []string, flags, valued []string) (Options, error) {
	o := Options{Flags: map[string]bool{}, Values: map[string]string{}}
	for i := 0; i < len(args); i++ {
		a := args[i]
		if a == "--" {
			o.Words = append(o.Words, args[i+1:]...)
			break
		}
		if len(a) < 2 || a[0] != '-' {
			o.Words = append(o.Words, a)
			continue
		}
		name, value, given := strings.Cut(a, "=")
		switch {
		case slices.Contains(flags, name) && given:
			return o, problem.Errorf(problem.Invalid, "option %s takes no value", name)
		case slices.Contains(flags, name):
			o.Flags[name] = true
		case slices.Contains(valued, name):
			if !given {
				if i+1 == len(args) {
					return o, problem.Errorf(problem.Invalid, "option %s needs a value", name)
				}
				i++
				value = args[i]
			}
			if value == "" {
				return o, problem.Errorf(problem.Invalid, "option %s needs a value", name)
			}
			o.Values[name] = value
		default:
			known := slices.Concat(flags, valued)
			if len(known) == 0 {
				return o, problem.Errorf(problem.Invalid, "%s is not an option here; there are none", a)
			}
			return o, problem.Errorf(problem.Invalid, "%s is not an option here; known: %s", a, strings.Join(known, ", "))
		}
	}
	return o, nil
}
