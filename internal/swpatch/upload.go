package swpatch

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/schollz/progressbar/v3"

	"github.com/starpatch/starpatch/api"
	"github.com/starpatch/starpatch/internal/cli"
	"github.com/starpatch/starpatch/problem"
)

// upload sends files one by one, sorted, and prints each answer. A file that cannot be sent fails the run but stops no
// other, unless the controller is gone.
func upload(ctx context.Context, s *session, o cli.Options) error {
	var failed error
	for _, path := range slices.Sorted(slices.Values(o.Words)) {
		m, err := s.send(ctx, path)
		if err == nil {
			err = s.messages(m)
		}
		if failed, err = s.carryOn(failed, err); err != nil {
			return err
		}
		if err := s.out.Flush(); err != nil {
			return err
		}
	}
	return failed
}

// uploadDir sends every patch file of the folders and prints what all answers together say, as the original does, whose
// controller read the folders itself.
func uploadDir(ctx context.Context, s *session, o cli.Options) error {
	var all api.Messages
	var failed error
	sent := 0
	for _, dir := range slices.Compact(slices.Sorted(slices.Values(o.Words))) {
		files, err := patchFiles(dir)
		if err != nil {
			s.out.Line("Error: %s", err)
			failed = errSaid
			continue
		}
		for _, path := range files {
			m, err := s.send(ctx, path)
			if err == nil && m.Error != "" {
				err = errSaid
			}
			sent++
			all.Info, all.Warning, all.Error = all.Info+m.Info, all.Warning+m.Warning, all.Error+m.Error
			if failed, err = s.carryOn(failed, err); err != nil {
				s.texts(all)
				return err
			}
		}
	}
	switch {
	case sent == 0 && failed == nil:
		s.refused("No patches found: there is no *.patch file directly in " + strings.Join(o.Words, ", "))
		failed = errSaid
	case s.debug:
		text, err := messagesJSON(all)
		if err != nil {
			return err
		}
		s.out.Line("%s", text)
	default:
		s.texts(all)
	}
	return failed
}

// carryOn decides what a failure of one file means for the others: without a controller the run ends with err, else the
// failure is printed and kept.
func (s *session) carryOn(failed, err error) (kept, end error) {
	switch {
	case err == nil:
		return failed, nil
	case problem.KindOf(err) == problem.Unavailable || errors.Is(err, context.Canceled):
		return failed, err
	}
	if err = s.explain(err); !errors.Is(err, errSaid) {
		s.out.Line("Error: %s", sentence(err))
	}
	return errSaid, nil
}

// patchFiles lists the patch files directly in dir, sorted.
func patchFiles(dir string) ([]string, error) {
	info, err := os.Stat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, problem.Errorf(problem.NotFound, "Directory does not exist: %s", dir)
	case err != nil:
		return nil, problem.Errorf(problem.Invalid, "cannot read %s: %v", dir, cause(err))
	case !info.IsDir():
		return nil, problem.Errorf(problem.Invalid, "%s is not a directory. Please use upload", dir)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, problem.Errorf(problem.Invalid, "cannot read %s: %v", dir, cause(err))
	}
	var files []string
	for _, e := range entries {
		if name := e.Name(); strings.HasSuffix(name, ".patch") && !strings.HasPrefix(name, ".") {
			files = append(files, filepath.Join(dir, name))
		}
	}
	return files, nil
}

// cause is the last part of an error of package os, without the path that the sentence names already.
func cause(err error) error {
	if e, ok := errors.AsType[*fs.PathError](err); ok {
		return e.Err
	}
	return err
}

// The progress bar of an upload.
const (
	barEvery   = 50 * time.Millisecond // how often it is drawn at most
	barWidth   = 20                    // of the bar itself, in columns
	barLeast   = 5                     // the same in a narrow terminal
	barFrame   = 11                    // what stands beside name and bar: per cent, strokes, blanks
	barDetails = 36                    // amounts, speed and times, at their longest
)

// bar makes the progress bar of one file. It never fills the terminal's line: a bar that wraps cannot be overwritten.
// What has no room is left out, the details first.
func (s *session) bar(name string, size int64) *progressbar.ProgressBar {
	runes := []rune(name)
	room := s.Progress - barFrame - len(runes) - barDetails
	details := room >= barLeast
	if !details {
		room = max(s.Progress-barFrame-len(runes), barLeast)
		runes = runes[:min(len(runes), max(s.Progress-barFrame-barLeast, 0))]
	}
	return progressbar.NewOptions64(size,
		progressbar.OptionSetWriter(s.Stderr),
		progressbar.OptionSetDescription(cli.Visible(string(runes))),
		progressbar.OptionShowBytes(details),
		progressbar.OptionSetElapsedTime(details),
		progressbar.OptionSetPredictTime(details),
		progressbar.OptionSetRenderBlankState(true),
		progressbar.OptionThrottle(barEvery),
		progressbar.OptionUseIECUnits(true),
		progressbar.OptionSetWidth(min(room, barWidth)),
		progressbar.OptionClearOnFinish(),
		func(b *progressbar.ProgressBar) {
			if details {
				progressbar.OptionShowCount()(b)
			}
		},
	)
}

// send uploads one file under its name as typed. Standard error shows how far it is if it is a terminal.
func (s *session) send(ctx context.Context, path string) (api.Messages, error) {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return api.Messages{}, problem.Errorf(problem.NotFound, "File does not exist: %s", path)
	case err != nil:
		return api.Messages{}, problem.Errorf(problem.Invalid, "cannot read %s: %v", path, cause(err))
	case info.IsDir():
		return api.Messages{}, problem.Errorf(problem.Invalid, "%s is a directory. Please use upload-dir", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return api.Messages{}, problem.Errorf(problem.Invalid, "cannot read %s: %v", path, cause(err))
	}
	defer f.Close() // only read
	if s.Progress == 0 {
		return s.ctl.Upload(ctx, path, f, nil)
	}
	bar := s.bar(filepath.Base(path), info.Size())
	m, err := s.ctl.Upload(ctx, path, f, func(sent int64) {
		_ = bar.Set64(sent) // a bar that cannot be drawn must not stop an upload
	})
	_ = bar.Finish() // the same
	return m, err
}
