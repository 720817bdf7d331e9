package controllerd

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/starpatch/starpatch/internal/agentlink/pki"
	"github.com/starpatch/starpatch/internal/config"
	"github.com/starpatch/starpatch/internal/durable"
	"github.com/starpatch/starpatch/problem"
)

// Init prepares a machine to be a controller: configuration, folders and certificate authority. What is there already
// stays; w gets a line for everything that was made. It needs no running controller.
func Init(path string, w io.Writer) error {
	say := func(format string, args ...any) error {
		_, err := fmt.Fprintf(w, format+"\n", args...)
		return err
	}
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		if err := durable.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		text, err := config.Print(Defaults())
		if err != nil {
			return err
		}
		if err := durable.WriteFile(path, text, 0o644); err != nil {
			return err
		}
		if err := say("wrote the configuration %s", path); err != nil {
			return err
		}
	}
	cfg, err := LoadConfig(path)
	if err != nil {
		return err
	}
	for _, dir := range []struct {
		path string
		perm os.FileMode
	}{{cfg.DataDir, 0o700}, {cfg.FeedDir, 0o755}, {filepath.Join(cfg.TrustDir, "formal"), 0o755}, {filepath.Join(cfg.TrustDir, "dev"), 0o755}} {
		if _, err := os.Stat(dir.path); err == nil {
			continue
		}
		if err := durable.MkdirAll(dir.path, dir.perm); err != nil {
			return err
		}
		if err := say("made the folder %s", dir.path); err != nil {
			return err
		}
	}
	ca, err := pki.LoadCA(cfg.pkiDir())
	if err == nil {
		return say("kept the certificate authority %s", ca.Hash())
	}
	if problem.KindOf(err) != problem.NotFound {
		return err
	}
	if ca, err = pki.CreateCA(cfg.pkiDir(), time.Now()); err != nil {
		return err
	}
	return say("made the certificate authority %s", ca.Hash())
}
