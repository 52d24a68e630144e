// Command livepatch-publish signs kernel livepatches and brings them to a
// livepatch service. It holds the offline keys.
package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"syscall"
	"time"

	"golang.org/x/net/http/httpproxy"
	"golang.org/x/term"

	"livepatch/publisher/internal/cli"
	"livepatch/publisher/internal/keys"
	"livepatch/publisher/internal/sshagent"
	"livepatch/publisher/internal/token"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	ask := terminal()
	tokens := &token.Backend{PIN: pin(ask)}
	code := cli.Main(ctx, environment(ask, tokens), os.Args[1:])
	stop()
	if err := tokens.Close(); err != nil {
		fmt.Fprintln(os.Stderr, "livepatch-publish: cannot log out of a token:", err)
	}
	os.Exit(code)
}

// prompter asks the person at the terminal.
type prompter func(ctx context.Context, prompt string) ([]byte, error)

// pin takes the PIN of a token from the environment, else from the terminal.
func pin(ask prompter) func(ctx context.Context, key string) ([]byte, error) {
	return func(ctx context.Context, key string) ([]byte, error) {
		if s := os.Getenv("LIVEPATCH_PIN"); s != "" {
			return []byte(s), nil
		}
		if ask == nil {
			return nil, cli.ErrNoPIN
		}
		return ask(ctx, "PIN of the token with key "+key+": ")
	}
}

// environment is the only place that asks for environment variables and the
// terminal.
func environment(ask prompter, tokens *token.Backend) cli.Env {
	proxy := httpproxy.FromEnvironment().ProxyFunc()
	return cli.Env{
		Stdout:     os.Stdout,
		Stderr:     os.Stderr,
		Passphrase: os.Getenv("LIVEPATCH_PASSPHRASE"),
		Ask:        ask,
		Backends: map[string]keys.Backend{
			token.Scheme:    tokens,
			sshagent.Scheme: &sshagent.Backend{Socket: os.Getenv("SSH_AUTH_SOCK")},
		},
		Proxy: func(r *http.Request) (*url.URL, error) { return proxy(r.URL) },
		Now:   time.Now,
	}
}

// terminal returns how to ask the person at the terminal, nil if there is none.
// It is asked directly, so that standard input and output stay free.
func terminal() prompter {
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil {
		return nil
	}
	return func(ctx context.Context, prompt string) ([]byte, error) {
		fd := int(tty.Fd())
		before, err := term.GetState(fd)
		if err != nil {
			return nil, err
		}
		fmt.Fprint(tty, prompt)
		defer fmt.Fprintln(tty)
		type answer struct {
			b   []byte
			err error
		}
		answers := make(chan answer, 1)
		go func() {
			b, err := term.ReadPassword(fd)
			answers <- answer{b, err}
		}()
		select {
		case a := <-answers:
			return a.b, a.err
		case <-ctx.Done():
			// The read cannot be interrupted, it ends with the program; the
			// terminal must show again what is typed.
			return nil, errors.Join(context.Cause(ctx), term.Restore(fd, before))
		}
	}
}
