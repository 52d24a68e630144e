package klp

import "io/fs"

// Over returns the Kernel whose files fsys has.
func Over(fsys fs.FS) *Kernel { return &Kernel{fsys: fsys} }
