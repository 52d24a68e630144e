// Package cli is the command canonical-livepatch: what a person types, sent to
// the daemon over its sockets.
//
// Results go to standard output and everything else to standard error, because
// other programs parse the output. Failures are one line that says what could
// not be done and why, and a hint with the next step.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"livepatch/agent/internal/daemon"
	"livepatch/agent/internal/hooks"
)

// Exit codes. A machine that is not enabled is a failure as any other.
const (
	exitOK          = 0
	exitFailure     = 1
	exitUsage       = 2   // the command line cannot be understood
	exitInterrupted = 130 // as a shell says it of SIGINT
)

// An Env is what the command finds around it.
type Env struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	// RunDir holds the daemon's sockets, unless --run names another folder.
	RunDir string
	// Snap tells whether the command runs inside the snap; it decides which
	// advice fits.
	Snap bool
	// Snapd has a configuration that follows the daemon's; nil outside of a snap.
	Snapd hooks.Snapd
}

// Main runs the command and returns its exit code.
func Main(ctx context.Context, env Env, args []string) int {
	root := New(env) //nolint:contextcheck // the commands take theirs from ExecuteContext
	root.SetArgs(args)
	return report(env, root.ExecuteContext(ctx))
}

// New returns the command with all its subcommands.
func New(env Env) *cobra.Command {
	a := &app{env: env}
	root := &cobra.Command{
		Use:   "canonical-livepatch",
		Short: "Patch the running kernel without a reboot",
		Long: "canonical-livepatch talks to the daemon that keeps the running kernel patched.\n" +
			"Anybody may look; changing something needs root.",
		SilenceErrors:      true,
		SilenceUsage:       true,
		DisableSuggestions: true, // they would come inside the error; hint gives them
		Args:               cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return unknownCommand(cmd, args[0])
			}
			return cmd.Help()
		},
	}
	root.SetIn(env.Stdin)
	root.SetOut(env.Stdout)
	root.SetErr(env.Stderr)
	root.PersistentFlags().StringVar(&a.runDir, "run", env.RunDir, "`folder` that holds the daemon's sockets")
	root.PersistentFlags().DurationVar(&a.timeout, "timeout", 0, "how long to wait for the daemon (0: as long as the command usually takes)")
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return &usageError{err: err, hint: "see: " + cmd.CommandPath() + " --help"}
	})
	addVersionFlag(root)
	root.SetHelpCommand(helpCommand())
	root.AddCommand(
		enableCommand(a),
		disableCommand(a),
		statusCommand(a),
		refreshCommand(a),
		configCommand(a),
		kernelUpgradeRequiredCommand(a),
		versionCommand(a),
	)
	return root
}

// An app is what the subcommands have in common.
type app struct {
	env     Env
	runDir  string
	timeout time.Duration
}

// deadline returns a context for one request that usually takes less than usual.
func (a *app) deadline(ctx context.Context, usual time.Duration) (context.Context, context.CancelFunc) {
	if a.timeout > 0 {
		usual = a.timeout
	}
	return context.WithTimeoutCause(ctx, usual, &daemon.SlowError{After: usual})
}

// call sends one request to the daemon; see [daemon.Client.Call].
func (a *app) call(ctx context.Context, what, socket, method, path string, body any) ([]byte, error) {
	return daemon.Client{Dir: a.runDir}.Call(ctx, what, socket, method, path, body)
}

// print writes what the daemon has answered to standard output, ending with a
// newline if there is anything.
func (a *app) print(text []byte) error {
	out := printable(string(text))
	if out != "" && !strings.HasSuffix(out, "\n") {
		out += "\n"
	}
	if _, err := io.WriteString(a.env.Stdout, out); err != nil {
		return fmt.Errorf("cannot write to standard output: %w", err)
	}
	return nil
}

// report tells the user of err, if there is one, and returns the exit code.
func report(env Env, err error) int {
	var notEnabled *daemon.NotEnabledError
	switch {
	case err == nil:
		return exitOK
	case errors.Is(err, errQuiet):
		return exitFailure
	case errors.As(err, &notEnabled):
		// Other programs look for this text, and for the exit code.
		_, _ = fmt.Fprintln(env.Stderr, printable(notEnabled.Text))
		if notEnabled.Hint != "" {
			_, _ = fmt.Fprintln(env.Stderr, "hint:", printableLine(notEnabled.Hint))
		}
		return exitFailure
	}
	// If standard error cannot be written to there is nobody left to tell.
	_, _ = fmt.Fprintln(env.Stderr, "canonical-livepatch: error:", printableLine(err.Error()))
	if h := hint(env, err); h != "" {
		_, _ = fmt.Fprintln(env.Stderr, "canonical-livepatch: hint:", printableLine(h))
	}
	return exitCode(err)
}

func exitCode(err error) int {
	switch {
	case errors.As(err, new(*usageError)):
		return exitUsage
	case errors.Is(err, context.Canceled):
		return exitInterrupted
	default:
		return exitFailure
	}
}

// hint says what the user can do about err, or "" if nothing useful is known.
func hint(env Env, err error) string {
	var usage *usageError
	var answer *daemon.RefusalError
	var slow *daemon.SlowError
	switch {
	case errors.As(err, &usage):
		return usage.hint
	case errors.As(err, &answer) && answer.Hint != "":
		return answer.Hint
	case errors.Is(err, os.ErrPermission):
		return "run it with sudo"
	case errors.Is(err, daemon.ErrAway) && env.Snap:
		return "start it with: sudo " + env.service("start")
	case errors.Is(err, daemon.ErrAway):
		return "start it with: sudo " + env.service("start") + "; if its sockets lie elsewhere, name the folder with --run"
	case errors.As(err, &slow) && slow.Changes:
		return "the daemon may still be at work; see: canonical-livepatch status"
	case errors.As(err, &slow):
		return "if this goes on, restart it with: sudo " + env.service("restart")
	default:
		return ""
	}
}

// service returns the command that starts or restarts the daemon.
func (e Env) service(verb string) string {
	if e.Snap {
		return "snap " + verb + " canonical-livepatch.canonical-livepatchd"
	}
	return "systemctl " + verb + " canonical-livepatchd"
}

// errQuiet makes the command exit with 1 without a word: the exit code is the
// answer.
var errQuiet = errors.New("no")

// A usageError is a command line that cannot be understood.
type usageError struct {
	err  error
	hint string
}

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

// usage returns a usageError that sends the user to the help of cmd.
func usage(cmd *cobra.Command, format string, args ...any) error {
	return &usageError{err: fmt.Errorf(format, args...), hint: "see: " + cmd.CommandPath() + " --help"}
}

// unknownCommand returns the error for a subcommand that does not exist.
func unknownCommand(root *cobra.Command, name string) error {
	err := &usageError{
		err:  fmt.Errorf("cannot run %q: there is no such command", name),
		hint: "see: " + root.Name() + " --help",
	}
	root.SuggestionsMinimumDistance = 2
	if near := root.SuggestionsFor(name); len(near) > 0 {
		err.hint = "did you mean: " + root.Name() + " " + strings.Join(near, ", or: "+root.Name()+" ")
	}
	return err
}

// atMost is cobra.MaximumNArgs with an error in our words.
func atMost(n int, what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) <= n {
			return nil
		}
		return usage(cmd, "cannot use %q: %s takes %s", args[n], cmd.Name(), what)
	}
}
