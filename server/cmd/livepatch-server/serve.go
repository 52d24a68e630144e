package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"livepatch/server/internal/daemon"
	"livepatch/server/internal/layout"
	"livepatch/server/internal/notify"
)

// serveOptions are the options of serve as they were written.
type serveOptions struct {
	daemon.Config
	dir       string
	logLevel  string
	logFormat string
	rule      string
	atOnce    bool
	secrets   string
}

func serveCommand() *cobra.Command {
	var o serveOptions
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Serve until SIGTERM; SIGHUP reads the certificate again",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.complete(cmd.ErrOrStderr()); err != nil {
				return fmt.Errorf("cannot serve: %w", err)
			}
			reload := make(chan os.Signal, 1)
			signal.Notify(reload, syscall.SIGHUP)
			defer signal.Stop(reload)
			o.Reload = reload
			return daemon.Serve(cmd.Context(), o.Config)
		},
	}
	dirFlag(cmd, &o.dir)
	f := cmd.Flags()
	f.StringVar(&o.Listen, "listen", ":8443", "`address` of the HTTPS interface")
	f.StringVar(&o.OpsListen, "ops-listen", "127.0.0.1:9443", "`address` of health and metrics, plain HTTP; empty for none")
	f.StringVar(&o.Cert, "cert", "", "certificate chain, PEM `file` (default DIR/tls/server.crt)")
	f.StringVar(&o.Key, "key", "", "its key, PEM `file` (default DIR/tls/server.key)")
	f.DurationVar(&o.Interval, "check-interval", time.Hour, "how long machines wait between check-ins")
	f.DurationVar(&o.Soak, "soak", time.Hour, "how long a newly published patch stays on trial on a machine")
	f.IntVar(&o.MaxConnections, "max-connections", 8192, "connections served at one time; more wait")
	f.BoolVar(&o.PrivateFiles, "private-files", false, "serve signed files to enrolled machines only")
	f.BoolVar(&o.NewKeys, "new-keys", false, "start although the published root names other online keys; sign nothing until one that names these is published")
	f.StringVar(&o.logLevel, "log-level", "info", "debug, info, warn or error")
	f.StringVar(&o.logFormat, "log-format", "json", "json or text")
	f.StringVar(&o.Webhook, "webhook", "", "`URL` that is told of decisions about rollouts")
	f.StringVar(&o.secrets, "webhook-secret-file", "", "`file` with the secret that signs what it is told: a line whsec_BASE64, or several")
	f.BoolVar(&o.atOnce, "at-once", false, "let every machine have a patch at once, as in a laboratory; it is still halted if it does harm")
	f.StringVar(&o.rule, "rule", "", "JSON `file` with constants of the rule that widens and halts rollouts, for those that differ from the defaults")
	return cmd
}

// complete checks the options and makes of them what Serve takes.
func (o *serveOptions) complete(stderr io.Writer) error {
	switch {
	case o.dir == "":
		return errNoDir
	case (o.Cert == "") != (o.Key == ""):
		return errors.New("-cert and -key go together")
	case o.Interval < time.Second:
		return fmt.Errorf("-check-interval is %v, need at least 1s", o.Interval)
	case o.Soak < 0:
		return fmt.Errorf("-soak is %v, which is less than nothing", o.Soak)
	case (o.Webhook == "") != (o.secrets == ""):
		return errors.New("-webhook and -webhook-secret-file go together")
	case o.MaxConnections < 1:
		return fmt.Errorf("-max-connections is %d, need at least 1", o.MaxConnections)
	}
	o.Dir = layout.Dir(o.dir)
	var err error
	if o.Params, err = params(o.rule); err != nil {
		return err
	}
	o.Params.Pace.AtOnce = o.Params.Pace.AtOnce || o.atOnce
	if o.secrets != "" {
		if o.WebhookSecrets, err = notify.LoadSecrets(o.secrets); err != nil {
			return err
		}
	}
	var level slog.Level
	if err := level.UnmarshalText([]byte(o.logLevel)); err != nil {
		return fmt.Errorf("-log-level: %w", err)
	}
	options := &slog.HandlerOptions{Level: level}
	switch o.logFormat {
	case "json":
		o.Log = slog.New(slog.NewJSONHandler(stderr, options))
	case "text":
		o.Log = slog.New(slog.NewTextHandler(stderr, options))
	default:
		return fmt.Errorf("-log-format is %q, need json or text", o.logFormat)
	}
	return nil
}
