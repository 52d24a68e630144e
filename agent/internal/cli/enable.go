package cli

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"

	"github.com/spf13/cobra"

	"livepatch/agent/internal/config"
	"livepatch/agent/internal/daemon"
)

// An enableRequest is the body of PUT /enable.
type enableRequest struct {
	AuthToken string `json:"auth_token"`
}

func enableCommand(a *app) *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "enable [TOKEN | - | --token-file FILE]",
		Short: "Enrol this machine with the service and start patching",
		Long: "Enrol this machine with the service and start patching.\n\n" +
			"Other users of the machine can see the arguments of a command while it runs.\n" +
			"Use --token-file, or - for standard input, where that matters.",
		Example: "  sudo canonical-livepatch enable --token-file /root/token\n" +
			"  sudo canonical-livepatch enable - < /root/token",
		Args:              atMost(1, "one token"),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			token, err := a.token(cmd, args, file)
			if err != nil {
				return err
			}
			// Long enough for a server that answers late, twice.
			ctx, cancel := a.deadline(cmd.Context(), 2*time.Minute)
			defer cancel()
			answer, err := a.call(ctx, "enable this machine", daemon.Private, http.MethodPut, "/enable", enableRequest{token})
			if err != nil {
				return err
			}
			a.mirror(cmd.Context())
			return a.print(answer)
		},
	}
	cmd.Flags().StringVar(&file, "token-file", "", "read the token from `file`")
	return cmd
}

// token returns the token from wherever the user says it is. Errors do not show
// it.
func (a *app) token(cmd *cobra.Command, args []string, file string) (string, error) {
	var text []byte
	var err error
	switch {
	case file != "" && len(args) > 0:
		return "", usage(cmd, "cannot enable this machine: there is a token and a --token-file")
	case file != "":
		text, err = readTokenFile(file)
	case len(args) == 0:
		return "", &usageError{
			err:  errors.New("cannot enable this machine: no token given"),
			hint: "get one from the service and run: sudo canonical-livepatch enable TOKEN",
		}
	case args[0] == "-":
		text, err = readToken(a.env.Stdin)
	default:
		text = []byte(args[0])
	}
	if err != nil {
		return "", fmt.Errorf("cannot read the token: %w", err)
	}
	return config.ParseToken(text)
}

func readTokenFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readToken(f)
}

func readToken(r io.Reader) ([]byte, error) {
	return io.ReadAll(io.LimitReader(r, config.MaxToken+1))
}
