// Command vulnerable calls a function of the standard library that the test's
// own database calls vulnerable, and links another one that it does not call.
package main

import (
	"os"
	"strings"
)

func main() {
	if len(os.Args) > 1 && strings.ToTitle(os.Args[1]) == "YES" {
		os.Exit(1)
	}
}
