// Package repo builds the update repositories that hosts install from. A repository exists as immutable generations,
// updates/rel-R/<revision>/, each built once beside the live one and named by the SHA-256 of its repomd.xml. What is in a
// generation is a pure function of the applied and committed patches; only building it touches the disk.
package repo

import (
	"bytes"
	"cmp"
	"encoding/xml"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/starpatch/starpatch/host"
	"github.com/starpatch/starpatch/internal/repo/repodata"
	"github.com/starpatch/starpatch/internal/rpm"
	"github.com/starpatch/starpatch/patch"
)

// Generation is the content of one generation of a release's update repository. Its lists are sorted, so that equal
// content is equal bytes. Status and texts of patches are not in it: a re-import may change them, and makes no generation.
type Generation struct {
	Release    string
	Revision   int64
	Packages   []patch.Package
	Groups     []Group
	Advisories []Advisory
	Brought    []rpm.NEVRA // every package that any patch applied so far in the release brought, these included
}

// Group is the new packages for one personality.
type Group struct {
	Personality host.Personality
	Packages    []string // names
}

// Advisory is one patch as dnf shows it (updateinfo).
type Advisory struct {
	ID       patch.ID
	Reboot   bool
	Packages []patch.Package
}

// GenerationOf returns what the repository of a release has to hold: the packages of its applied and committed patches,
// a group for each personality that they name, an advisory for each of them. Patches of other releases and Available
// ones do not matter. Brought is the list of the generation before.
func GenerationOf(release string, revision int64, patches []patch.Patch, brought []rpm.NEVRA) Generation {
	g := Generation{Release: release, Revision: revision, Brought: slices.Clone(brought)}
	groups := map[host.Personality][]string{}
	for _, p := range patches {
		if p.Release != release || p.RepoState == patch.RepoAvailable {
			continue
		}
		a := Advisory{ID: p.ID, Reboot: !p.InService(), Packages: slices.SortedFunc(slices.Values(p.Packages), byPackage)}
		g.Advisories = append(g.Advisories, a)
		g.Packages = append(g.Packages, a.Packages...)
		for _, pkg := range a.Packages {
			g.Brought = append(g.Brought, pkg.NEVRA)
		}
		for hp, names := range p.Personalities {
			groups[hp] = append(groups[hp], names...)
		}
	}
	slices.SortFunc(g.Packages, byPackage)
	g.Packages = slices.CompactFunc(g.Packages, func(a, b patch.Package) bool { return byPackage(a, b) == 0 })
	slices.SortFunc(g.Advisories, func(a, b Advisory) int { return strings.Compare(string(a.ID), string(b.ID)) })
	for _, hp := range host.Personalities() {
		if names := groups[hp]; len(names) > 0 {
			slices.Sort(names)
			g.Groups = append(g.Groups, Group{hp, slices.Compact(names)})
		}
	}
	slices.SortFunc(g.Brought, rpm.NEVRA.Compare)
	g.Brought = slices.Compact(g.Brought)
	return g
}

func byPackage(a, b patch.Package) int {
	return cmp.Or(a.NEVRA.Compare(b.NEVRA), strings.Compare(a.SHA256, b.SHA256))
}

// location is where a package lies below the root of a generation.
func location(pkg patch.Package) string {
	return "Packages/" + pkg.NEVRA.Arch + "/" + pkg.NEVRA.FileName()
}

// comps is the text of comps.xml, in the form that StarlingX hosts and dnf read.
func (g Generation) comps() []byte {
	var b bytes.Buffer
	b.WriteString(xml.Header + "<comps>\n")
	for _, group := range g.Groups {
		fmt.Fprintf(&b, "  <group>\n    <id>%[1]s</id>\n    <default>false</default>\n    <uservisible>true</uservisible>\n    <display_order>1024</display_order>\n    <name>%[1]s</name>\n    <description>Patches for %[2]s</description>\n    <packagelist>\n",
			repodata.GroupID(group.Personality), group.Personality)
		for _, name := range group.Packages {
			fmt.Fprintf(&b, "      <packagereq type=\"mandatory\">%s</packagereq>\n", escape(name))
		}
		b.WriteString("    </packagelist>\n  </group>\n")
	}
	b.WriteString("</comps>\n")
	return b.Bytes()
}

// updateInfo is the text of updateinfo.xml. Its only time is that of the newest package, so that it does not change with
// the time of building.
func (g Generation) updateInfo() []byte {
	var b bytes.Buffer
	b.WriteString(xml.Header + "<updates>\n")
	for _, a := range g.Advisories {
		var built int64
		for _, pkg := range a.Packages {
			built = max(built, pkg.Built)
		}
		issued := time.Unix(built, 0).UTC().Format(time.DateTime)
		id, release := escape(string(a.ID)), escape(g.Release)
		fmt.Fprintf(&b, "  <update from=\"starpatch\" status=\"final\" type=\"bugfix\" version=\"1\">\n    <id>%[1]s</id>\n    <title>%[1]s</title>\n    <issued date=\"%[2]s\"/>\n    <updated date=\"%[2]s\"/>\n    <release>%[3]s</release>\n    <description>Patch %[1]s for release %[3]s</description>\n    <references/>\n    <pkglist>\n      <collection short=\"%[3]s\">\n        <name>%[3]s</name>\n",
			id, issued, release)
		for _, pkg := range a.Packages {
			n := pkg.NEVRA
			fmt.Fprintf(&b, "        <package name=%q version=%q release=%q epoch=%q arch=%q>\n          <filename>%s</filename>\n          <sum type=\"sha256\">%s</sum>\n",
				n.Name, n.Version, n.Release, strconv.Itoa(n.Epoch), n.Arch, escape(n.FileName()), pkg.SHA256)
			if a.Reboot {
				b.WriteString("          <reboot_suggested>True</reboot_suggested>\n")
			}
			b.WriteString("        </package>\n")
		}
		b.WriteString("      </collection>\n    </pkglist>\n  </update>\n")
	}
	b.WriteString("</updates>\n")
	return b.Bytes()
}

func escape(s string) string {
	var b strings.Builder
	if err := xml.EscapeText(&b, []byte(s)); err != nil {
		panic("internal error: a strings.Builder refused a write: " + err.Error())
	}
	return b.String()
}
