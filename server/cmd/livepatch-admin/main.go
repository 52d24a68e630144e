// Livepatch-admin makes tokens, lists machines and steers rollouts. It works on
// the database of a service on the same machine, whether that runs or not.
package main

import (
	"context"
	"os"
	"os/signal"
	"os/user"
	"syscall"

	"livepatch/server/internal/admin"
	"livepatch/server/internal/cli"
	"livepatch/server/internal/store"
)

func main() { os.Exit(run()) }

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	return cli.Main(ctx, admin.Command(os.Getenv("LIVEPATCH_DIR"), who()), os.Args[1:], admin.Hint)
}

// who names who runs this program.
func who() store.Person {
	login, err := os.ReadFile("/proc/self/loginuid")
	if err != nil { // a kernel without audit
		login = nil
	}
	return admin.Who(os.Getuid(), string(login), func(uid string) (string, error) {
		u, err := user.LookupId(uid)
		if err != nil {
			return "", err
		}
		return u.Username, nil
	})
}
