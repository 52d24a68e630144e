package sqlite

import (
	"fmt"
	"testing"
)

// Limit makes the database full at a number of pages.
func (d *DB) Limit(t *testing.T, pages int) {
	t.Helper()
	for _, h := range []handle{d.durable, d.lazy} {
		if _, err := h.pool.ExecContext(t.Context(), fmt.Sprintf("PRAGMA max_page_count = %d", pages)); err != nil {
			t.Fatal(err)
		}
	}
}
