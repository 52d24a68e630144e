package kmsg

import (
	"io"
	"io/fs"
	"slices"
	"strings"

	loaderv1 "livepatch/proto/loader/v1"
)

// Limits on records of earlier boots: those of the last crash come first, and of one
// that says everything in parts the newest part says most.
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
	found := Parse(records(fsys), modules)
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

// records returns what the kernel has kept. A crash is written in parts, the end of
// the log first, each numbered higher than the one before (fs/pstore/inode.c).
func records(fsys fs.FS) string {
	names, _ := fs.Glob(fsys, "sys/fs/pstore/dmesg-*")
	slices.Reverse(names)
	var all strings.Builder
	for _, name := range names[:min(len(names), maxRecords)] {
		// One that was compressed and could not be unpacked is no text, and says nothing.
		f, err := fsys.Open(name)
		if err != nil {
			continue // not permitted, or just deleted
		}
		_, _ = io.Copy(&all, io.LimitReader(f, maxRecord)) // as far as it can be read
		_ = f.Close()
		all.WriteString("\n")
	}
	return all.String()
}
