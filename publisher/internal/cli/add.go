package cli

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"livepatch/internal/patch"
	"livepatch/internal/service"
	"livepatch/publisher/internal/description"
	"livepatch/publisher/internal/kernelimage"
	"livepatch/publisher/internal/keys"
	"livepatch/publisher/internal/module"
	"livepatch/publisher/internal/repo"
)

var (
	errNoBuildID   = errors.New("build-id of the kernel is not known")
	errOtherKernel = errors.New("module was built for another kernel")
)

const descriptionHelp = `kernel:
  flavour: amd64
  version: 6.1.187-1          # of the distribution
  release: 6.1.0-53-amd64     # optional here; read from the module and compared
  arch: x86_64                # optional here, too
version: "113.1"              # of the patch
notice: LSN-0113-1
sequence: 1                   # optional: one above the last
fixes:
  - name: CVE-2025-68263
    priority: high            # negligible, low, medium, high or critical
    summary: One sentence.    # optional
    bug: "LP: #1851550"       # optional
support:                      # needed with the first patch for a kernel
  from: 2026-11-22
  until: 2027-11-22           # the last day
unpatchable:                  # optional: replaces the kernel's list
  - name: CVE-2025-40300
    priority: medium
    fixed_in: 6.1.0-54-amd64  # kernel to install instead`

// addFlags are what "add" is told about a module.
type addFlags struct {
	vendor, description, vmlinuz, buildID string
	provenance, builder                   string
	moduleCert                            string
	sources                               []string
}

func (a *app) addCommand() *cobra.Command {
	var f addFlags
	cmd := &cobra.Command{
		Use:   "add MODULE.ko --vendor NAME --description FILE [--vmlinuz FILE | --build-id HEX]",
		Short: "Sign a livepatch and add it to the repository",
		Long: `Add a module built for one kernel. Architecture, kernel release and name are
read from the module, the build-id from the kernel image; without --vmlinuz and
--build-id it is that of the patches published for this kernel before.

Where kernels demand signatures of their own, as with Secure Boot, a module is
signed before it is added, see "module"; --module-cert says with which key, and
machines learn it from the metadata.

How the module was built is published beside it, for people to look up later:
what --provenance says, or what is known here, with --source and --builder.

The module is called lkp_<vendor>_<kernel>_<flavour>_<version>.ko. The description is YAML:

` + descriptionHelp,
		Example: "  livepatch-publish --repo R add lkp_Debian_6_1_0_53_amd64_113.ko --vendor debian \\\n" +
			"      --description patch.yaml --vmlinuz /boot/vmlinuz-6.1.0-53-amd64",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.edit(func(r *repo.Repo, ring *keys.Ring) error {
				addition, err := f.addition(r, args[0])
				if err == nil {
					err = a.moduleSigner(r, f.moduleCert, &addition)
				}
				if err == nil {
					addition.Provenance, err = a.provenance(cmd.Context(), r, ring, f, addition)
				}
				if err != nil {
					return fmt.Errorf("cannot add %q: %w", args[0], err)
				}
				added, err := r.Add(cmd.Context(), ring, f.vendor, []repo.Addition{addition})
				if err != nil {
					return err
				}
				a.printAdded(added[0], addition.Module)
				return nil
			})
		},
	}
	f.register(cmd)
	return cmd
}

func (f *addFlags) register(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&f.vendor, "vendor", "", "`name` of the vendor")
	flags.StringVar(&f.description, "description", "", "`file` that says what the patch is for (YAML)")
	flags.StringVar(&f.vmlinuz, "vmlinuz", "", "kernel image `file` to read the build-id from")
	flags.StringVar(&f.buildID, "build-id", "", "build-id of vmlinux in `hex`adecimal")
	flags.StringVar(&f.moduleCert, "module-cert", "", "`file` of the certificate whose key signed the module (default: it is unsigned)")
	flags.StringVar(&f.provenance, "provenance", "", "`file` that says how the module was built: an in-toto statement with SLSA provenance v1 in a DSSE envelope, signed by a key of the vendor (default: one is made)")
	flags.StringVar(&f.builder, "builder", "", "`URI` of what built the module, for the provenance that is made (default: the key that signs)")
	flags.StringArrayVar(&f.sources, "source", nil, "what the module was built from, for the provenance that is made, `URI=ALGORITHM:HEX` (can be repeated)")
	cmd.MarkFlagsMutuallyExclusive("vmlinuz", "build-id")
	cmd.MarkFlagsMutuallyExclusive("provenance", "builder")
	cmd.MarkFlagsMutuallyExclusive("provenance", "source")
	for _, name := range []string{"vendor", "description"} {
		cobra.CheckErr(cmd.MarkFlagRequired(name))
	}
}

func (a *app) printAdded(added repo.Added, m patch.Module) {
	if added.Unchanged {
		fmt.Fprintf(a.Stdout, "Nothing to do: %s is in the repository.\n", added.Target)
		return
	}
	fmt.Fprintf(a.Stdout, "Added %s: version %s, sequence %d, for kernel %s (%s) with build-id %s.\n",
		added.Target, m.Version, m.Sequence, m.Release, m.Arch, m.BuildID)
	if m.SigningKey == "" {
		fmt.Fprintln(a.Stdout, "It is not signed for kernels: machines whose kernel demands that, as with Secure Boot, do not get it.")
		return
	}
	fmt.Fprintf(a.Stdout, "It is signed for kernels with key %s.\n", m.SigningKey)
}

// addition reads and checks everything, and changes nothing.
func (f addFlags) addition(r *repo.Repo, file string) (repo.Addition, error) {
	d, err := readDescription(f.description, (*description.Description).ForPatch)
	if err != nil {
		return repo.Addition{}, err
	}
	content, err := readModule(file)
	if err != nil {
		return repo.Addition{}, err
	}
	info, err := module.Read(content)
	if err != nil {
		return repo.Addition{}, err
	}
	if err := module.CheckFileName(filepath.Base(file), info.Name); err != nil {
		return repo.Addition{}, err
	}
	if err := sameKernel("description", d.Kernel.Release, d.Kernel.Arch, info); err != nil {
		return repo.Addition{}, err
	}
	ix, err := r.Index(f.vendor, info.Release, info.Arch)
	if err != nil && !errors.Is(err, repo.ErrNotFound) {
		return repo.Addition{}, err
	}
	m, err := f.module(d, info, ix)
	if err != nil {
		return repo.Addition{}, err
	}
	return repo.Addition{Module: m, Content: content, Fixes: d.PatchFixes(), Kernel: facts(d)}, nil
}

// module puts together what is signed about a module.
func (f addFlags) module(d description.Description, info module.Info, ix patch.Index) (patch.Module, error) {
	id, err := f.kernelBuildID(info, ix)
	if err != nil {
		return patch.Module{}, err
	}
	m := patch.Module{
		Kernel:  patch.Kernel{Arch: info.Arch, Release: info.Release, BuildID: id},
		Flavour: d.Kernel.Flavour, Name: info.Name, Version: d.Version, Notice: d.Notice,
		Sequence: cmp.Or(d.Sequence, sequence(ix, info.Name)),
		Fixes:    []string{},
	}
	for _, fix := range d.Fixes {
		m.Fixes = append(m.Fixes, fix.Name)
	}
	naming := module.Naming{
		Vendor: f.vendor, Release: info.Release, KernelVersion: d.Kernel.Version,
		Flavour: m.Flavour, Version: m.Version, Sequence: m.Sequence,
	}
	return m, naming.Check(info.Name)
}

// sequence is one above the last, or the one that the patch of that name has.
func sequence(ix patch.Index, name string) uint64 {
	for _, e := range ix.Patches {
		if e.Name == name {
			return e.Sequence
		}
	}
	return repo.Last(ix) + 1
}

func (f addFlags) kernelBuildID(info module.Info, ix patch.Index) (patch.BuildID, error) {
	switch {
	case f.buildID != "":
		id, err := patch.ParseBuildID(f.buildID)
		if err != nil {
			return "", fmt.Errorf("--build-id: %w", err)
		}
		return id, nil
	case f.vmlinuz != "":
		im, err := kernelimage.ReadFile(f.vmlinuz)
		if err != nil {
			return "", fmt.Errorf("cannot read kernel image %q: %w", f.vmlinuz, err)
		}
		return im.BuildID, sameKernel("kernel image "+f.vmlinuz, im.Release, im.Arch, info)
	}
	return knownBuildID(ix)
}

// knownBuildID returns the build-id of the patches published before, if they
// agree.
func knownBuildID(ix patch.Index) (patch.BuildID, error) {
	if len(ix.Patches) == 0 {
		return "", errNoBuildID
	}
	id := ix.Patches[0].BuildID
	for _, e := range ix.Patches {
		if e.BuildID != id {
			return "", fmt.Errorf("%w: patches were published for %s and %s", errNoBuildID, id, e.BuildID)
		}
	}
	return id, nil
}

// sameKernel compares what something says of the kernel with what the module
// was built for. What is not said fits.
func sameKernel(what, release, arch string, info module.Info) error {
	if release != "" && release != info.Release {
		return fmt.Errorf("%w: its vermagic says %s, %s says %s", errOtherKernel, info.Release, what, release)
	}
	if arch != "" && arch != info.Arch {
		return fmt.Errorf("%w: it is for %s, %s says %s", errOtherKernel, info.Arch, what, arch)
	}
	return nil
}

func facts(d description.Description) repo.KernelFacts {
	f := repo.KernelFacts{Version: d.Kernel.Version, Unpatchable: d.PatchUnpatchable()}
	if d.Support != nil {
		f.From, f.Until = d.Support.From, d.Support.Until
	}
	return f
}

// readDescription reads a description that has what it is needed for.
func readDescription(name string, enough func(*description.Description) error) (description.Description, error) {
	b, err := readFile(name, description.MaxLength)
	if err != nil {
		return description.Description{}, fmt.Errorf("cannot read description: %w", err)
	}
	d, err := description.Parse(b)
	if err == nil {
		err = enough(&d)
	}
	if err != nil {
		return description.Description{}, fmt.Errorf("%s: %w", name, err)
	}
	return d, nil
}

func readModule(name string) ([]byte, error) {
	b, err := readFile(name, service.MaxModule)
	if err != nil {
		return nil, fmt.Errorf("cannot read module: %w", err)
	}
	return b, nil
}

// readFile reads a file of at most limit bytes.
func readFile(name string, limit int64) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("%s: %w (%d bytes)", name, patch.ErrTooLarge, limit)
	}
	return b, nil
}
