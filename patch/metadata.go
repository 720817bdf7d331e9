package patch

import (
	"bytes"
	"encoding/xml"
	"io"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/starpatch/starpatch/host"
	"github.com/starpatch/starpatch/internal/rpm"
	"github.com/starpatch/starpatch/problem"
)

// Limits of metadata.xml.
const (
	MaxMetadata         = 4 << 20 // bytes
	MaxMetadataDepth    = 32      // nested elements
	MaxMetadataElements = 100_000 // elements in all
)

// UnknownRelease is the release of a patch whose metadata has no sw_version element.
const UnknownRelease = "unknown"

// textElements are the elements that hold one text, in writing order around the lists.
var textElements = [...]struct {
	name string
	of   func(*Metadata) *Text
}{
	{"summary", func(m *Metadata) *Text { return &m.Summary }},
	{"description", func(m *Metadata) *Text { return &m.Description }},
	{"install_instructions", func(m *Metadata) *Text { return &m.InstallInstructions }},
	{"warnings", func(m *Metadata) *Text { return &m.Warnings }},
	{"status", func(m *Metadata) *Text { return &m.Status }},
	{"unremovable", func(m *Metadata) *Text { return &m.Unremovable }},
	{"reboot_required", func(m *Metadata) *Text { return &m.RebootRequired }},
	{"apply_active_release_only", func(m *Metadata) *Text { return &m.ApplyActiveReleaseOnly }},
}

// ReadMetadata reads metadata.xml. Elements and attributes that it does not know are ignored, so that newer builders
// can add some; what it knows is checked strictly, since ids and names end up in paths, URLs and arguments. Errors are of
// kind problem.Invalid or problem.TooLarge and start with "metadata.xml".
func ReadMetadata(r io.Reader) (Metadata, error) {
	b, err := io.ReadAll(io.LimitReader(r, MaxMetadata+1))
	if err != nil {
		return Metadata{}, problem.Errorf(problem.KindOf(err), "cannot read metadata.xml: %w", err)
	}
	if len(b) > MaxMetadata {
		return Metadata{}, problem.Errorf(problem.TooLarge, "metadata.xml is larger than %d bytes", MaxMetadata)
	}
	root, err := parseXML(b)
	if err != nil {
		return Metadata{}, err
	}
	if root.name != "patch" {
		return Metadata{}, badMetadata("the root element is <%s>; expected <patch>", root.name)
	}
	return root.metadata()
}

func badMetadata(format string, args ...any) error {
	return problem.Errorf(problem.Invalid, "metadata.xml: "+format, args...)
}

// element is one XML element: its own text and its children, attributes by name.
type element struct {
	name     string
	attrs    map[string]string
	text     strings.Builder
	children []*element
}

// parseXML reads the tree of elements without any document type, entity or name space.
func parseXML(b []byte) (*element, error) {
	d := xml.NewDecoder(bytes.NewReader(bytes.TrimPrefix(b, []byte("\ufeff"))))
	var stack []*element
	var root *element
	elements := 0
	for {
		token, err := d.Token()
		if err == io.EOF {
			if root == nil {
				return nil, badMetadata("it has no element")
			}
			return root, nil // the decoder itself refuses an element that is not closed
		}
		if err != nil {
			return nil, badMetadata("it is not well-formed XML: %v", err)
		}
		switch t := token.(type) {
		case xml.Directive:
			return nil, badMetadata("it has a <!...> directive; none is accepted")
		case xml.StartElement:
			if len(stack) == MaxMetadataDepth {
				return nil, problem.Errorf(problem.TooLarge, "metadata.xml: elements are nested deeper than %d", MaxMetadataDepth)
			}
			if elements++; elements > MaxMetadataElements {
				return nil, problem.Errorf(problem.TooLarge, "metadata.xml: it has more than %d elements", MaxMetadataElements)
			}
			e := &element{name: qualified(t.Name)}
			for _, a := range t.Attr {
				if e.attrs == nil {
					e.attrs = map[string]string{}
				}
				if _, twice := e.attrs[qualified(a.Name)]; twice {
					return nil, badMetadata("<%s> has attribute %s twice", e.name, qualified(a.Name))
				}
				e.attrs[qualified(a.Name)] = a.Value
			}
			if len(stack) > 0 {
				parent := stack[len(stack)-1]
				parent.children = append(parent.children, e)
			} else if root != nil {
				return nil, badMetadata("it has two root elements")
			} else {
				root = e
			}
			stack = append(stack, e)
		case xml.EndElement:
			stack = stack[:len(stack)-1]
		case xml.CharData:
			if len(stack) == 0 {
				if len(bytes.TrimSpace(t)) > 0 {
					return nil, badMetadata("it has text outside of its root element")
				}
				continue
			}
			stack[len(stack)-1].text.Write(t)
		}
	}
}

// qualified spells a name with its name space, which makes it a name that nobody knows.
func qualified(n xml.Name) string {
	if n.Space == "" {
		return n.Local
	}
	return n.Space + ":" + n.Local
}

// value is the text of an element that may hold text only.
func (e *element) value() (string, error) {
	if len(e.children) > 0 {
		return "", badMetadata("<%s> has an element <%s> inside; expected text only", e.name, e.children[0].name)
	}
	return e.text.String(), nil
}

func (e *element) metadata() (Metadata, error) {
	m := Metadata{Release: UnknownRelease}
	seen := map[string]bool{}
	for _, c := range e.children {
		var err error
		switch c.name {
		case "personality":
			err = c.personality(&m)
		case "contents":
			err = c.list("rpm", func(s string) error {
				_, err := rpm.ParseFileName(s)
				m.Contents = append(m.Contents, s)
				return err
			})
		case "requires":
			err = c.list("req_patch_id", func(s string) error {
				id, err := ParseID(s)
				m.Requires = append(m.Requires, id)
				return err
			})
		case "semantics":
			err = c.list("action", func(s string) error {
				a, err := ParseAction(s)
				m.Semantics = append(m.Semantics, a)
				return err
			})
		default:
			err = c.single(&m, seen)
		}
		if err != nil {
			return Metadata{}, err
		}
	}
	if !seen["id"] {
		return Metadata{}, badMetadata("it has no <id> element, so nothing can refer to the patch")
	}
	if slices.Contains(m.Requires, m.ID) {
		return Metadata{}, badMetadata("%s requires itself", m.ID)
	}
	m.normalize()
	return m, nil
}

// single reads an element that may be there once. One that is there twice is refused: readers would disagree.
func (e *element) single(m *Metadata, seen map[string]bool) error {
	i := slices.IndexFunc(textElements[:], func(t struct {
		name string
		of   func(*Metadata) *Text
	}) bool {
		return t.name == e.name
	})
	if i < 0 && e.name != "id" && e.name != "sw_version" {
		return nil
	}
	if seen[e.name] {
		return badMetadata("it has two <%s> elements", e.name)
	}
	seen[e.name] = true
	s, err := e.value()
	if err != nil {
		return err
	}
	switch {
	case i >= 0:
		*textElements[i].of(m) = Some(s)
	case e.name == "id":
		if m.ID, err = ParseID(s); err != nil {
			return badMetadata("<id>: %v", err)
		}
	default:
		if m.Release, err = ParseRelease(s); err != nil {
			return badMetadata("<sw_version>: %v", err)
		}
	}
	return nil
}

// list reads the texts of the children called name; several list elements of one kind are merged by the caller.
func (e *element) list(name string, add func(string) error) error {
	for _, c := range e.children {
		if c.name != name {
			continue
		}
		s, err := c.value()
		if err != nil {
			return err
		}
		if err := add(s); err != nil {
			return badMetadata("<%s>: %v", name, err)
		}
	}
	return nil
}

func (e *element) personality(m *Metadata) error {
	hp, err := host.ParsePersonality(e.attrs["type"])
	if err != nil {
		return badMetadata("<personality>: %v", err)
	}
	return e.list("package", func(s string) error {
		if m.Personalities == nil {
			m.Personalities = map[host.Personality][]string{}
		}
		m.Personalities[hp] = append(m.Personalities[hp], s)
		return rpm.CheckName(s)
	})
}

// normalize sorts the lists and drops duplicates.
func (m *Metadata) normalize() {
	m.Contents = sortedSet(m.Contents)
	m.Requires = sortedSet(m.Requires)
	m.Semantics = sortedSet(m.Semantics)
	for hp, names := range m.Personalities {
		m.Personalities[hp] = sortedSet(names)
	}
}

func sortedSet[S ~string](s []S) []S {
	slices.Sort(s)
	return slices.Compact(s)
}

// WriteMetadata writes metadata.xml as the original does: two blanks of indent, elements in a fixed order, empty ones
// self-closed, texts verbatim on one line with their tags. Every text element is written, absent ones as empty. Lists
// are written sorted and without duplicates. A text that XML cannot carry is refused.
func WriteMetadata(w io.Writer, m Metadata) error {
	m = m.clone()
	m.normalize()
	var b strings.Builder
	b.WriteString("<?xml version=\"1.0\" ?>\n<patch>\n")
	text := func(indent, name, attr, s string) error {
		if s == "" {
			b.WriteString(indent + "<" + name + attr + "/>\n")
			return nil
		}
		escaped, err := escape(s)
		if err != nil {
			return badMetadata("<%s>: %v", name, err)
		}
		b.WriteString(indent + "<" + name + attr + ">" + escaped + "</" + name + ">\n")
		return nil
	}
	list := func(name, attr, item string, items []string) error {
		if len(items) == 0 {
			b.WriteString("  <" + name + attr + "/>\n")
			return nil
		}
		b.WriteString("  <" + name + attr + ">\n")
		for _, s := range items {
			if err := text("    ", item, "", s); err != nil {
				return err
			}
		}
		b.WriteString("  </" + name + ">\n")
		return nil
	}
	if err := text("  ", "id", "", string(m.ID)); err != nil {
		return err
	}
	if err := text("  ", "sw_version", "", m.Release); err != nil {
		return err
	}
	for _, t := range textElements {
		if err := text("  ", t.name, "", t.of(&m).Value); err != nil {
			return err
		}
	}
	for _, hp := range slices.Sorted(maps.Keys(m.Personalities)) {
		if names := m.Personalities[hp]; len(names) > 0 {
			if err := list("personality", ` type="`+string(hp)+`"`, "package", names); err != nil {
				return err
			}
		}
	}
	if err := list("contents", "", "rpm", m.Contents); err != nil {
		return err
	}
	if err := list("requires", "", "req_patch_id", plain(m.Requires)); err != nil {
		return err
	}
	if err := list("semantics", "", "action", plain(m.Semantics)); err != nil {
		return err
	}
	b.WriteString("</patch>\n")
	if b.Len() > MaxMetadata {
		return problem.Errorf(problem.TooLarge, "metadata.xml would be larger than %d bytes", MaxMetadata)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func plain[S ~string](in []S) []string {
	out := make([]string, len(in))
	for i, s := range in {
		out[i] = string(s)
	}
	return out
}

// clone copies what normalize edits.
func (m Metadata) clone() Metadata {
	m.Contents, m.Requires, m.Semantics = slices.Clone(m.Contents), slices.Clone(m.Requires), slices.Clone(m.Semantics)
	m.Personalities = maps.Clone(m.Personalities)
	for hp, names := range m.Personalities {
		m.Personalities[hp] = slices.Clone(names)
	}
	return m
}

// escaper replaces what the original's writer replaces, and the carriage return, which would be read back as a newline.
var escaper = strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", `"`, "&quot;", "\r", "&#13;")

func escape(s string) (string, error) {
	if !utf8.ValidString(s) {
		return "", problem.Errorf(problem.Invalid, "the text is not UTF-8")
	}
	for _, r := range s {
		if r < 0x20 && r != '\t' && r != '\n' && r != '\r' || r == 0xfffe || r == 0xffff {
			return "", problem.Errorf(problem.Invalid, "the text contains the character %U, which XML cannot carry", r)
		}
	}
	return escaper.Replace(s), nil
}

// ParseAction refuses anything but the two semantic actions.
func ParseAction(s string) (Action, error) {
	if a := Action(s); a == PreApply || a == PreRemove {
		return a, nil
	}
	return "", problem.Errorf(problem.Invalid, "%q is not a semantic action; expected pre-apply or pre-remove", s)
}
