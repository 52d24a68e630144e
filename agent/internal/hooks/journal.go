package hooks

import (
	"fmt"
	"io"
	"net"
	"strings"
)

// JournalSocket is where the system's journal takes messages.
const JournalSocket = "/run/systemd/journal/socket"

// Journal returns a function that says something in the system's journal, where
// "snap logs" does not look but operators do: snapd throws away what a hook
// prints that succeeds. Without a journal it is only printed.
//
// The format is systemd's: a line for each field (systemd.io/JOURNAL_NATIVE_PROTOCOL).
func Journal(socket string, stderr io.Writer) func(string) {
	return func(message string) {
		message = strings.Join(strings.Fields(message), " ")
		fmt.Fprintln(stderr, "note:", message)
		conn, err := net.Dial("unixgram", socket) //nolint:noctx // returns at once
		if err != nil {
			return
		}
		defer conn.Close()
		_, _ = fmt.Fprintf(conn, "MESSAGE=%s\nPRIORITY=5\nSYSLOG_IDENTIFIER=canonical-livepatch\n", message)
	}
}
