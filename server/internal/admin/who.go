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

// Who names who runs a command, for the record of decisions: the user, and the one
// who logged in if sudo or su made another of them. It is the login that counts
// where two people are needed; the user, where no login led to the command.
//
// loginUID is the content of /proc/self/loginuid, which outlives a change of
// user; "" if there is none. name finds the name of a UID.
func Who(uid int, loginUID string, name func(uid string) (string, error)) store.Person {
	current := strconv.Itoa(uid)
	login := strings.TrimSpace(loginUID)
	who := store.Person{Account: describe(current, name), ID: "uid " + current}
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

func describe(uid string, name func(string) (string, error)) string {
	if n, err := name(uid); err == nil {
		return fmt.Sprintf("%s (uid %s)", n, uid)
	}
	return "uid " + uid
}
