// Package repodata reads and makes the metadata of a package repository: repomd.xml and what it names (primary, groups,
// advisories, and our list of packages that patches ever brought). Reading works over an injected fetch function,
// verifies every file against repomd.xml, and caps what it takes; the agent and the base feed use it. Making runs
// createrepo_c and adds what that does not know.
package repodata

import (
	"cmp"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/klauspost/compress/zstd"

	"github.com/starpatch/starpatch/host"
	"github.com/starpatch/starpatch/internal/rpm"
	"github.com/starpatch/starpatch/problem"
)

// RepomdPath is where repomd.xml lies below the root of a repository.
const RepomdPath = "repodata/repomd.xml"

// The record types that we read or write.
const (
	TypePrimary    = "primary"
	TypeGroups     = "group"
	TypeUpdateInfo = "updateinfo"
	TypeBrought    = "brought" // ours: every package that any applied patch of the release ever brought
)

// Caps on what is read, in bytes of uncompressed text, and in packages. They are far above any real repository.
const (
	MaxRepomd   = 1 << 20
	MaxPrimary  = 512 << 20
	MaxGroups   = 4 << 20
	MaxBrought  = 8 << 20
	MaxPackages = 200_000
)

// ErrChecksum is the cause when a file is not the one that repomd.xml (or the controller, for repomd.xml) names: the
// repository was replaced meanwhile, or somebody tampered with it.
var ErrChecksum = errors.New("checksum does not match")

// Repomd is the content of repomd.xml.
type Repomd struct {
	Revision int64    // the generation; for other repositories often a time; 0 if it is not a number
	Records  []Record // in order of the file
}

// Record is one file that repomd.xml names.
type Record struct {
	Type     string
	Location string // below the root of the repository
	SHA256   string // of the file as it lies there, lower-case hexadecimal
	Size     int64  // bytes; 0: not stated
}

// Record returns the first record of a type.
func (r Repomd) Record(typ string) (Record, bool) {
	i := slices.IndexFunc(r.Records, func(rec Record) bool { return rec.Type == typ })
	if i < 0 {
		return Record{}, false
	}
	return r.Records[i], true
}

// Package is one package of a repository.
type Package struct {
	rpm.NEVRA
	Location string // below the root of the repository
	SHA256   string // lower-case hexadecimal; empty if the repository uses another kind of checksum
	Size     int64  // bytes
}

// Metadata is everything of a repository that patching needs.
type Metadata struct {
	Revision int64
	SHA256   string              // of repomd.xml
	Packages []Package           // sorted; a repository may hold several versions of one package
	Groups   map[string][]string // group id to the names of its mandatory packages, sorted
	Brought  []rpm.NEVRA         // sorted; only update repositories have it
}

// Fetch opens the file at a location below the root of a repository. The reader may be compressed; it is closed once.
type Fetch func(ctx context.Context, location string) (io.ReadCloser, error)

// Load reads a repository. A non-empty repomdSHA256 pins repomd.xml and through it everything that is returned.
// Absent groups and an absent list of brought packages are empty.
func Load(ctx context.Context, fetch Fetch, repomdSHA256 string) (Metadata, error) {
	raw, err := fetchAll(ctx, fetch, RepomdPath, MaxRepomd)
	if err != nil {
		return Metadata{}, err
	}
	m := Metadata{SHA256: sum(raw)}
	if repomdSHA256 != "" && m.SHA256 != repomdSHA256 {
		return Metadata{}, mismatch(RepomdPath, repomdSHA256, m.SHA256)
	}
	md, err := ParseRepomd(strings.NewReader(string(raw)))
	if err != nil {
		return Metadata{}, err
	}
	m.Revision = md.Revision
	rec, ok := md.Record(TypePrimary)
	if !ok {
		return Metadata{}, problem.Errorf(problem.Invalid, "cannot read the repository: its repomd.xml names no primary metadata")
	}
	if err := read(ctx, fetch, rec, MaxPrimary, func(r io.Reader) (err error) {
		m.Packages, err = ParsePrimary(r)
		return err
	}); err != nil {
		return Metadata{}, err
	}
	if rec, ok := md.Record(TypeGroups); ok {
		if err := read(ctx, fetch, rec, MaxGroups, func(r io.Reader) (err error) {
			m.Groups, err = ParseGroups(r)
			return err
		}); err != nil {
			return Metadata{}, err
		}
	}
	if rec, ok := md.Record(TypeBrought); ok {
		if err := read(ctx, fetch, rec, MaxBrought, func(r io.Reader) (err error) {
			m.Brought, err = ParseBrought(r)
			return err
		}); err != nil {
			return Metadata{}, err
		}
	}
	return m, nil
}

func fetchAll(ctx context.Context, fetch Fetch, location string, limit int64) ([]byte, error) {
	f, err := fetch(ctx, location)
	if err != nil {
		return nil, fmt.Errorf("cannot fetch %s: %w", location, err)
	}
	raw, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("cannot fetch %s: %w", location, err)
	}
	if int64(len(raw)) > limit {
		return nil, tooLarge(location, limit)
	}
	return raw, nil
}

// read parses the file of a record while hashing it; what parse stored counts only if read returns no error.
func read(ctx context.Context, fetch Fetch, rec Record, limit int64, parse func(io.Reader) error) (err error) {
	f, err := fetch(ctx, rec.Location)
	if err != nil {
		return fmt.Errorf("cannot fetch %s: %w", rec.Location, err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	most := limit
	if rec.Size > 0 && rec.Size < limit {
		most = rec.Size
	}
	hash := sha256.New()
	raw := io.TeeReader(&capped{r: f, left: most, err: tooLarge(rec.Location, most)}, hash)
	parseErr := func() error {
		open, err := decompress(rec.Location, raw)
		if err != nil {
			return err
		}
		return errors.Join(parse(&capped{r: open, left: limit, err: tooLarge(rec.Location, limit)}), open.Close())
	}()
	// What does not parse is most often not the right file, and that says more: so hash all of it first.
	if _, err := io.Copy(io.Discard, raw); err != nil {
		return fmt.Errorf("cannot read %s: %w", rec.Location, err)
	}
	if got := hex.EncodeToString(hash.Sum(nil)); got != rec.SHA256 {
		return mismatch(rec.Location, rec.SHA256, got)
	}
	if parseErr != nil {
		return fmt.Errorf("cannot read %s: %w", rec.Location, parseErr)
	}
	return nil
}

func decompress(location string, r io.Reader) (io.ReadCloser, error) {
	switch {
	case strings.HasSuffix(location, ".gz"):
		z, err := gzip.NewReader(r)
		if err != nil {
			return nil, err
		}
		return z, nil
	case strings.HasSuffix(location, ".zst"):
		z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(64<<20))
		if err != nil {
			return nil, err
		}
		return z.IOReadCloser(), nil
	case strings.HasSuffix(location, ".xml"), strings.HasSuffix(location, ".json"):
		return io.NopCloser(r), nil
	}
	return nil, problem.Errorf(problem.NotSupported, "metadata may be plain, .gz or .zst, not %s; make the repository again with createrepo_c", path.Ext(location))
}

// ParseRepomd reads repomd.xml. Records without a SHA-256 checksum or with an unsafe location are refused.
func ParseRepomd(r io.Reader) (Repomd, error) {
	var doc struct {
		XMLName  xml.Name `xml:"repomd"`
		Revision string   `xml:"revision"`
		Data     []struct {
			Type     string `xml:"type,attr"`
			Checksum struct {
				Type string `xml:"type,attr"`
				Sum  string `xml:",chardata"`
			} `xml:"checksum"`
			Location href  `xml:"location"`
			Size     int64 `xml:"size"`
		} `xml:"data"`
	}
	if err := xml.NewDecoder(&capped{r: r, left: MaxRepomd, err: tooLarge("repomd.xml", MaxRepomd)}).Decode(&doc); err != nil {
		return Repomd{}, unreadable("repomd.xml", err)
	}
	var md Repomd
	if n, err := strconv.ParseInt(strings.TrimSpace(doc.Revision), 10, 64); err == nil {
		md.Revision = n
	}
	for _, d := range doc.Data {
		rec := Record{Type: d.Type, Location: d.Location.Href, SHA256: strings.TrimSpace(d.Checksum.Sum), Size: d.Size}
		if err := d.Location.check(); err != nil {
			return Repomd{}, err
		}
		if d.Checksum.Type != "sha256" || !isSHA256(rec.SHA256) {
			return Repomd{}, problem.Errorf(problem.Invalid, "cannot read repomd.xml: the record %q has no SHA-256 checksum", d.Type)
		}
		md.Records = append(md.Records, rec)
	}
	return md, nil
}

// href is a location element.
type href struct {
	Href string `xml:"href,attr"`
	Base string `xml:"base,attr"`
}

// check refuses locations that lead out of the repository.
func (h href) check() error {
	if h.Base != "" {
		return problem.Errorf(problem.Invalid, "cannot read the repository: the location %q has a base of its own; packages have to lie in the repository", h.Href)
	}
	for part := range strings.SplitSeq(h.Href, "/") {
		if part == "" || part == "." || part == ".." || strings.ContainsAny(part, "\\\x00?#") {
			return problem.Errorf(problem.Invalid, "cannot read the repository: the location %q leads out of it", h.Href)
		}
	}
	return nil
}

// ParsePrimary reads uncompressed primary.xml and returns the packages, sorted. Source packages are left out.
func ParsePrimary(r io.Reader) ([]Package, error) {
	var out []Package
	d := xml.NewDecoder(r)
	for depth := 0; ; {
		// Raw tokens: half the time, and the shape is checked here. Most of the file is skipped.
		tok, err := d.RawToken()
		if err == io.EOF && depth == 0 {
			break
		}
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return nil, unreadable("primary metadata", err)
		}
		switch t := tok.(type) {
		case xml.EndElement:
			depth--
		case xml.StartElement:
			depth++
			if depth != 2 || t.Name.Local != "package" {
				continue
			}
			p, err := parsePackage(d)
			if err != nil {
				return nil, unreadable("primary metadata", err)
			}
			depth--
			if p.Arch == "src" || p.Arch == "nosrc" {
				continue
			}
			if len(out) >= MaxPackages {
				return nil, problem.Errorf(problem.TooLarge, "cannot read primary metadata: it has more than %d packages", MaxPackages)
			}
			out = append(out, p)
		}
	}
	slices.SortFunc(out, func(a, b Package) int {
		if c := a.NEVRA.Compare(b.NEVRA); c != 0 {
			return c
		}
		return strings.Compare(a.Location, b.Location)
	})
	return out, nil
}

// parsePackage reads the inside of one package element and its end.
func parsePackage(d *xml.Decoder) (Package, error) {
	var p Package
	var text strings.Builder // of the element at depth 1, where it matters
	var sha256 bool          // that element is a SHA-256 checksum
	for depth := 0; ; {
		tok, err := d.RawToken()
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return p, err
		}
		switch t := tok.(type) {
		case xml.StartElement:
			if depth++; depth > 1 {
				continue
			}
			text.Reset()
			switch t.Name.Local {
			case "version":
				p.Version, p.Release = attr(t, "ver"), attr(t, "rel")
				p.Epoch, err = number[int](t, "epoch")
			case "checksum":
				sha256 = attr(t, "type") == "sha256"
			case "size":
				p.Size, err = number[int64](t, "package")
			case "location":
				p.Location = attr(t, "href")
				err = href{p.Location, attr(t, "base")}.check()
			}
			if err != nil {
				return p, err
			}
		case xml.CharData:
			if depth == 1 && text.Len() < 1024 {
				text.Write(t)
			}
		case xml.EndElement:
			switch depth--; {
			case depth < 0:
				if _, err := rpm.ParseFileName(p.NEVRA.FileName()); err != nil {
					return p, err
				}
				return p, href{Href: p.Location}.check()
			case depth > 0:
			case t.Name.Local == "name":
				p.Name = text.String()
			case t.Name.Local == "arch":
				p.Arch = text.String()
			case t.Name.Local == "checksum" && sha256 && isSHA256(text.String()):
				p.SHA256 = text.String()
			}
		}
	}
}

// number reads an attribute that is a number of at least 0; absent is 0.
func number[N int | int64](t xml.StartElement, name string) (N, error) {
	s := attr(t, name)
	if s == "" {
		return 0, nil
	}
	bits := 63
	if name == "epoch" {
		bits = 31 // an int holds it everywhere, and no real epoch is larger
	}
	n, err := strconv.ParseUint(s, 10, bits)
	if err != nil {
		return 0, fmt.Errorf("the %s of a package is %q", name, s)
	}
	return N(n), nil
}

// unreadable says what could not be read. A cause that has a kind of its own keeps it.
func unreadable(what string, err error) error {
	return problem.Errorf(cmp.Or(problem.KindOf(err), problem.Invalid), "cannot read %s: %w", what, err)
}

func attr(t xml.StartElement, name string) string {
	for _, a := range t.Attr {
		if a.Name.Local == name && a.Name.Space != "xmlns" {
			return a.Value
		}
	}
	return ""
}

// GroupID is the name of the group of packages that hosts of a personality get.
func GroupID(p host.Personality) string { return "updates-" + string(p) }

// ParseGroups reads comps.xml: the mandatory packages of each group, by group id. Groups of one id are merged.
func ParseGroups(r io.Reader) (map[string][]string, error) {
	var doc struct {
		XMLName xml.Name `xml:"comps"`
		Groups  []struct {
			ID       string `xml:"id"`
			Packages []struct {
				Type string `xml:"type,attr"`
				Name string `xml:",chardata"`
			} `xml:"packagelist>packagereq"`
		} `xml:"group"`
	}
	if err := xml.NewDecoder(r).Decode(&doc); err != nil {
		return nil, unreadable("groups", err)
	}
	out := map[string][]string{}
	for _, g := range doc.Groups {
		if g.ID == "" {
			return nil, problem.Errorf(problem.Invalid, "cannot read groups: a group has no id")
		}
		names := out[g.ID]
		if names == nil {
			names = []string{}
		}
		for _, p := range g.Packages {
			if p.Type == "mandatory" || p.Type == "" {
				names = append(names, strings.TrimSpace(p.Name))
			}
		}
		slices.Sort(names)
		out[g.ID] = slices.Compact(names)
	}
	return out, nil
}

// brought is the file of the brought record.
type brought struct {
	Format   int         `json:"format"` // 1
	Packages []rpm.NEVRA `json:"packages"`
}

// ParseBrought reads our list of brought packages, sorted.
func ParseBrought(r io.Reader) ([]rpm.NEVRA, error) {
	var doc brought
	d := json.NewDecoder(r)
	d.DisallowUnknownFields()
	if err := d.Decode(&doc); err != nil {
		return nil, unreadable("the list of brought packages", err)
	}
	if doc.Format != 1 {
		return nil, problem.Errorf(problem.NotSupported, "cannot read the list of brought packages: its format is %d, this version knows 1", doc.Format)
	}
	for _, n := range doc.Packages {
		if _, err := rpm.ParseFileName(n.FileName()); err != nil || n.Epoch < 0 {
			return nil, problem.Errorf(problem.Invalid, "cannot read the list of brought packages: %q is no package", n.String())
		}
	}
	slices.SortFunc(doc.Packages, rpm.NEVRA.Compare)
	return slices.Compact(doc.Packages), nil
}

// EncodeBrought writes the list that [ParseBrought] reads. The same packages in any order give the same bytes.
func EncodeBrought(packages []rpm.NEVRA) ([]byte, error) {
	doc := brought{Format: 1, Packages: slices.SortedFunc(slices.Values(packages), rpm.NEVRA.Compare)}
	doc.Packages = slices.Compact(doc.Packages)
	if doc.Packages == nil {
		doc.Packages = []rpm.NEVRA{}
	}
	return json.Marshal(doc)
}

// capped fails with err instead of giving more than left bytes.
type capped struct {
	r    io.Reader
	left int64
	err  error
}

func (c *capped) Read(p []byte) (int, error) {
	if int64(len(p)) > c.left+1 {
		p = p[:c.left+1]
	}
	n, err := c.r.Read(p)
	c.left -= int64(n)
	if c.left < 0 {
		return n - 1, c.err
	}
	return n, err
}

func sum(b []byte) string {
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:])
}

func isSHA256(s string) bool {
	return len(s) == 64 && strings.Trim(s, "0123456789abcdef") == ""
}

func mismatch(location, want, got string) error {
	return &problem.Error{Kind: problem.Unavailable, Err: ErrChecksum,
		Msg: fmt.Sprintf("cannot use %s: its SHA-256 is %s, expected %s", location, got, want)}
}

func tooLarge(location string, limit int64) error {
	return problem.Errorf(problem.TooLarge, "cannot use %s: it is larger than %d bytes", location, limit)
}
