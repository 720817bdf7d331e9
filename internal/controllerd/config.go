package controllerd

import (
	"bufio"
	"cmp"
	"errors"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/starpatch/starpatch/client"
	"github.com/starpatch/starpatch/host"
	"github.com/starpatch/starpatch/internal/config"
	"github.com/starpatch/starpatch/internal/controller"
	"github.com/starpatch/starpatch/patch"
	"github.com/starpatch/starpatch/patch/patchfile"
	"github.com/starpatch/starpatch/problem"
)

// The default places and ports. The ports are StarlingX's where it has one.
const (
	DefaultConfig  = "/etc/starpatch/controller.yaml"
	defaultDataDir = "/var/lib/starpatch/controller"
	defaultMarker  = "/etc/pki/wrs/dev_certificate_enable.bin"

	compatPort     = 5487
	linkPort       = 5489
	repositoryPort = 8443
)

// Config is the configuration file of a controller. Every key is optional.
type Config struct {
	DataDir         string `yaml:"data-dir"`          // state, blobs, repositories, certificates
	Socket          string `yaml:"socket"`            // unix socket for local command lines
	Address         string `yaml:"address"`           // IP address of all TLS listeners; empty: every address
	PortOffset      int    `yaml:"port-offset"`       // added to every default port
	Name            string `yaml:"name"`              // host name of this controller; empty: the machine's
	Release         string `yaml:"release"`           // running software release; empty: SW_VERSION of etc/build.info below root
	Root            string `yaml:"root"`              // root folder of this host
	FeedDir         string `yaml:"feed-dir"`          // base packages, one rel-R per release; empty: feed below data-dir
	TrustDir        string `yaml:"trust-dir"`         // formal/ and dev/ with public keys; empty: trust below data-dir
	AcceptDevSigned bool   `yaml:"accept-dev-signed"` // developer keys count
	DevMarker       string `yaml:"dev-marker"`        // developer keys count if a formal key signed this file
	AcceptPKCS1v15  bool   `yaml:"accept-pkcs1v15"`   // signatures with the older padding count
	CompatLoopback  bool   `yaml:"compat-loopback"`   // open the original's port to everybody on this machine
	CompatAddress   string `yaml:"compat-address"`    // where; empty: 127.0.0.1:5487 plus port-offset
	LogLevel        string `yaml:"log-level"`         // debug, info, warn or error
	Limits          Limits `yaml:"limits"`
}

// Limits bound what is accepted. A zero means the default.
type Limits struct {
	PatchSize  int64 `yaml:"patch-size"`  // bytes of an unpacked patch file; default 8 GiB
	Members    int   `yaml:"members"`     // members of a patch file; default 10,000
	Ratio      int64 `yaml:"ratio"`       // unpacked bytes per packed byte; default 200
	SpareSpace int64 `yaml:"spare-space"` // bytes of the disk that uploads leave free; default 256 MiB
	Operations int   `yaml:"operations"`  // kept per host; default 5
}

// Defaults is the configuration without a file.
func Defaults() Config {
	return Config{DataDir: defaultDataDir, Socket: client.DefaultSocket, Root: "/", DevMarker: defaultMarker, LogLevel: "info", Limits: Limits{}.withDefaults()}
}

// LoadConfig reads a configuration file over the defaults and fills in what follows from others.
func LoadConfig(path string) (Config, error) {
	c := Defaults()
	err := config.Load(path, &c)
	if problem.KindOf(err) == problem.NotFound {
		return Config{}, problem.Errorf(problem.NotFound, "%w; sw-patch-controller init writes one", err)
	}
	if err != nil {
		return Config{}, err
	}
	return c.complete()
}

// complete fills in what is empty and refuses what cannot be.
func (c Config) complete() (Config, error) {
	for _, p := range []struct {
		key   string
		value *string
		def   string
	}{{"data-dir", &c.DataDir, defaultDataDir}, {"socket", &c.Socket, client.DefaultSocket}, {"root", &c.Root, "/"},
		{"feed-dir", &c.FeedDir, filepath.Join(c.DataDir, "feed")}, {"trust-dir", &c.TrustDir, filepath.Join(c.DataDir, "trust")}} {
		if *p.value == "" {
			*p.value = p.def
		}
		if !filepath.IsAbs(*p.value) {
			return c, problem.Errorf(problem.Invalid, "%s must be an absolute path, not %q", p.key, *p.value)
		}
	}
	if c.Name == "" {
		name, err := os.Hostname()
		if err != nil {
			return c, err
		}
		c.Name, _, _ = strings.Cut(strings.ToLower(name), ".")
	}
	if err := host.CheckName(c.Name); err != nil {
		return c, problem.Errorf(problem.Invalid, "name: %w", err)
	}
	if c.Address != "" {
		if _, err := netip.ParseAddr(c.Address); err != nil {
			return c, problem.Errorf(problem.Invalid, "address must be an IP address, not %q", c.Address)
		}
	}
	if c.PortOffset < 0 || c.PortOffset > 65535-repositoryPort {
		return c, problem.Errorf(problem.Invalid, "port-offset must be from 0 to %d, not %d", 65535-repositoryPort, c.PortOffset)
	}
	if c.CompatAddress == "" {
		c.CompatAddress = net.JoinHostPort("127.0.0.1", strconv.Itoa(compatPort+c.PortOffset))
	}
	if a, err := netip.ParseAddrPort(c.CompatAddress); err != nil || !a.Addr().IsLoopback() {
		return c, problem.Errorf(problem.Invalid, "compat-address must be a loopback address with a port, not %q: whoever reaches it may do everything", c.CompatAddress)
	}
	if c.Release == "" {
		release, err := buildRelease(c.Root)
		if err != nil {
			return c, err
		}
		c.Release = release
	}
	if _, err := patch.ParseRelease(c.Release); err != nil {
		return c, err
	}
	if l := c.Limits; l.PatchSize < 0 || l.Members < 0 || l.Ratio < 0 || l.SpareSpace < 0 || l.Operations < 0 {
		return c, problem.Errorf(problem.Invalid, "limits must not be negative")
	}
	c.Limits = c.Limits.withDefaults()
	return c, nil
}

// buildRelease is SW_VERSION of a host's build.info.
func buildRelease(root string) (string, error) {
	path := filepath.Join(root, "etc/build.info")
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", problem.Errorf(problem.Invalid, "the running release is not known: %s does not exist; set release in the configuration", path)
	}
	if err != nil {
		return "", err
	}
	defer f.Close() // only read from
	s := bufio.NewScanner(f)
	for s.Scan() {
		if v, ok := strings.CutPrefix(strings.TrimSpace(s.Text()), "SW_VERSION="); ok {
			return strings.Trim(v, `"'`), s.Err()
		}
	}
	if err := s.Err(); err != nil {
		return "", err
	}
	return "", problem.Errorf(problem.Invalid, "the running release is not known: %s has no SW_VERSION; set release in the configuration", path)
}

// port is a listener's address for one of the default ports.
func (c Config) port(p int) string { return net.JoinHostPort(c.Address, strconv.Itoa(p+c.PortOffset)) }

func (c Config) stateDir() string   { return filepath.Join(c.DataDir, "state") }
func (c Config) blobDir() string    { return filepath.Join(c.DataDir, "blobs") }
func (c Config) updatesDir() string { return filepath.Join(c.DataDir, "updates") }
func (c Config) journalDir() string { return filepath.Join(c.DataDir, "journal") }
func (c Config) pkiDir() string     { return filepath.Join(c.DataDir, "pki") }

func (l Limits) withDefaults() Limits {
	f := l.patchfile().WithDefaults()
	return Limits{
		PatchSize: f.Size, Members: f.Members, Ratio: f.Ratio,
		SpareSpace: cmp.Or(l.SpareSpace, controller.DefaultSpareSpace), Operations: cmp.Or(l.Operations, controller.DefaultOperations),
	}
}

func (l Limits) patchfile() patchfile.Limits {
	return patchfile.Limits{Size: l.PatchSize, Members: l.Members, Ratio: l.Ratio}
}

// maxUpload is the largest body of an upload request, in bytes: a patch file is never larger than what is in it, but for
// the little that packing and the form add.
func (c Config) maxUpload() int64 {
	size := c.Limits.withDefaults().PatchSize
	return size + size/64 + 1<<20
}
