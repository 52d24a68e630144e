package debian

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

// An archive is the host's Debian mirror, with a folder for what apt knows of one
// suite. The host's own lists are not touched.
type archive struct {
	suite Suite
	dir   string
}

// keyring signs all suites.
const keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"

// hostLists changes when the host learns of new packages. The lists of other
// suites are fetched again only then, as the kernels of package machine are.
const hostLists = "/var/lib/apt/lists"

// openArchive returns the archive of a suite. It fetches the lists of packages if
// those that are here are older than the host's.
func openArchive(ctx context.Context, dir string, s Suite) (*archive, error) {
	a := &archive{suite: s, dir: dir}
	sources, err := hostSources(ctx)
	if err != nil {
		return nil, err
	}
	list := a.sourceList(sources)
	if len(list) == 0 {
		return nil, fmt.Errorf("cannot use the archive for suite %s: the host's package sources name no suite of its own release", s)
	}
	if err := a.writeConfig(list); err != nil {
		return nil, err
	}
	fetched := filepath.Join(a.dir, "fetched")
	host, err := os.Stat(hostLists)
	if err != nil {
		return nil, err
	}
	if info, err := os.Stat(fetched); err == nil && info.ModTime().After(host.ModTime()) {
		return a, nil
	}
	if _, err := a.apt(ctx, "apt-get", "-q", "update"); err != nil {
		return nil, err
	}
	return a, os.WriteFile(fetched, []byte(time.Now().Format(time.RFC3339)), 0o644)
}

// A source is one line of the host's package sources.
type source struct {
	uri, suite, component string
}

// hostSources asks apt for the host's package sources, so that it is apt that
// reads the several formats they may have.
func hostSources(ctx context.Context) ([]source, error) {
	out, err := command(ctx, "", nil, "apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)", "Created-By: Packages")
	if err != nil {
		return nil, err
	}
	var sources []source
	for line := range strings.Lines(out) {
		if f := strings.Fields(line); len(f) == 3 {
			sources = append(sources, source{f[0], f[1], f[2]})
		}
	}
	return sources, nil
}

// of turns a source of the host into that of a suite. A source that is not of a
// suite we know, or that the suite does not have, is none.
func (s source) of(suite Suite) (source, bool) {
	for _, known := range Suites {
		rest, ok := strings.CutPrefix(s.suite, string(known))
		if !ok || s.component != "main" || rest != "" && (suite == Sid || rest != "-security" && rest != "-updates") {
			continue
		}
		return source{s.uri, string(suite) + rest, s.component}, true
	}
	return source{}, false
}

// sourceList returns the lines of the suite's sources.list. Sid's Release file may
// be out of date on a mirror; that of the others may not.
func (a *archive) sourceList(host []source) []string {
	var lines []string
	for _, s := range host {
		of, ok := s.of(a.suite)
		if !ok {
			continue
		}
		options := "signed-by=" + keyring
		if a.suite == Sid {
			options += " check-valid-until=no"
		}
		lines = append(lines, fmt.Sprintf("deb [%s] %s %s %s", options, of.uri, of.suite, of.component))
	}
	return lines
}

func (a *archive) sourcesFile() string { return filepath.Join(a.dir, "sources.list") }

// writeConfig makes the folder one that apt works in without looking at the host.
func (a *archive) writeConfig(list []string) error {
	config := fmt.Sprintf(`Dir::State %[1]q;
Dir::State::status %[2]q;
Dir::Cache %[1]q;
Dir::Etc::sourcelist %[3]q;
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
APT::Install-Recommends "false";
APT::Sandbox::User "root";
Acquire::Languages "none";
Debug::NoLocking "true";
`, a.dir, filepath.Join(a.dir, "status"), a.sourcesFile())
	files := map[string]string{"apt.conf": config, "status": "", "sources.list": strings.Join(list, "\n") + "\n"}
	err := os.MkdirAll(filepath.Join(a.dir, "lists", "partial"), 0o755)
	for name, text := range files {
		err = errors.Join(err, os.WriteFile(filepath.Join(a.dir, name), []byte(text), 0o644))
	}
	return err
}

// apt runs one of apt's programs on the suite.
func (a *archive) apt(ctx context.Context, program string, args ...string) (string, error) {
	out, err := command(ctx, a.dir, []string{"APT_CONFIG=" + filepath.Join(a.dir, "apt.conf")}, program, args...)
	if err != nil {
		return "", fmt.Errorf("cannot ask the archive of %s: %w", a.suite, err)
	}
	return out, nil
}

// installed matches what apt-get says it would install.
var installed = regexp.MustCompile(`(?m)^Inst (\S+) \((\S+) `)

// resolve returns the versions of the packages that a new system would have.
func (a *archive) resolve(ctx context.Context, packages []string) (map[string]string, error) {
	out, err := a.apt(ctx, "apt-get", append([]string{"-q", "--simulate", "install", "?essential"}, packages...)...)
	if err != nil {
		return nil, err
	}
	versions := make(map[string]string)
	for _, m := range installed.FindAllStringSubmatch(out, -1) {
		versions[m[1]] = m[2]
	}
	return versions, nil
}
