// Package cli is the command line of livepatch-publish, one file a command.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"time"

	"github.com/secure-systems-lab/go-securesystemslib/encrypted"
	"github.com/spf13/cobra"

	"livepatch/internal/patch"
	"livepatch/publisher/internal/description"
	"livepatch/publisher/internal/kernelimage"
	"livepatch/publisher/internal/keys"
	"livepatch/publisher/internal/modsig"
	"livepatch/publisher/internal/module"
	"livepatch/publisher/internal/provenance"
	"livepatch/publisher/internal/push"
	"livepatch/publisher/internal/repo"
	"livepatch/publisher/internal/request"
	"livepatch/publisher/internal/sign"
	"livepatch/publisher/internal/sshagent"
	"livepatch/publisher/internal/token"
)

const program = "livepatch-publish"

// ErrNoPIN reports that there is nobody to ask for the PIN of a token.
var ErrNoPIN = errors.New("there is no terminal to ask for the PIN on")

var errUsage = errors.New("cannot understand the command line")

// An Env is what a command takes from its surroundings.
type Env struct {
	Stdout, Stderr io.Writer
	// Passphrase of LIVEPATCH_PASSPHRASE, "" if it is not set.
	Passphrase string
	// Ask reads a line from the terminal without showing it; nil if there is no
	// terminal.
	Ask func(ctx context.Context, prompt string) ([]byte, error)
	// Proxy chooses a proxy for requests; nil means none.
	Proxy func(*http.Request) (*url.URL, error)
	// Backends open keys that are not in files, by the scheme of their URIs.
	Backends map[string]keys.Backend
	// Now is the time.
	Now func() time.Time
	// Strength of the encryption of new keys; 0 means strong.
	Strength encrypted.KDFParameterStrength
}

// An app is what the commands share: the surroundings, and the global flags.
type app struct {
	Env
	repoDir        string
	keysDir        string
	passphraseFile string
	request        string // file for what others have to sign
}

// Main runs the command and returns its exit code.
func Main(ctx context.Context, env Env, args []string) int {
	root := New(env)
	root.SetArgs(doubleDashes(args))
	root.SetOut(env.Stdout)
	root.SetErr(env.Stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	fmt.Fprintf(env.Stderr, "%s: error: %v\n", program, err)
	if h := hint(err); h != "" {
		fmt.Fprintf(env.Stderr, "%s: hint: %s\n", program, h)
	}
	return 1
}

// New returns the tree of commands.
func New(env Env) *cobra.Command {
	a := &app{Env: env}
	root := &cobra.Command{
		Use:   program,
		Short: "Sign kernel livepatches and bring them to a livepatch service",
		Long: `livepatch-publish keeps a signed repository of kernel livepatches in a folder.
It holds the offline keys, those that decide which module is valid.`,
		SilenceErrors:      true,
		SilenceUsage:       true,
		DisableSuggestions: true, // they would come on lines of their own
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return fmt.Errorf("%w: %s: %w", errUsage, cmd.CommandPath(), err)
	})
	root.CompletionOptions.HiddenDefaultCmd = true
	flags := root.PersistentFlags()
	flags.StringVar(&a.repoDir, "repo", ".", "`folder` of the repository")
	flags.StringVar(&a.keysDir, "keys", "", "`folder` of the key files (default REPO/keys)")
	flags.StringVar(&a.passphraseFile, "passphrase-file", "", "`file` with the passphrase of the keys (default: LIVEPATCH_PASSPHRASE, or the terminal)")
	flags.StringVar(&a.request, "request", "", "`file` for what others have to sign, if a change lacks signatures (default: fail)")
	root.AddCommand(
		a.initCommand(), a.vendorCommand(), a.addCommand(), a.kernelCommand(), a.listCommand(), a.showCommand(),
		a.refreshCommand(), a.verifyCommand(), a.pushCommand(), a.rootCommand(), a.targetsCommand(), a.onlineCommand(),
		a.keysCommand(), a.moduleCommand(), a.signCommand(), a.pendingCommand(), a.generateCommand(), a.versionCommand(),
	)
	return root
}

var singleDash = regexp.MustCompile(`^-[a-z][a-z-]+(=|$)`)

// doubleDashes makes "-repo R" mean the same as "--repo R", as it does in the
// programs of this system that use package flag. No flag has a short form.
func doubleDashes(args []string) []string {
	args = slices.Clone(args)
	for i, arg := range args {
		if arg == "--" {
			break
		}
		if singleDash.MatchString(arg) {
			args[i] = "-" + arg
		}
	}
	return args
}

// open opens the repository. The caller must close it.
func (a *app) open() (*repo.Repo, error) { return repo.Open(a.repoDir, a.Now()) }

// edit opens the repository, calls do with it and the keys, and closes it.
func (a *app) edit(do func(r *repo.Repo, ring *keys.Ring) error) error {
	r, err := a.open()
	if err != nil {
		return err
	}
	r.Defer = a.request != ""
	ring, err := a.ring()
	if err == nil {
		err = do(r, ring)
	}
	if errors.Is(err, repo.ErrDeferred) && a.request != "" {
		err = a.writeRequest(r, a.request)
	}
	return errors.Join(err, r.Close())
}

// store returns the folder of keys.
func (a *app) store() *keys.Store {
	dir := a.keysDir
	if dir == "" {
		dir = filepath.Join(a.repoDir, "keys")
	}
	return &keys.Store{Dir: dir, Strength: a.Strength}
}

// note tells a person something that is not a result.
func (a *app) note(format string, args ...any) {
	fmt.Fprintf(a.Stderr, program+": "+format+"\n", args...)
}

// hint says what the user can do about err, or "" if nothing useful is known.
func hint(err error) string {
	for _, h := range hints {
		if errors.Is(err, h.condition) {
			return h.text
		}
	}
	return ""
}

var hints = []struct {
	condition error
	text      string
}{
	{errUsage, "see: " + program + " help"},
	{errNoPassphrase, "give --passphrase-file FILE, or set LIVEPATCH_PASSPHRASE"},
	{errNoBuildID, "give --vmlinuz FILE (of the kernel the module was built for) or --build-id HEX"},
	{errOtherKernel, "build the module against the headers of the kernel that the description names"},
	{errUnverified, "undo what changed the files, or take the folder from a backup; do not push it"},
	{repo.ErrPending, "see it with: " + program + " pending show; end it with: " + program + " pending complete, or discard"},
	{repo.ErrDeferred, "send the request to somebody who can sign: " + program + " pending show --request FILE"},
	{repo.ErrNoChange, "a change waits if it was made with --request FILE and lacks signatures"},
	{repo.ErrKey, "see who may sign with: " + program + " verify, and the names of keys with: " + program + " keys"},
	{repo.ErrThreshold, "give --threshold N, or more keys with --add"},
	{errNoChange, "give --remove KEY, --add KEY, --threshold N or --all"},
	{errNobodySigned, "ask who sent it for its ID, by telephone say, and give --id HEX"},
	{errOtherID, "do not sign it; ask for the file again"},
	{errDeclined, "sign with --yes, or type yes, if it is what you want to sign"},
	{request.ErrTampered, "do not use it; ask for the file again, by another way"},
	{request.ErrMalformed, "a request is made with: " + program + " --request FILE; an answer with: " + program + " sign"},
	{request.ErrUnverified, "what it relies on is not in order, or machines could not follow it: " + program + " verify"},
	{request.ErrOther, "see the change that waits with: " + program + " pending show"},
	{keys.ErrPassphrase, "each key may have its own passphrase; see the keys with: " + program + " keys"},
	{keys.ErrExposed, "make it yours alone with: chmod go= FILE; if others may have read it, replace the key"},
	{keys.ErrScheme, "a place begins with pkcs11: or ssh-agent:; see: " + program + " keys add --help"},
	{keys.ErrNotFound, "see the keys with: " + program + " keys"},
	{keys.ErrExists, "give it another name; a key is never written over"},
	{ErrNoPIN, "put it into a file and name that in the URI, pin-source=file:FILE, or set LIVEPATCH_PIN"},
	{token.ErrNoCgo, "build it where there is a C compiler: CGO_ENABLED=1 go build ./publisher/cmd/livepatch-publish"},
	{token.ErrURI, "see the form with: " + program + " keys add --help"},
	{token.ErrNoKey, "see what the token holds with: pkcs11-tool --list-objects (package opensc); metadata is signed with an ed25519 key, modules with an RSA key"},
	{token.ErrPIN, "do not try too often, or the token locks; nothing was signed"},
	{sshagent.ErrURI, "see the fingerprints with: ssh-add -l"},
	{sshagent.ErrKind, "make one with: ssh-keygen -t ed25519"},
	{errUnnamed, "give the certificate of its key with --module-cert FILE; or take the signature off with: strip --strip-debug FILE"},
	{errFileExists, "give another name with --cert, or remove it; machines that have enrolled it know no other"},
	{keys.ErrKind, "give a name that is listed by: " + program + " keys; or a file of openssl genpkey -algorithm RSA"},
	{modsig.ErrUnsigned, "sign it with: " + program + " module sign FILE --key KEY --cert FILE"},
	{modsig.ErrMalformed, "sign it again with: " + program + " module sign FILE --key KEY --cert FILE"},
	{modsig.ErrUnsupported, "sign it again with: " + program + " module sign FILE --key KEY --cert FILE"},
	{modsig.ErrMismatch, "the file was changed after it was signed, by strip say: sign it last"},
	{modsig.ErrOtherKey, "give the certificate of that key, or sign it with this one"},
	{modsig.ErrCertificate, "make one with: " + program + " module certify --key KEY --cert FILE"},
	{modsig.ErrKey, "make one with: " + program + " keys create NAME --kmod"},
	{errNoSigner, "have somebody who has one make it, and give it with --provenance FILE"},
	{provenance.ErrMalformed, "see its form at https://slsa.dev/spec/v1.0/provenance"},
	{provenance.ErrSubject, "give the provenance of this very module"},
	{provenance.ErrUnsigned, "have a key of the vendor sign it; see who has one with: " + program + " verify"},
	{provenance.ErrSource, "write it like git+https://example.com/patches=gitCommit:0123456789012345678901234567890123456789"},
	{sign.ErrAbsent, "plug in the token, or start the agent and add the key to it"},
	{sign.ErrMissing, "bring the folder of the keys with --keys, or have others sign with --request FILE; see who must with: " + program + " verify"},
	{module.ErrName, "the kernel tells livepatches apart by name only: name each after what it is for"},
	{module.ErrNotELF, "give the .ko that the build made, not compressed"},
	{module.ErrTruncated, "copy the file again"},
	{module.ErrNoField, "build the module with kbuild, which writes these fields"},
	{patch.ErrTooLarge, "a livepatch has a few hundred KB; build it without debug information, or: strip --strip-debug FILE"},
	{patch.ErrNotLivepatch, `a livepatch says MODULE_INFO(livepatch, "Y") in its source`},
	{kernelimage.ErrNoBuildID, "take it from a machine that runs this kernel, in /sys/kernel/notes, and give --build-id HEX"},
	{kernelimage.ErrFormat, "give the vmlinux or vmlinuz of the kernel's package, or --build-id HEX"},
	{kernelimage.ErrTruncated, "copy the kernel image again"},
	{description.ErrField, "see what a description holds with: " + program + " add --help"},
	{repo.ErrNone, "make one with: " + program + " --repo FOLDER init; or say where it is with --repo"},
	{repo.ErrExists, "use it, or give another folder with --repo"},
	{repo.ErrLocked, "wait until the other " + program + " is done"},
	{repo.ErrCorrupt, "see what is wrong with: " + program + " verify; nothing was signed"},
	{repo.ErrVendor, "add it with: " + program + " vendor add NAME"},
	{repo.ErrTaken, "what is published never changes: give the new patch a new version, and the module its name"},
	{repo.ErrSequence, "leave sequence out of the description; it becomes one above the last"},
	{push.ErrToken, "make one on the server with: livepatch-admin publisher-token create"},
	{push.ErrCA, "give the CA of the service with --ca FILE"},
	{push.ErrServerName, "give --server the name that the certificate is for"},
	{push.ErrCertificate, "see its dates with: openssl s_client -connect HOST:PORT; renew it on the server"},
	{push.ErrTLS, "check the port of --server; livepatch-server speaks TLS 1.3 only"},
	{push.ErrURL, "tokens travel over HTTPS only"},
	{push.ErrDown, "check that livepatch-server runs there, and the port"},
	{push.ErrBusy, "try again later; what was uploaded need not be uploaded again"},
	{push.ErrConflict, "somebody else has published: work on the newest copy of the repository"},
	{push.ErrForeign, "check --server and --repo"},
	{push.ErrRejected, "see whether the repository is in order with: " + program + " verify"},
}
