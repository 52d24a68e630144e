package cli

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"
	"unicode"

	"github.com/spf13/cobra"
)

// maxToken bounds a token, in bytes. Those of Ubuntu Pro are macaroons of a few
// hundred.
const maxToken = 16 << 10

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
			answer, err := a.call(ctx, "enable this machine", privateSocket, http.MethodPut, "/enable", enableRequest{token})
			if err != nil {
				return err
			}
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
	return parseToken(text)
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
	return io.ReadAll(io.LimitReader(r, maxToken+1))
}

// parseToken strips white space around a token and refuses what cannot be one.
func parseToken(text []byte) (string, error) {
	token := string(bytes.TrimSpace(text))
	switch {
	case len(token) > maxToken:
		return "", fmt.Errorf("cannot use the token: it is longer than %d bytes", maxToken)
	case token == "":
		return "", errors.New("cannot use the token: it is empty")
	case strings.ContainsFunc(token, func(r rune) bool { return r > unicode.MaxASCII || !unicode.IsGraphic(r) || r == ' ' }):
		return "", errors.New("cannot use the token: there is a space, a line break or another strange character in it")
	}
	return token, nil
}
