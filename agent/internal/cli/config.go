package cli

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"livepatch/agent/internal/config"
	"livepatch/agent/internal/daemon"
)

// maxStdin bounds a value that is read from standard input, in bytes.
const maxStdin = 1 << 20

func configCommand(a *app) *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use:   "config [KEY | KEY=VALUE ...]",
		Short: "Show or change the configuration",
		Long: "Show or change the configuration.\n\n" +
			"Without arguments it shows all keys, with KEY that one. KEY=VALUE changes a key,\n" +
			"KEY= gives it its default again, and KEY=@stdin takes the value from standard\n" +
			"input. Either all changes take effect or none.\n\n" +
			"The keys are:\n  " + strings.Join(config.Keys(), "\n  "),
		Example: "  sudo canonical-livepatch config https-proxy=http://proxy.example.com:3128\n" +
			"  sudo canonical-livepatch config ca-certs=@stdin < ca.crt\n" +
			"  sudo canonical-livepatch config cutoff-date --format json",
		ValidArgsFunction: cobra.FixedCompletions(config.Keys(), cobra.ShellCompDirectiveNoFileComp),
		RunE: func(cmd *cobra.Command, args []string) error {
			changes, asked, err := parseConfigArgs(cmd, args)
			if err != nil {
				return err
			}
			if format != "yaml" && format != "json" {
				return usage(cmd, "cannot use %q as a format, need yaml or json", format)
			}
			switch {
			case len(changes) > 0:
				return a.changeConfig(cmd.Context(), changes)
			case asked != "":
				return a.showKey(cmd.Context(), asked, format)
			default:
				return a.showConfig(cmd.Context(), format)
			}
		},
	}
	cmd.Flags().StringVar(&format, "format", "yaml", "yaml or json")
	completeWords(cmd, "format", "yaml", "json")
	return cmd
}

// parseConfigArgs reads either changes or the one key that is asked for.
func parseConfigArgs(cmd *cobra.Command, args []string) (changes map[string]string, asked string, err error) {
	changes = make(map[string]string)
	for _, arg := range args {
		name, value, isChange := strings.Cut(arg, "=")
		switch _, twice := changes[name]; {
		case !slices.Contains(config.Keys(), name):
			return nil, "", unknownKey(name)
		case isChange && twice:
			return nil, "", usage(cmd, "cannot set %s: it is given twice", name)
		case isChange:
			changes[name] = value
		case asked != "":
			return nil, "", usage(cmd, "cannot show %q: ask for one key, or for all without arguments", name)
		default:
			asked = name
		}
	}
	if asked != "" && len(changes) > 0 {
		return nil, "", usage(cmd, "cannot show %q while changing others: a change has the form KEY=VALUE", asked)
	}
	return changes, asked, nil
}

func unknownKey(name string) error {
	return &usageError{
		err:  fmt.Errorf("cannot use %q: %w", name, config.ErrUnknownKey),
		hint: "the keys are: " + strings.Join(config.Keys(), ", "),
	}
}

func (a *app) changeConfig(ctx context.Context, changes map[string]string) error {
	if err := a.readStdin(changes); err != nil {
		return err
	}
	// A new server is asked for its files at once.
	ctx, cancel := a.deadline(ctx, 2*time.Minute)
	defer cancel()
	answer, err := a.call(ctx, "change the configuration", daemon.Private, http.MethodPut, "/config", changes)
	if err != nil {
		return err
	}
	a.mirror(ctx)
	return a.print(answer)
}

// readStdin replaces the value "@stdin", which may be there once.
func (a *app) readStdin(changes map[string]string) error {
	var names []string
	for _, name := range config.Order(slices.Collect(maps.Keys(changes))) {
		if changes[name] == "@stdin" {
			names = append(names, name)
		}
	}
	switch len(names) {
	case 0:
		return nil
	case 1:
		value, err := a.stdinValue(names[0])
		changes[names[0]] = value
		return err
	default:
		return fmt.Errorf("cannot set %s: standard input is already the value of %s", names[1], names[0])
	}
}

func (a *app) stdinValue(name string) (string, error) {
	b, err := io.ReadAll(io.LimitReader(a.env.Stdin, maxStdin+1))
	if err != nil {
		return "", fmt.Errorf("cannot read the value of %s from standard input: %w", name, err)
	}
	if len(b) > maxStdin {
		return "", fmt.Errorf("cannot set %s: standard input holds more than %d bytes", name, maxStdin)
	}
	value := strings.TrimSpace(string(b))
	if value == "" {
		// More likely a slip than the wish to unset.
		return "", &usageError{
			err:  fmt.Errorf("cannot set %s: standard input is empty", name),
			hint: fmt.Sprintf("to give it its default again, run: canonical-livepatch config %s=", name),
		}
	}
	return value, nil
}

// getConfig returns the values of all keys.
func (a *app) getConfig(ctx context.Context) (map[string]string, error) {
	ctx, cancel := a.deadline(ctx, 10*time.Second)
	defer cancel()
	answer, err := a.call(ctx, "get the configuration", daemon.Private, http.MethodGet, "/config", nil)
	if err != nil {
		return nil, err
	}
	var values map[string]string
	if err := json.Unmarshal(answer, &values); err != nil {
		return nil, fmt.Errorf("cannot get the configuration: the daemon's answer makes no sense: %w", err)
	}
	return values, nil
}

func (a *app) showKey(ctx context.Context, name, format string) error {
	values, err := a.getConfig(ctx)
	if err != nil {
		return err
	}
	value, ok := values[name]
	if !ok {
		return fmt.Errorf("cannot show %q: the daemon does not know it", name)
	}
	if format == "json" {
		return a.print(fmt.Appendf(nil, "{%q: %s}\n", name, jsonValue(name, value)))
	}
	if strings.Contains(value, "\n") {
		return a.print(yamlBlock(name, value))
	}
	return a.print(fmt.Appendf(nil, "%s: %s\n", name, yamlValue(name, value)))
}

// showConfig writes one line a key. Other programs read it line by line, so
// certificates are named here rather than shown.
func (a *app) showConfig(ctx context.Context, format string) error {
	values, err := a.getConfig(ctx)
	if err != nil {
		return err
	}
	var yamlOut, jsonOut strings.Builder
	for _, name := range config.Keys() {
		value, ok := values[name]
		if !ok {
			continue
		}
		if jsonOut.Len() > 0 {
			jsonOut.WriteString(",\n")
		}
		fmt.Fprintf(&jsonOut, "  %q: %s", name, jsonValue(name, value))
		if name == config.CACerts {
			value = describeCerts(value)
		}
		fmt.Fprintf(&yamlOut, "%s: %s\n", name, yamlValue(name, value))
	}
	if format == "json" {
		return a.print([]byte("{\n" + jsonOut.String() + "\n}\n"))
	}
	return a.print([]byte(yamlOut.String()))
}

// isTyped tells whether a value is a number or a truth value rather than a
// string.
func isTyped(name, value string) bool {
	switch name {
	case config.CheckInterval:
		_, err := strconv.ParseUint(value, 10, 32)
		return err == nil
	case config.TLSPatchDownload:
		return value == "true" || value == "false"
	default:
		return false
	}
}

func jsonValue(name, value string) string {
	if isTyped(name, value) {
		return value
	}
	return quote(value)
}

// yamlValue writes a value as a YAML scalar in one line: as it is where that
// reads back as the same string, else in double quotes, the only ones that the
// readers of this output know.
func yamlValue(name, value string) string {
	if isTyped(name, value) {
		return value
	}
	if b, err := yaml.Marshal(value); err == nil && string(b) == value+"\n" {
		return value
	}
	return quote(value)
}

// quote writes a string as JSON, which is also YAML.
func quote(value string) string {
	var out strings.Builder
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(value); err != nil {
		return strconv.Quote(value)
	}
	return strings.TrimSuffix(out.String(), "\n")
}

// yamlBlock writes a value of several lines so that it can be read.
func yamlBlock(name, value string) []byte {
	var out strings.Builder
	fmt.Fprintf(&out, "%s: |\n", name)
	for l := range strings.Lines(value) {
		out.WriteString("  " + strings.TrimRight(l, "\n") + "\n")
	}
	return []byte(out.String())
}

// describeCerts names the certificates in text: "1 certificate (Example CA)".
func describeCerts(text string) string {
	var names []string
	for rest := []byte(text); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		names = append(names, certName(block.Bytes))
	}
	switch len(names) {
	case 0:
		return text
	case 1:
		return "1 certificate (" + names[0] + ")"
	default:
		return fmt.Sprintf("%d certificates (%s)", len(names), strings.Join(names, "; "))
	}
}

func certName(der []byte) string {
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return "unreadable"
	}
	if s := cert.Subject.String(); s != "" {
		return printableLine(s)
	}
	return "without a name"
}
