// Package swpatch is the operator's command line of patching, sw-patch: what it accepts, what it asks the controller,
// and what it prints. Tables, texts and widths are the original's; what the original got wrong is put right as
// docs/compat.md says.
//
// A run that did what it was asked exits 0, every other one 1.
package swpatch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"

	"github.com/starpatch/starpatch/client"
	"github.com/starpatch/starpatch/internal/cli"
	"github.com/starpatch/starpatch/problem"
)

// Env is what one run sees of the world.
type Env struct {
	Args     []string // without the program's name
	Stdout   io.Writer
	Stderr   io.Writer
	Getenv   func(string) string
	UID      int    // effective user id: what is not 0 may only look
	Width    int    // of running text, in columns
	Dots     bool   // standard output is a terminal: waiting may show
	Progress int    // columns of the terminal that standard error is, for the bar of an upload; 0 if it is none
	Version  string // of the program

	// Uninterruptible is called before a command that must not be stopped half-way.
	Uninterruptible func()
}

// session is one run.
type session struct {
	Env
	out   *cli.Output
	ctl   *client.Client
	debug bool
	reply []byte // body of the last answer, for --debug
}

// usageError is a command line that is not understood; the help is printed with it.
type usageError struct{ reason string }

func (e *usageError) Error() string { return e.reason }

func usagef(format string, args ...any) error { return &usageError{fmt.Sprintf(format, args...)} }

// errSaid ends a run whose failure has been printed already.
var errSaid = errors.New("already said")

// Run carries out one command line and returns its exit code.
func Run(ctx context.Context, env Env) int {
	s := &session{Env: env, out: cli.NewOutput(env.Stdout)}
	return s.end(s.run(ctx))
}

// end says what a run failed with, if it did, and returns its exit code.
func (s *session) end(err error) int {
	if u, ok := errors.AsType[*usageError](err); ok {
		s.help()
		err = u
	}
	if werr := s.out.Flush(); werr != nil && (err == nil || errors.Is(err, errSaid)) {
		err = fmt.Errorf("cannot write the result: %w", werr)
	}
	switch {
	case err == nil:
		return 0
	case !errors.Is(err, errSaid):
		s.complain("Error: %s", sentence(err))
	}
	return 1
}

// complain writes one line to standard error. There is nowhere to say that this failed.
func (s *session) complain(format string, args ...any) {
	_, _ = io.WriteString(s.Stderr, cli.Visible(fmt.Sprintf(format, args...))+"\n")
}

func (s *session) run(ctx context.Context) error {
	args, err := s.globalOptions()
	if err != nil {
		return err
	}
	if len(args) == 0 {
		return usagef("no subcommand given")
	}
	name, args := args[0], args[1:]
	switch name {
	case "--help", "-h", "help":
		return s.helpFor(args)
	case "--version":
		s.out.Line("sw-patch %s", s.Version)
		return nil
	}
	i := slices.IndexFunc(commands(), func(c command) bool { return c.name == name })
	asksHelp := len(args) > 0 && (args[0] == "--help" || args[0] == "-h")
	if s.UID != 0 && !asksHelp && (i < 0 || !commands()[i].everybody) {
		s.complain("Error: Command must be run as sudo or root")
		return errSaid
	}
	if i < 0 {
		return usagef("%q is not a subcommand", name)
	}
	cmd := commands()[i]
	if asksHelp {
		return s.helpFor([]string{name})
	}
	if cmd.later {
		return problem.Errorf(problem.NotSupported, "%s is not available in this version yet; nothing was changed", name)
	}
	words, err := cli.ParseOptions(args, cmd.flags, cmd.valued)
	if err != nil {
		return usagef("%s: %s", name, err)
	}
	if slices.Contains(words.Words, "") {
		return usagef("%s: an empty word is no argument", name)
	}
	if n := len(words.Words); n < cmd.atLeast || cmd.atMost >= 0 && n > cmd.atMost {
		return usagef("%s: %s", name, cmd.wants())
	}
	if i := slices.IndexFunc(words.Words, func(w string) bool { return strings.Contains(w, "/") }); i >= 0 && !cmd.files {
		// In a URL it would be two names: "delete A/B" would delete both, "drop-host A/B" would drop A.
		return problem.Errorf(problem.Invalid, "%q is no name of a patch or host: it has a slash", words.Words[i])
	}
	if s.ctl, err = connect(s.Getenv); err != nil {
		return err
	}
	defer s.ctl.CloseIdle()
	s.ctl.Trace = func(body []byte) { s.reply = body }
	if cmd.uninterruptible {
		s.Uninterruptible()
	}
	return s.explain(cmd.run(ctx, s, words))
}

// globalOptions takes out what may stand anywhere on the line.
func (s *session) globalOptions() ([]string, error) {
	var args []string
	for i, a := range s.Args {
		switch {
		case a == "--":
			return append(args, s.Args[i:]...), nil
		case a == "--debug":
			s.debug = true
		case a == "--os-region-name" || strings.HasPrefix(a, "--os-region-name="):
			return nil, problem.Errorf(problem.NotSupported, "--os-region-name is not available in this version yet: sw-patch speaks to the controller of its own region only")
		default:
			args = append(args, a)
		}
	}
	return args, nil
}

// connect returns a client of the controller that the environment names: STARPATCH_URL, the token-less compatibility
// port, else the unix socket STARPATCH_SOCKET, else the default socket.
func connect(getenv func(string) string) (*client.Client, error) {
	if u := getenv("STARPATCH_URL"); u != "" {
		if !strings.HasPrefix(u, "http://") {
			return nil, problem.Errorf(problem.Invalid, "cannot use STARPATCH_URL=%s: expected the address of a compatibility port, like http://127.0.0.1:5487", u)
		}
		return client.New(u, nil), nil
	}
	return client.Unix(socket(getenv)), nil
}

func socket(getenv func(string) string) string {
	if path := getenv("STARPATCH_SOCKET"); path != "" {
		return path
	}
	return client.DefaultSocket
}

// where names the controller that this run speaks to, and says how to name another.
func (s *session) where() (place, hint string) {
	if u := s.Getenv("STARPATCH_URL"); u != "" {
		return u, "check that a controller runs there with compat-loopback on, or that STARPATCH_URL is right"
	}
	return socket(s.Getenv), "check that sw-patch-controller runs on this machine, or set STARPATCH_SOCKET to its socket"
}

// explain turns what the client reports into what an operator can act on.
func (s *session) explain(err error) error {
	if err == nil || errors.Is(err, errSaid) {
		return err
	}
	place, hint := s.where()
	status, answered := errors.AsType[*client.StatusError](err)
	op, network := errors.AsType[*net.OpError](err)
	switch {
	case errors.Is(err, context.Canceled):
		return errors.New("interrupted")
	case answered && status.Status == http.StatusInternalServerError:
		s.out.Line("An internal error has occurred. Please check /var/log/patching.log for details")
		return problem.Errorf(problem.Internal, "the patch controller at %s answered: %s; its log has the rest", place, sentence(err))
	case network && op.Op == "dial":
		return problem.Errorf(problem.Unavailable, "cannot reach the patch controller at %s: %v; %s", place, plain(op.Err), hint)
	case network || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
		return problem.Errorf(problem.Unavailable, "lost the connection to the patch controller at %s before it answered; sw-patch query and query-hosts show what was done", place)
	}
	return err
}

// plain takes the name of the system call off an error.
func plain(err error) error {
	if e, ok := errors.AsType[*os.SyscallError](err); ok {
		return e.Err
	}
	return err
}

// sentence is err for the operator. An error that nobody meant for operators is shown all the same: it is all there is.
func sentence(err error) string { return strings.TrimRight(err.Error(), "\n") }
