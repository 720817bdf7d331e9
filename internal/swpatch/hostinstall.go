package swpatch

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/starpatch/starpatch/api"
	"github.com/starpatch/starpatch/client"
	"github.com/starpatch/starpatch/internal/cli"
	"github.com/starpatch/starpatch/problem"
)

// dotEvery is how often a waiting host-install shows a terminal that it is alive; the original's pace.
const dotEvery = 5 * time.Second

// hostInstall asks for an installation and follows it by its id, so that what it prints is the outcome of this very
// request and nothing else.
func hostInstall(ctx context.Context, s *session, o cli.Options) error {
	host := o.Words[0]
	op, err := s.ctl.InstallHost(ctx, host, o.Flags["--force"])
	if err != nil {
		return s.notStarted(host, err)
	}
	if s.debug {
		if err := s.printReply(); err != nil {
			return err
		}
	}
	dotted := false
	if s.Dots {
		op, err = s.watchWithDots(ctx, op.ID, &dotted)
	} else {
		op, err = s.ctl.WatchOperation(ctx, op.ID, nil)
	}
	if err != nil {
		if dotted {
			s.out.Line("")
		}
		return s.lost(host, err)
	}
	return s.outcome(op)
}

// notStarted explains a refused request. The refusals of the controller itself read as those of the compatible API.
func (s *session) notStarted(host string, err error) error {
	if s.onCompatPort(err) {
		return problem.Errorf(problem.NotSupported, "cannot follow an installation over the compatibility port: unset STARPATCH_URL to use the controller's socket, or use host-install-async %s and query-hosts", host)
	}
	if fromOwnAPI(err) {
		s.refused(sentence(err) + "\n")
		return errSaid
	}
	return err
}

// onCompatPort says that err is the answer of a port that does not have our own API.
func (s *session) onCompatPort(err error) bool {
	return s.Getenv("STARPATCH_URL") != "" && problem.KindOf(err) == problem.NotFound && !fromOwnAPI(err)
}

// fromOwnAPI says that the controller itself refused, in a problem document.
func fromOwnAPI(err error) bool {
	e, ok := errors.AsType[*client.StatusError](err)
	return ok && e.Status != 500 && problem.KindOf(err) != problem.Internal && err.Error() != e.Error()
}

// watchWithDots follows an operation and prints a dot for every change and for every five seconds without one.
func (s *session) watchWithDots(ctx context.Context, id string, dotted *bool) (api.Operation, error) {
	type end struct {
		op  api.Operation
		err error
	}
	changes, ended := make(chan bool), make(chan end, 1)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		op, err := s.ctl.WatchOperation(ctx, id, func(o api.Operation) {
			select {
			case changes <- o.Final():
			case <-ctx.Done():
			}
		})
		ended <- end{op, err}
	}()
	tick := time.NewTicker(dotEvery)
	defer tick.Stop()
	for {
		final := false
		select {
		case e := <-ended:
			return e.op, e.err
		case final = <-changes:
		case <-tick.C:
		}
		if final {
			continue
		}
		s.out.Text(".")
		*dotted = true
		if err := s.out.Flush(); err != nil {
			cancel()
			<-ended
			return api.Operation{ID: id}, err
		}
	}
}

// lost says why the wait ended before the installation did.
func (s *session) lost(host string, err error) error {
	switch {
	case errors.Is(err, context.Canceled):
		return problem.Errorf(problem.Unavailable, "interrupted; the installation on %s goes on: sw-patch query-hosts shows how it ends", host)
	case problem.KindOf(err) == problem.Unavailable:
		s.out.Line("Lost communications with the patch controller")
		if err := s.out.Flush(); err != nil {
			return err
		}
		s.complain("The installation on %s may go on. When the controller is back, sw-patch query-hosts shows how it ends.", host)
		return errSaid
	}
	return err
}

// restartPending stands before the names of services in the detail of an operation.
const restartPending = "restart pending: "

// outcome prints how an installation ended: the original's sentence on standard output, and on standard error what is
// known of the reason beyond it.
func (s *session) outcome(op api.Operation) error {
	said := ""
	switch op.State {
	case api.OperationDone:
		s.out.Line("\nInstallation was successful.")
		return nil
	case api.OperationFailed:
		said = "Installation failed. Please check logs for details."
	case api.OperationRejected:
		said = "Installation rejected. Node must be locked"
	case api.OperationRestartPending:
		_, services, found := strings.Cut(op.Detail, restartPending)
		if !found {
			services = op.Detail
		}
		s.out.Line("\nInstalled; %s%s", restartPending, services)
		return errSaid
	default: // of a controller newer than this program
		said = "Patch agent is reporting unknown state: " + op.State
	}
	s.out.Line("\n%s", said)
	if err := s.out.Flush(); err != nil {
		return err
	}
	if !strings.Contains(said, strings.TrimSuffix(op.Detail, ".")) {
		s.complain("Error: %s", op.Detail)
	}
	if op.State == api.OperationFailed {
		s.complain("What the package tools said: sw-patch log %s", op.ID)
	}
	return errSaid
}
