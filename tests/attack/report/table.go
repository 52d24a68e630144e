package report

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"unicode/utf8"
)

// ErrThrough is what a table ends with in which an attack got through, or that
// is empty.
var ErrThrough = errors.New("an attack got through")

// Read reads rows. Of a test that ran twice the later row counts.
func Read(in io.Reader) ([]Row, error) {
	var rows []Row
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var r Row
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			return nil, fmt.Errorf("cannot read row %q: %w", lines.Text(), err)
		}
		rows = slices.DeleteFunc(rows, func(old Row) bool { return old.Test == r.Test && old.Attack == r.Attack })
		rows = append(rows, r)
	}
	return rows, lines.Err()
}

// widest is how many characters of a cell a table shows.
const widest = 64

// Print prints rows as a table, by actor and attack, and what users saw if
// verbose. It returns [ErrThrough] unless every attack was stopped or bounded.
func Print(w io.Writer, rows []Row, verbose bool) error {
	rows = slices.Clone(rows)
	slices.SortStableFunc(rows, func(a, b Row) int {
		return strings.Compare(string(a.Hostile)+"\x00"+a.Test, string(b.Hostile)+"\x00"+b.Test)
	})
	tab := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tab, "ATTACK\tWHO IS HOSTILE\tSTOPPED BY\tRESULT")
	count := map[Result]int{}
	for _, r := range rows {
		count[r.Result]++
		fmt.Fprintf(tab, "%s\t%s\t%s\t%s\n", cut(r.Attack, widest), r.Hostile, cut(r.StoppedBy, widest), r.Result)
	}
	if err := tab.Flush(); err != nil {
		return fmt.Errorf("cannot print table: %w", err)
	}
	for _, r := range rows {
		if verbose && r.Sees != "" {
			fmt.Fprintf(w, "\n%s: %s\n  the user sees: %s\n", r.Test, r.Attack, r.Sees)
		}
	}
	through := len(rows) - count[Stopped] - count[Bounded]
	fmt.Fprintf(w, "\n%d attacks: %d stopped, %d bounded, %d got through\n", len(rows), count[Stopped], count[Bounded], through)
	if through > 0 || len(rows) == 0 {
		return ErrThrough
	}
	return nil
}

// Unlisted returns the tests of rows that a document does not name: "TestX" for a
// row of "TestX/sentence".
func Unlisted(rows []Row, document string) []string {
	var missing []string
	for _, r := range rows {
		name, _, _ := strings.Cut(r.Test, "/")
		if !strings.Contains(document, "`"+name) && !slices.Contains(missing, name) {
			missing = append(missing, name)
		}
	}
	return missing
}

// cut shortens text to n characters.
func cut(text string, n int) string {
	if utf8.RuneCountInString(text) <= n {
		return text
	}
	return string([]rune(text)[:n-1]) + "…"
}
