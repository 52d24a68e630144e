package admin

import (
	"fmt"
	"strconv"
	"strings"
)

// nobody is the audit UID of a process that no login led to, from the kernel's
// point of view: see proc_pid_loginuid(5).
const nobody = "4294967295"

// Account names who runs a command, for the record of decisions: the user, and
// the one who logged in if sudo or su made another of them.
//
// loginUID is the content of /proc/self/loginuid, which outlives a change of
// user; "" if there is none. name finds the name of a UID.
func Account(uid int, loginUID string, name func(uid string) (string, error)) string {
	current := strconv.Itoa(uid)
	login := strings.TrimSpace(loginUID)
	who := describe(current, name)
	if _, err := strconv.ParseUint(login, 10, 32); err != nil || login == nobody || login == current {
		return who
	}
	return fmt.Sprintf("%s, logged in as %s", who, describe(login, name))
}

func describe(uid string, name func(string) (string, error)) string {
	if n, err := name(uid); err == nil {
		return fmt.Sprintf("%s (uid %s)", n, uid)
	}
	return "uid " + uid
}
