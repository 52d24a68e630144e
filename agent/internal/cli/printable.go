package cli

import (
	"strings"
	"unicode"
)

// printable replaces what a terminal would obey rather than show by U+FFFD.
// Newlines and tabs stay. The daemon cleans what it writes; this holds too if
// something else listens on the socket.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' || unicode.IsGraphic(r) {
			return r
		}
		return unicode.ReplacementChar
	}, strings.ToValidUTF8(text, "\uFFFD"))
}

// printableLine is printable for text that has to stay in one line.
func printableLine(text string) string {
	return printable(strings.Join(strings.Fields(text), " "))
}
