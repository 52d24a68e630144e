package repo

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"livepatch/internal/patch"
)

// onlineLives is how long what a livepatch-server signs is valid.
var onlineLives = map[string]time.Duration{
	metadata.TIMESTAMP: 24 * time.Hour,
	metadata.SNAPSHOT:  48 * time.Hour,
	patch.RolloutRole:  24 * time.Hour,
}

// isOnline tells whether a role is signed by the server.
func isOnline(role string) bool { return onlineLives[role] != 0 }

// OpenForeign opens what is not ours to change: a copy of what a service serves,
// or a mirror's folder. It takes no lock, and nothing can be changed. The error
// matches [ErrNone] if there is nothing of the kind. With metadataOnly targets
// are not looked at, for they are not there.
func OpenForeign(dir string, now time.Time, metadataOnly bool) (*Repo, error) {
	r := &Repo{dir: dir, now: now.UTC().Truncate(time.Second), config: defaultConfig(), metadataOnly: metadataOnly, crash: func(string) {}}
	r.forget()
	var err error
	r.versions, err = r.listVersions()
	if errors.Is(err, fs.ErrNotExist) || err == nil && r.versions[metadata.ROOT] == 0 {
		err = ErrNone
	}
	if err != nil {
		return nil, fmt.Errorf("cannot open repository %q: %w", dir, err)
	}
	return r, nil
}

// verifyOnline checks what the server signs, if it is here: rollout, snapshot and
// timestamp, and that they fit together.
func (r *Repo) verifyOnline(rep *Report) {
	b, err := os.ReadFile(filepath.Join(r.dir, "metadata", "timestamp.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return // a publisher's own folder
	}
	if err != nil {
		rep.problem(doServer, "role timestamp: %v", err)
		return
	}
	timestamp, err := parse[metadata.TimestampType](b)
	if err != nil || timestamp.Signed.Meta["snapshot.json"] == nil {
		rep.problem(doServer, "role timestamp: cannot be read: %v", err)
		return
	}
	addRole(rep, r, metadata.TIMESTAMP, timestamp, timestamp.Signed.Version, timestamp.Signed.Expires, 0)
	meta := timestamp.Signed.Meta["snapshot.json"]
	b, err = r.Metadata(metadata.SNAPSHOT, meta.Version)
	if err == nil {
		err = meta.VerifyLengthHashes(b)
	}
	if err != nil {
		rep.problem(doServer, "role snapshot: %v", err)
		return
	}
	snapshot, err := parse[metadata.SnapshotType](b)
	if err != nil {
		rep.problem(doServer, "role snapshot: cannot be read: %v", err)
		return
	}
	addRole(rep, r, metadata.SNAPSHOT, snapshot, snapshot.Signed.Version, snapshot.Signed.Expires, 0)
	r.verifyListed(rep, snapshot)
}

// verifyListed checks that the snapshot lists what is here, and looks at rollout.
func (r *Repo) verifyListed(rep *Report, snapshot *metadata.Metadata[metadata.SnapshotType]) {
	for _, role := range r.Roles() {
		file := snapshot.Signed.Meta[role+".json"]
		switch {
		case role == metadata.ROOT:
		case file == nil:
			rep.problem(doServer, "role %s: the snapshot does not list it", role)
		case file.Version != r.versions[role]:
			rep.problem(doServer, "role %s: the newest version is %d, the snapshot lists %d", role, r.versions[role], file.Version)
		}
	}
	file := snapshot.Signed.Meta[patch.RolloutRole+".json"]
	if file == nil {
		rep.problem(doServer, "role rollout: the snapshot does not list it")
		return
	}
	b, err := r.Metadata(patch.RolloutRole, file.Version)
	if err != nil {
		rep.problem(doServer, "role rollout: %v", err)
		return
	}
	rollout, err := parse[metadata.TargetsType](b)
	if err != nil {
		rep.problem(doServer, "role rollout: cannot be read: %v", err)
		return
	}
	addRole(rep, r, patch.RolloutRole, rollout, rollout.Signed.Version, rollout.Signed.Expires, len(rollout.Signed.Targets))
}
