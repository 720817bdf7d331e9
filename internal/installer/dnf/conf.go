package dnf

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/starpatch/starpatch/internal/installer"
)

// conf is the whole configuration of dnf for one call. Nothing of the machine's or the host's own configuration counts:
// their repositories, variables, plugins, excludes and protected packages would change what an operator asked for.
func (d *Driver) conf(src installer.Source) []byte {
	check := 0
	if len(d.cfg.Keys) > 0 {
		check = 1
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, `[main]
assumeyes=1
best=1
clean_requirements_on_remove=0
color=never
deltarpm=0
fastestmirror=0
gpgcheck=%d
install_weak_deps=0
installonlypkgs=
keepcache=1
localpkg_gpgcheck=%[1]d
pluginconfpath=/nonexistent
plugins=0
protected_packages=
reposdir=/nonexistent
retries=3
skip_if_unavailable=0
strict=1
timeout=30
varsdir=/nonexistent
zchunk=0
`, check)
	for _, repo := range []struct{ id, url string }{{"base", src.Base}, {"updates", src.Updates}} {
		fmt.Fprintf(&b, "\n[%s]\nname=%[1]s\nbaseurl=%s/\nenabled=1\nskip_if_unavailable=0\n", repo.id, strings.TrimSuffix(repo.url, "/"))
		for _, f := range []struct{ key, file string }{{"sslcacert", src.CA}, {"sslclientcert", src.Cert}, {"sslclientkey", src.Key}} {
			if f.file != "" {
				fmt.Fprintf(&b, "%s=%s\n", f.key, f.file)
			}
		}
		if src.CA != "" {
			b.WriteString("sslverify=1\n")
		}
		if len(d.cfg.Keys) > 0 {
			fmt.Fprintf(&b, "gpgkey=%s\n", strings.Join(prefixed("file://", d.cfg.Keys), " "))
		}
	}
	return b.Bytes()
}

func prefixed(prefix string, list []string) []string {
	out := make([]string, len(list))
	for i, s := range list {
		out[i] = prefix + s
	}
	return out
}
