package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"os"
	"regexp"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"livepatch/publisher/internal/authority"
	"livepatch/publisher/internal/push"
	"livepatch/publisher/internal/repo"
)

var errUnverified = errors.New("repository does not verify")

// verifyFlags are what "verify" is told.
type verifyFlags struct {
	all        bool
	format     string
	server, ca string
}

func (a *app) verifyCommand() *cobra.Command {
	var f verifyFlags
	cmd := &cobra.Command{
		Use:   "verify [--all] [--format text|json] [--server URL [--ca FILE]]",
		Short: "Check a whole repository and explain who signed what, and what runs out when",
		Long: `Check with go-tuf what a machine would check: the chain of roots, the signatures
of each role, expiry, the content of each target, and that indexes and modules
agree. No key is needed; keys whose files are here are called by name.

The folder may be a publisher's or a mirror's. With --server the metadata that a
service or a mirror serves is fetched and checked instead, without its targets.`,
		Example: "  livepatch-publish --repo R verify\n  livepatch-publish verify --server https://livepatch.example.com:8443 --format json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if f.format != "text" && f.format != "json" {
				return fmt.Errorf("%w: --format is %q, want text or json", errUsage, f.format)
			}
			rep, err := a.report(cmd.Context(), f)
			if err != nil {
				return fmt.Errorf("cannot verify repository: %w", err)
			}
			return a.printReport(rep, f)
		},
	}
	flags := cmd.Flags()
	flags.BoolVar(&f.all, "all", false, "list every bin")
	flags.StringVar(&f.format, "format", "text", "text or json")
	flags.StringVar(&f.server, "server", "", "`URL` of a service or a mirror, https://HOST[:PORT]")
	flags.StringVar(&f.ca, "ca", "", "`file` of a CA to trust besides the system's (PEM)")
	return cmd
}

func (a *app) report(ctx context.Context, f verifyFlags) (repo.Report, error) {
	if f.server != "" {
		return a.reportServer(ctx, f)
	}
	r, err := a.open()
	if errors.Is(err, repo.ErrNone) {
		r, err = repo.OpenForeign(a.repoDir, a.Now(), false)
	}
	if err != nil {
		return repo.Report{}, err
	}
	rep, err := r.Verify(ctx)
	return rep, errors.Join(err, r.Close())
}

// reportServer reports on what a service serves, from a copy that is thrown away.
func (a *app) reportServer(ctx context.Context, f verifyFlags) (rep repo.Report, err error) {
	var ca []byte
	if f.ca != "" {
		if ca, err = readFile(f.ca, maxCA); err != nil {
			return rep, fmt.Errorf("cannot read CA: %w", err)
		}
	}
	c, err := push.NewReader(push.Options{Server: f.server, CA: ca, Proxy: a.Proxy})
	if err != nil {
		return rep, err
	}
	dir, err := os.MkdirTemp("", "livepatch-verify-")
	if err != nil {
		return rep, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if err := c.Fetch(ctx, dir); err != nil {
		return rep, err
	}
	r, err := repo.OpenForeign(dir, a.Now(), true)
	if err != nil {
		return rep, err
	}
	return r.Verify(ctx)
}

func (a *app) printReport(rep repo.Report, f verifyFlags) error {
	names, err := a.keyNames()
	if err != nil {
		a.note("%v", err)
	}
	if f.format == "json" {
		err = a.printReportJSON(rep, names)
	} else {
		err = a.printReportText(rep, names, f.all)
	}
	if n := len(rep.Problems); n > 0 && err == nil {
		return fmt.Errorf("%w: %d problems", errUnverified, n)
	}
	return err
}

func (a *app) printReportText(rep repo.Report, names keyNames, all bool) error {
	lines := rows(rep.Roles, all)
	w := tabwriter.NewWriter(a.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "ROLE\tVERSION\tNEEDS\tSIGNED BY\tTARGETS")
	for _, row := range lines {
		fmt.Fprintf(w, "%s\t%s\t%d of %d\t%s\t%d\n", row.name, row.versions(), row.Threshold, len(row.Keys), names.join(row.Signed), row.Targets)
	}
	fmt.Fprintln(w)
	slices.SortStableFunc(lines, func(x, y row) int { return x.Expires.Compare(y.Expires) })
	fmt.Fprintln(w, "RUNS OUT\tDAYS LEFT\tLIFE LEFT\tROLE\tWHAT TO DO")
	for _, row := range lines {
		left := row.Left(a.Now())
		fmt.Fprintf(w, "%s\t%.1f\t%.0f%%\t%s\t%s\n", row.Expires.Format(time.RFC3339), daysLeft(row.RoleReport, a.Now()), 100*left, row.name, advice(left))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	fmt.Fprintf(a.Stdout, "\n%d modules, %d with provenance; %d kernel indexes.\n", rep.Modules, rep.Provenances, rep.Indexes)
	for _, key := range slices.Sorted(maps.Keys(rep.SigningKeys)) {
		what := "modules are"
		if rep.SigningKeys[key] == 1 {
			what = "module is"
		}
		fmt.Fprintf(a.Stdout, "%d %s signed for kernels with key %s.\n", rep.SigningKeys[key], what, key)
	}
	for _, p := range together(rep.Problems) {
		fmt.Fprintf(a.Stdout, "problem: %s\n  to do: %s\n", p.What, p.Do)
	}
	if len(rep.Problems) == 0 {
		fmt.Fprintln(a.Stdout, "Everything verifies.")
	}
	return nil
}

var binProblem = regexp.MustCompile(`^role (([a-z0-9]+)-[0-9a-f]+): (.*)$`)

// alike returns what the problems of many bins of a vendor have in common.
func alike(p repo.Problem) (text string, isBin bool) {
	m := binProblem.FindStringSubmatch(p.What)
	if m == nil {
		return p.What, false
	}
	return "bins of " + m[2] + ": " + strings.ReplaceAll(m[3], m[1], m[2]+"-…"), true
}

// together makes one problem of those that many bins of a vendor have alike.
func together(all []repo.Problem) []repo.Problem {
	count := make(map[string]int)
	for _, p := range all {
		text, _ := alike(p)
		count[text]++
	}
	var short []repo.Problem
	for _, p := range all {
		text, isBin := alike(p)
		n := count[text]
		if n == 0 {
			continue // it was told with the first
		}
		count[text] = 0
		if isBin && n > 1 {
			p.What = fmt.Sprintf("%d %s", n, text)
		}
		short = append(short, p)
	}
	return short
}

// advice says what to do about a role with so much of its life left.
func advice(left float64) string {
	switch {
	case left <= 0:
		return "expired: sign it anew at once"
	case left <= 1.0/4:
		return "sign it anew now"
	case left <= 1.0/2:
		return "sign it anew soon"
	}
	return "-"
}

// daysLeft returns how long a role is valid, in days; less than 0 if it is not.
func daysLeft(r repo.RoleReport, now time.Time) float64 {
	return math.Round(10*r.Expires.Sub(now).Hours()/24) / 10
}

// A reportJSON is a report as JSON.
type reportJSON struct {
	Verifies    bool           `json:"verifies"`
	Roles       []roleJSON     `json:"roles"` // what runs out first comes first
	Modules     int            `json:"modules"`
	SigningKeys map[string]int `json:"signing_keys,omitempty"` // modules signed for kernels, by key
	Provenances int            `json:"provenances"`
	Indexes     int            `json:"indexes"`
	Problems    []repo.Problem `json:"problems"`
}

type roleJSON struct {
	Role      string    `json:"role"`
	Version   int64     `json:"version"`
	Expires   time.Time `json:"expires"`
	DaysLeft  float64   `json:"days_left"`
	LifeLeft  float64   `json:"life_left"` // from 0 to 1
	Threshold int       `json:"threshold"`
	Keys      []keyJSON `json:"keys"`
	Targets   int       `json:"targets"`
}

type keyJSON struct {
	ID     string `json:"id"`
	Name   string `json:"name,omitempty"`
	Signed bool   `json:"signed"`
}

func (a *app) printReportJSON(rep repo.Report, names keyNames) error {
	out := reportJSON{
		Verifies: len(rep.Problems) == 0, Roles: []roleJSON{}, Modules: rep.Modules, SigningKeys: rep.SigningKeys, Provenances: rep.Provenances, Indexes: rep.Indexes,
		Problems: append([]repo.Problem{}, rep.Problems...),
	}
	for _, r := range rep.Roles {
		role := roleJSON{
			Role: r.Role, Version: r.Version, Expires: r.Expires, DaysLeft: daysLeft(r, a.Now()),
			LifeLeft: math.Round(1000*r.Left(a.Now())) / 1000, Threshold: r.Threshold, Targets: r.Targets,
		}
		for _, id := range r.Keys {
			role.Keys = append(role.Keys, keyJSON{ID: id, Name: names[id], Signed: slices.Contains(r.Signed, id)})
		}
		out.Roles = append(out.Roles, role)
	}
	slices.SortStableFunc(out.Roles, func(x, y roleJSON) int {
		return cmp.Or(x.Expires.Compare(y.Expires), authority.Compare(x.Role, y.Role))
	})
	enc := json.NewEncoder(a.Stdout)
	enc.SetIndent("", "  ")
	return enc.Encode(out)
}

// A row is a line of the report: a role, or several bins with the same
// signatures.
type row struct {
	repo.RoleReport
	name         string
	oldest, bins int64
}

func (r row) versions() string {
	if r.oldest == r.Version {
		return fmt.Sprint(r.Version)
	}
	return fmt.Sprintf("%d-%d", r.oldest, r.Version)
}

// rows puts the bins of a vendor into one row for each set of signers, with the
// earliest expiry.
func rows(roles []repo.RoleReport, all bool) []row {
	var rows []row
	merged := make(map[string]int) // vendor and signers → index
	for _, role := range roles {
		vendor, _, bin := strings.Cut(role.Role, "-")
		if !bin || all {
			rows = append(rows, row{RoleReport: role, name: role.Role, oldest: role.Version})
			continue
		}
		key := vendor + " " + strings.Join(role.Signed, " ")
		i, ok := merged[key]
		if !ok {
			i = len(rows)
			merged[key] = i
			rows = append(rows, row{RoleReport: role, oldest: role.Version, bins: 1, name: "1 bin of " + vendor})
			continue
		}
		rows[i].merge(vendor, role)
	}
	return rows
}

func (r *row) merge(vendor string, role repo.RoleReport) {
	r.bins++
	r.name = fmt.Sprintf("%d bins of %s", r.bins, vendor)
	r.oldest, r.Version = min(r.oldest, role.Version), max(r.Version, role.Version)
	r.Targets += role.Targets
	if role.Expires.Before(r.Expires) {
		r.Expires = role.Expires
	}
}

// keyNames maps key IDs to the names of the key files that are here.
type keyNames map[string]string

func (a *app) keyNames() (keyNames, error) {
	all, err := a.store().List()
	names := make(keyNames)
	for _, k := range all {
		names[k.ID] = k.Name
	}
	return names, err
}

// join writes the keys by name, or by the start of their ID.
func (n keyNames) join(ids []string) string {
	words := make([]string, 0, len(ids))
	for _, id := range ids {
		name, ok := n[id]
		if !ok {
			name = id[:min(len(id), 12)]
		}
		words = append(words, name)
	}
	slices.Sort(words)
	return strings.Join(words, ", ")
}
