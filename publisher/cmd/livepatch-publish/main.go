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
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := cli.Main(ctx, environment(), os.Args[1:])
	stop()
	os.Exit(code)
}

// environment is the only place that asks for environment variables and the
// terminal.
func environment() cli.Env {
	proxy := httpproxy.FromEnvironment().ProxyFunc()
	return cli.Env{
		Stdout:     os.Stdout,
		Stderr:     os.Stderr,
		Passphrase: os.Getenv("LIVEPATCH_PASSPHRASE"),
		Ask:        terminal(),
		Proxy:      func(r *http.Request) (*url.URL, error) { return proxy(r.URL) },
		Now:        time.Now,
	}
}

// terminal returns how to ask the person at the terminal, nil if there is none.
// It is asked directly, so that standard input and output stay free.
func terminal() func(ctx context.Context, prompt string) ([]byte, error) {
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
