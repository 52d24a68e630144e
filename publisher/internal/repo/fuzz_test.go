package repo

import (
	"testing"
	"time"
)

// FuzzParseConfig reads any content of repo.json: lifetimes are those of a role,
// or there are none.
func FuzzParseConfig(f *testing.F) {
	f.Add([]byte(`{"format":1,"lifetime_days":{"root":365,"targets":180,"vendor":90,"bin":30}}`))
	f.Add([]byte(`{"format":1,"lifetime_days":{"root":0,"targets":-1,"vendor":99999999999,"bin":1e3}}`))
	f.Add([]byte(`{"format":2}`))
	f.Add([]byte("null"))
	f.Add([]byte("{"))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := parseConfig(b)
		if err != nil {
			return
		}
		r := &Repo{config: c}
		for _, role := range []string{"root", "targets", "debian", "debian-3ff"} {
			if life := r.lifetime(role); life < 24*time.Hour || life > 3650*24*time.Hour {
				t.Errorf("%s lives %v", role, life)
			}
		}
	})
}
