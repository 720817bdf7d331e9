package agent

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/starpatch/starpatch/host"
	"github.com/starpatch/starpatch/internal/agentlink"
	"github.com/starpatch/starpatch/internal/durable"
	"github.com/starpatch/starpatch/internal/installer"
	"github.com/starpatch/starpatch/internal/repo/repodata"
	"github.com/starpatch/starpatch/internal/rpm"
	"github.com/starpatch/starpatch/problem"
)

// metadataTimeout bounds the reading of all metadata of a generation.
const metadataTimeout = 2 * time.Minute

// generation is what the repositories say at one revision, as far as this host needs it. It is kept in a file, not in
// memory, because an agent is idle nearly always.
type generation struct {
	Format       int         `json:"format"`
	Release      string      `json:"release"`
	Revision     int64       `json:"revision"`
	RepomdSHA256 string      `json:"repomd_sha256"`
	BaseSHA256   string      `json:"base_sha256"` // of the base repository's repomd.xml
	Group        string      `json:"group"`       // id of this host's group
	Base         []available `json:"base"`
	Updates      []available `json:"updates"`
	Names        []string    `json:"names"` // packages of the group
	Brought      []rpm.NEVRA `json:"brought"`
}

// available is one package of a repository and where to find it.
type available struct {
	rpm.NEVRA
	Location string `json:"location"`
	SHA256   string `json:"sha256"`
	Size     int64  `json:"size"`
}

func packagesOf(m repodata.Metadata) []available {
	out := make([]available, len(m.Packages))
	for i, p := range m.Packages {
		out[i] = available{p.NEVRA, p.Location, p.SHA256, p.Size}
	}
	return out
}

func builds(list []available) []rpm.NEVRA {
	out := make([]rpm.NEVRA, len(list))
	for i, p := range list {
		out[i] = p.NEVRA
	}
	return out
}

// want is what the pure plan needs of a generation.
func (g generation) want(installed []rpm.NEVRA, arch string) host.Want {
	return host.Want{Installed: installed, Base: builds(g.Base), Updates: builds(g.Updates), Group: g.Names, Brought: g.Brought, Arch: arch}
}

// find returns the package file of a build and the URL of its repository.
func (g generation) find(n rpm.NEVRA, at urls) (available, string, bool) {
	for _, r := range []struct {
		list []available
		url  string
	}{{g.Updates, at.updates}, {g.Base, at.base}} {
		if i := slices.IndexFunc(r.list, func(p available) bool { return p.NEVRA == n }); i >= 0 {
			return r.list[i], r.url, true
		}
	}
	return available{}, "", false
}

// urls are where the two repositories of a generation are.
type urls struct{ base, updates string }

func urlsOf(repository, release string, revision int64) urls {
	return urls{
		base:    repository + "/feed/rel-" + release,
		updates: repository + "/updates/rel-" + release + "/" + strconv.FormatInt(revision, 10),
	}
}

// fetcher reads repositories over HTTPS with the host's certificate and keeps what it learned of one generation.
type fetcher struct {
	http *http.Client
	dir  string // own folder
}

func newFetcher(dir string, tlsConfig *tls.Config, dial agentlink.Dialer) (*fetcher, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	if err := durable.Sweep(dir); err != nil {
		return nil, err
	}
	t := &http.Transport{TLSClientConfig: tlsConfig, IdleConnTimeout: 10 * time.Second, ResponseHeaderTimeout: 30 * time.Second, ForceAttemptHTTP2: false}
	if dial != nil {
		t.DialContext = func(ctx context.Context, _, address string) (net.Conn, error) { return dial(ctx, address) }
	}
	return &fetcher{http: &http.Client{Transport: t}, dir: dir}, nil
}

func (f *fetcher) file() string { return filepath.Join(f.dir, "generation.json") }

// open requests one file.
func (f *fetcher) open(ctx context.Context, url string) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	res, err := f.http.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, unreachable("cannot reach the package repository: %v", err)
	}
	if res.StatusCode != http.StatusOK {
		return nil, errors.Join(problem.Errorf(problem.Unavailable, "the package repository answers %s to %s", res.Status, url), res.Body.Close())
	}
	return body{res.Body}, nil
}

// unreachable makes the error of a repository that did not answer, or not to the end; another try may do better.
func unreachable(format string, args ...any) error {
	return &problem.Error{Kind: problem.Unavailable, Msg: fmt.Sprintf(format, args...), Err: installer.ErrUnreachable}
}

// body is what a repository sends. A connection that breaks in the middle of it is told from damaged content.
type body struct{ io.ReadCloser }

func (b body) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil && err != io.EOF {
		err = unreachable("lost the connection to the package repository: %v", err)
	}
	return n, err
}

func (f *fetcher) from(base string) repodata.Fetch {
	return func(ctx context.Context, location string) (io.ReadCloser, error) {
		return f.open(ctx, base+"/"+location)
	}
}

// load returns the generation that d names. What is unchanged since the last time is not fetched again; the base
// repository is always asked whether it is.
func (f *fetcher) load(ctx context.Context, d agentlink.Desired, at urls, group string) (generation, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, metadataTimeout, unreachable("the package repository did not send its metadata within %s", metadataTimeout))
	defer cancel()
	defer f.http.CloseIdleConnections()
	g, kept := f.kept(d, group)
	base, err := f.baseSum(ctx, at.base)
	if err != nil {
		return generation{}, err
	}
	if kept && g.BaseSHA256 == base {
		return g, nil
	}
	g = generation{Format: format, Release: d.Release, Revision: d.Revision, RepomdSHA256: d.RepomdSHA256, BaseSHA256: base, Group: group}
	m, err := repodata.Load(ctx, f.from(at.base), base)
	if err != nil {
		return generation{}, fmt.Errorf("cannot read the base repository: %w", err)
	}
	g.Base = packagesOf(m)
	if m, err = repodata.Load(ctx, f.from(at.updates), d.RepomdSHA256); err != nil {
		return generation{}, fmt.Errorf("cannot read generation %d of the update repository: %w", d.Revision, err)
	}
	g.Updates, g.Names, g.Brought = packagesOf(m), m.Groups[group], m.Brought
	return g, save(f.file(), g)
}

// kept returns what the file knows, if it is about the generation that d names.
func (f *fetcher) kept(d agentlink.Desired, group string) (generation, bool) {
	var g generation
	ok, err := load(f.file(), &g, func() int { return g.Format })
	// A file that cannot be read is as good as none: it is made again.
	return g, err == nil && ok && g.Release == d.Release && g.Revision == d.Revision && g.RepomdSHA256 == d.RepomdSHA256 && g.Group == group
}

func (f *fetcher) baseSum(ctx context.Context, base string) (sum string, err error) {
	r, err := f.open(ctx, base+"/"+repodata.RepomdPath)
	if err != nil {
		return "", fmt.Errorf("cannot read the base repository: %w", err)
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	h := sha256.New()
	if _, err := io.Copy(h, io.LimitReader(r, repodata.MaxRepomd)); err != nil {
		return "", fmt.Errorf("cannot read the base repository: %w", err)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// fetchPackage downloads one package file into the folder, checked against its metadata, and returns its path.
func (f *fetcher) fetchPackage(ctx context.Context, p available, base string) (path string, err error) {
	defer f.http.CloseIdleConnections()
	r, err := f.open(ctx, base+"/"+p.Location)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	path = filepath.Join(f.dir, p.FileName())
	out, err := durable.Create(path, 0o600)
	if err != nil {
		return "", err
	}
	h := sha256.New()
	if _, err := io.Copy(io.MultiWriter(out, h), io.LimitReader(r, p.Size+1)); err != nil {
		return "", errors.Join(fmt.Errorf("cannot download %s: %w", p.FileName(), err), out.Abort())
	}
	if got := hex.EncodeToString(h.Sum(nil)); p.SHA256 == "" || got != p.SHA256 {
		return "", errors.Join(problem.Errorf(problem.Unavailable, "cannot use the downloaded %s: its SHA-256 is %s, expected %s", p.FileName(), got, p.SHA256), out.Abort())
	}
	return path, out.Commit()
}

// clean removes downloaded package files.
func (f *fetcher) clean() error {
	files, err := filepath.Glob(filepath.Join(f.dir, "*.rpm"))
	for _, p := range files {
		err = errors.Join(err, os.Remove(p))
	}
	return err
}
