package kmsg

import (
	"bytes"
	"cmp"
	"io"
	"io/fs"
	"slices"
	"strings"
	"time"

	loaderv1 "livepatch/proto/loader/v1"
)

// Limits on records of earlier boots; those of the last crash come first.
const (
	maxRecords = 64
	maxRecord  = 256 << 10 // bytes
)

// Find returns the complaints about some modules: those in records of earlier boots
// below sys/fs/pstore, which the kernel keeps in memory of the machine that survives a
// crash, and those in the log, which is of the boot boot.
func Find(fsys fs.FS, log func() string, boot string, modules []string) []Complaint {
	if len(modules) == 0 {
		return nil
	}
	var found []Complaint
	for _, dump := range dumps(fsys) {
		found = parse(found, dump, modules)
	}
	found = found[:min(len(found), maxComplaints/2)] // the present matters more
	for _, c := range Parse(log(), modules) {
		if c.BootID = boot; len(found) < maxComplaints {
			found = append(found, c)
		}
	}
	return found
}

// Report is Find for the loader's answer.
func Report(fsys fs.FS, log func() string, boot string, modules []string) (all []*loaderv1.Complaint) {
	for _, c := range Find(fsys, log, boot, modules) {
		all = append(all, &loaderv1.Complaint{Name: c.Module, Signature: c.Signature, Message: c.Message, BootId: c.BootID})
	}
	return all
}

// dumps returns what the kernel has kept, that of the last crash first. A crash is
// written in parts, the end of the log first and called Part1 (fs/pstore/platform.c).
func dumps(fsys fs.FS) []string {
	var all []string
	var dump strings.Builder
	for _, name := range records(fsys) {
		// One that was compressed and could not be unpacked is no text, and says nothing.
		f, err := fsys.Open(name)
		if err != nil {
			continue // not permitted, or just deleted
		}
		text, _ := io.ReadAll(io.LimitReader(f, maxRecord)) // as far as it can be read
		_ = f.Close()
		dump.Write(append(text, '\n'))
		if head, _, _ := bytes.Cut(text, []byte("\n")); bytes.HasSuffix(head, []byte(" Part1")) {
			all = append(all, dump.String())
			dump.Reset()
		}
	}
	return append(all, dump.String())
}

// records returns the files in which it is, the newest first. Those of one second are
// numbered in the order in which they were written; over all of its time a store that is
// a ring (ramoops) uses a number again.
func records(fsys fs.FS) (names []string) {
	files, _ := fs.Glob(fsys, "sys/fs/pstore/dmesg-*")
	written := make(map[string]time.Time, len(files))
	for _, name := range files {
		if info, err := fs.Stat(fsys, name); err == nil {
			written[name] = info.ModTime()
			names = append(names, name)
		}
	}
	slices.SortFunc(names, func(a, b string) int {
		return cmp.Or(written[b].Compare(written[a]), len(b)-len(a), cmp.Compare(b, a))
	})
	return names[:min(len(names), maxRecords)]
}
