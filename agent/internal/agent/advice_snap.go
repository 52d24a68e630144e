package agent

import (
	"errors"
	"io/fs"

	"livepatch/agent/internal/config"
	"livepatch/agent/internal/fetch"
	"livepatch/agent/internal/loader"
)

// adviceInSnap is what differs from advice inside a snap.
var adviceInSnap = []struct {
	err  error
	hint string
}{
	{ErrNotEnabled, "enable it with: sudo snap set canonical-livepatch token=TOKEN"},
	{fetch.ErrToken, "get a token from the service and run: sudo snap set canonical-livepatch token=TOKEN"},
	{fetch.ErrTokenOld, "get a new token and run: sudo snap set canonical-livepatch token=TOKEN"},
	{fetch.ErrTokenGone, "get a new token and run: sudo snap set canonical-livepatch token=TOKEN"},
	{fs.ErrPermission, "connect what is missing; see: snap connections canonical-livepatch"},
	{config.ErrCorrupt, "repair the file or move it away, then run: sudo snap restart canonical-livepatch.canonical-livepatchd"},
	{loader.ErrForbidden, "see why in its log: sudo snap logs canonical-livepatch.loader"},
	{loader.ErrAway, "see why in its log: sudo snap logs canonical-livepatch.loader; and that it is enabled: snap services canonical-livepatch"},
}

// HintInSnap is [HintFor] inside a snap.
func HintInSnap(err error) string {
	var p *PatchError
	if errors.As(err, &p) {
		return p.Hint
	}
	for _, row := range adviceInSnap {
		if errors.Is(err, row.err) {
			return row.hint
		}
	}
	return Hint(err)
}

// hint says what a person can do about err, here.
func (a *Agent) hint(err error) string {
	if a.snapd != nil {
		return HintInSnap(err)
	}
	return HintFor(err)
}
