package admin

import (
	"fmt"
	"strconv"
	"strings"

	"livepatch/server/internal/store"
)

// nobody is the audit UID of a process that no login led to, from the kernel's
// point of view: see proc_pid_loginuid(5).
const nobody = "4294967295"

// noLogin ends the ID of somebody whom no login led to the command: from cron, systemd-run
// or the shell of a container, or on a kernel without audit.
const noLogin = ", no login"

// Who names who runs a command, for the record of decisions: the user, and the one
// who logged in if sudo or su made another of them. It is the login that counts
// where two people are needed; the user, where no login led to the command, and
// that is said in the ID.
//
// loginUID is the content of /proc/self/loginuid, which outlives a change of
// user; "" if there is none. name finds the name of a UID.
func Who(uid int, loginUID string, name func(uid string) (string, error)) store.Person {
	current := strconv.Itoa(uid)
	login := strings.TrimSpace(loginUID)
	who := store.Person{Account: describe(current, name), ID: "uid " + current + noLogin}
	n, err := strconv.ParseUint(login, 10, 32)
	if err != nil || login == nobody {
		return who
	}
	// Written as a number is written: 1000 and 01000 are one person.
	login = strconv.FormatUint(n, 10)
	who.ID = "uid " + login
	if login != current {
		who.Account = fmt.Sprintf("%s, logged in as %s", who.Account, describe(login, name))
	}
	return who
}

// others tells whether two people are not the same one, as far as can be told. A login
// and a user without one are never two: whoever has logged in can run a command
// that does not know.
func others(a, b store.Person) bool { return a.ID != b.ID && loggedIn(a) == loggedIn(b) }

func loggedIn(p store.Person) bool { return !strings.HasSuffix(p.ID, noLogin) }

func describe(uid string, name func(string) (string, error)) string {
	if n, err := name(uid); err == nil {
		return fmt.Sprintf("%s (uid %s)", n, uid)
	}
	return "uid " + uid
}
