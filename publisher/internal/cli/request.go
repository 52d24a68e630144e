package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"livepatch/internal/durable"
	"livepatch/publisher/internal/keys"
	"livepatch/publisher/internal/repo"
	"livepatch/publisher/internal/request"
	"livepatch/publisher/internal/sign"
)

// Conditions of signing what others have prepared.
var (
	errNobodySigned = errors.New("nobody has signed the request, so nothing shows that it arrived as it was sent")
	errOtherID      = errors.New("request is another one than was announced")
	errDeclined     = errors.New("it was not signed")
)

// writeRequest writes what others have to sign, and says what it is.
func (a *app) writeRequest(r *repo.Repo, file string) error {
	pending, err := r.Pending()
	if err != nil {
		return err
	}
	b, err := pending.Encode()
	if err != nil {
		return err
	}
	if err := durable.WriteFile(file, b, 0o644); err != nil {
		return fmt.Errorf("cannot write request: %w", err)
	}
	review, err := request.Open(pending)
	if err != nil {
		return err
	}
	fmt.Fprintf(a.Stdout, "The change waits for signatures. Request %s is in %s.\n", review.ID(), file)
	return nil
}

func (a *app) pendingCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "pending", Short: "Manage the change that waits for signatures of others"}
	cmd.AddCommand(a.pendingShowCommand(), a.pendingCompleteCommand(), a.pendingDiscardCommand())
	return cmd
}

func (a *app) pendingShowCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "show",
		Short:   "Show the change that waits, and whose signatures it lacks",
		Long:    "Show the change that waits, and whose signatures it lacks. With --request the\nrequest is written again, with the signatures that have come in.",
		Example: "  livepatch-publish --repo R pending show\n  livepatch-publish --repo R pending show --request request.json",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			r, err := a.open()
			if err != nil {
				return err
			}
			return errors.Join(a.showPending(r), r.Close())
		},
	}
}

func (a *app) showPending(r *repo.Repo) error {
	pending, err := r.Pending()
	if err != nil {
		return err
	}
	review, err := request.Open(pending)
	if err != nil {
		return err
	}
	ring, err := a.ring()
	if err != nil {
		return err
	}
	if err := a.printReview(review, ring); err != nil || a.request == "" {
		return err
	}
	return a.writeRequest(r, a.request)
}

func (a *app) pendingCompleteCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "complete ANSWER…",
		Short:   "Take the signatures of others, and make the change",
		Example: "  livepatch-publish --repo R pending complete answer.json",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var answers []request.Answer
			for _, name := range args {
				b, err := readFile(name, request.MaxSize)
				if err != nil {
					return fmt.Errorf("cannot read answer: %w", err)
				}
				answer, err := request.ParseAnswer(b)
				if err != nil {
					return fmt.Errorf("%s: %w", name, err)
				}
				answers = append(answers, answer)
			}
			return a.edit(func(r *repo.Repo, ring *keys.Ring) error {
				if err := r.Complete(cmd.Context(), ring, answers...); err != nil {
					return fmt.Errorf("cannot complete the change: %w", err)
				}
				fmt.Fprintln(a.Stdout, "The change has all signatures and is made.")
				return nil
			})
		},
	}
}

func (a *app) pendingDiscardCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "discard",
		Short:   "Give up the change that waits",
		Example: "  livepatch-publish --repo R pending discard",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			r, err := a.open()
			if err != nil {
				return err
			}
			if err := errors.Join(r.Discard(), r.Close()); err != nil {
				return fmt.Errorf("cannot discard: %w", err)
			}
			fmt.Fprintln(a.Stdout, "The change that waited is given up.")
			return nil
		},
	}
}

// signFlags are what "sign" is told.
type signFlags struct {
	output, id, root string
	yes              bool
}

func (a *app) signCommand() *cobra.Command {
	var f signFlags
	cmd := &cobra.Command{
		Use:   "sign REQUEST [--output ANSWER] [--root FILE] [--id HEX] [--yes]",
		Short: "See, and sign, what somebody else has prepared",
		Long: `Check a request that somebody made with --request on another machine, say in words
what would be signed, and sign it with the keys that are here. No repository is
needed. The answer holds the signatures and nothing else; who made the request
takes them with "pending complete". Without --output the request is only shown.

A request that nobody has signed yet shows by itself only that it is consistent:
ask who made it for the ID, by another way than the file came, and give it with
--id. With --root, a root that you trust (such as the one that machines are
shipped with), what is in force is checked as well.`,
		Example: "  livepatch-publish sign request.json --keys K\n  livepatch-publish sign request.json --keys K --output answer.json",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := a.signRequest(cmd.Context(), args[0], f); err != nil {
				return fmt.Errorf("cannot sign %q: %w", args[0], err)
			}
			return nil
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.output, "output", "", "`file` to write the signatures to (default: sign nothing)")
	flags.StringVar(&f.id, "id", "", "refuse a request with another ID than this `hex`adecimal one")
	flags.StringVar(&f.root, "root", "", "`file` of a root that you trust")
	flags.BoolVar(&f.yes, "yes", false, "do not ask before signing")
	return cmd
}

func (a *app) signRequest(ctx context.Context, name string, f signFlags) error {
	review, err := readRequest(name, f)
	if err != nil {
		return err
	}
	ring, err := a.ring()
	if err != nil {
		return err
	}
	if err := a.printReview(review, ring); err != nil || f.output == "" {
		return err
	}
	if len(review.Unsigned()) > 0 && f.id == "" {
		return fmt.Errorf("%w: role %s", errNobodySigned, review.Unsigned()[0])
	}
	if err := a.confirm(ctx, f.yes); err != nil {
		return err
	}
	answer, err := review.Sign(ctx, ring)
	if err != nil {
		return err
	}
	if len(answer.Signatures) == 0 {
		return fmt.Errorf("%w: none in %s can sign what is missing", sign.ErrMissing, a.store().Dir)
	}
	b, err := answer.Encode()
	if err != nil {
		return err
	}
	if err := durable.WriteFile(f.output, b, 0o644); err != nil {
		return err
	}
	fmt.Fprintf(a.Stdout, "Signed %d times; the answer is in %s.\n", len(answer.Signatures), f.output)
	return nil
}

// readRequest reads a request and checks it as far as the flags allow.
func readRequest(name string, f signFlags) (*request.Review, error) {
	b, err := readFile(name, request.MaxSize)
	if err != nil {
		return nil, err
	}
	r, err := request.ParseRequest(b)
	if err != nil {
		return nil, err
	}
	review, err := request.Open(r)
	if err != nil {
		return nil, err
	}
	if f.id != "" && !strings.EqualFold(f.id, review.ID()) {
		return nil, fmt.Errorf("%w: its ID is %s", errOtherID, review.ID())
	}
	if f.root == "" {
		return review, nil
	}
	trusted, err := os.ReadFile(f.root)
	if err != nil {
		return nil, err
	}
	return review, review.FollowsFrom(trusted)
}

func (a *app) printReview(review *request.Review, ring *keys.Ring) error {
	passages, err := review.Describe(ring.Name, a.Now())
	if err != nil {
		return err
	}
	fmt.Fprintf(a.Stdout, "Request %s\n", review.ID())
	for _, p := range passages {
		fmt.Fprintf(a.Stdout, "\n%s\n", p.Title)
		for _, line := range p.Lines {
			fmt.Fprintf(a.Stdout, "  %s\n", line)
		}
	}
	fmt.Fprintln(a.Stdout)
	return nil
}

// confirm asks the person at the terminal whether to sign what was shown.
func (a *app) confirm(ctx context.Context, yes bool) error {
	if yes {
		return nil
	}
	if a.Ask == nil {
		return fmt.Errorf("%w: there is no terminal to ask on", errDeclined)
	}
	answer, err := a.Ask(ctx, "Sign this? Type yes: ")
	if err != nil {
		return err
	}
	if string(answer) != "yes" {
		return errDeclined
	}
	return nil
}
