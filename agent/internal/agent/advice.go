package agent

import (
	"errors"
	"syscall"

	"livepatch/agent/internal/config"
	"livepatch/agent/internal/fetch"
	"livepatch/agent/internal/loader"
	"livepatch/agent/internal/trust"
	"livepatch/internal/patch"
)

// advice is what a person can do about an error. The first row that matches
// counts.
var advice = []struct {
	err  error
	hint string
}{
	{ErrNotEnabled, "enable it with: sudo canonical-livepatch enable TOKEN"},
	{ErrClock, "set the clock, for example with: sudo timedatectl set-ntp true"},
	{trust.ErrGap, "tell the operator of the service to serve every version of root.json, for ever; until then no patch is applied, and none that is revoked leaves"},
	{fetch.ErrTLSTime, "if the clock is wrong, set it, for example with: sudo timedatectl set-ntp true"},
	{fetch.ErrNoAddress, "check the name with: sudo canonical-livepatch config remote-server; and that this machine can resolve names"},
	{fetch.ErrConnRefused, "check that the service runs, and its address with: sudo canonical-livepatch config remote-server"},
	{fetch.ErrUnreachable, "check this machine's network"},
	{fetch.ErrTimeout, "check the network, and whether a proxy is needed: sudo canonical-livepatch config https-proxy=URL"},
	{fetch.ErrTooSlow, "check the network; the agent tries again by itself"},
	{fetch.ErrBroken, "check the network; the agent tries again by itself"},
	{fetch.ErrTLSName, "use the name that the certificate is for: sudo canonical-livepatch config remote-server=https://NAME"},
	{fetch.ErrTLSUnknown, "if the authority is yours: sudo canonical-livepatch config ca-certs=@stdin < ca.crt"},
	{fetch.ErrTLS, "check the address of the service with: sudo canonical-livepatch config remote-server"},
	{fetch.ErrProxyAuth, "put them into the address: sudo canonical-livepatch config https-proxy=http://USER:PASSWORD@HOST:PORT"},
	{fetch.ErrProxy, "check the proxy with: sudo canonical-livepatch config https-proxy"},
	{fetch.ErrTokenOld, "get a new token and run: sudo canonical-livepatch enable TOKEN"},
	{fetch.ErrTokenGone, "get a new token and run: sudo canonical-livepatch enable TOKEN"},
	{fetch.ErrToken, "get a token from the service and run: sudo canonical-livepatch enable TOKEN"},
	{fetch.ErrOverload, "nothing to do: the agent tries again when the service says"},
	{fetch.ErrService, "tell the operator of the service; the agent tries again by itself"},
	{fetch.ErrAbsent, "tell the operator of the service: its files do not fit together"},
	{fetch.ErrAnswer, "check that this is the service, and no proxy or portal: sudo canonical-livepatch config remote-server"},
	{fetch.ErrRequest, "check that agent and service are of versions that fit each other"},
	{config.ErrInvalid, "see the values of all keys with: sudo canonical-livepatch config"},

	{loader.ErrForbidden, "start the loader with -agent-uid of the agent's user, or see why it failed in its log, for example with: journalctl -u livepatch-loader"},
	{loader.ErrAway, "start it with: sudo systemctl start livepatch-loader.socket"},
	{syscall.ENOSPC, "make room on the disk that holds the agent's data; the agent tries again by itself"},
	{syscall.EDQUOT, "make room on the disk that holds the agent's data; the agent tries again by itself"},
	{syscall.EROFS, "the disk that holds the agent's data is read-only; see: dmesg"},

	{patch.ErrExpired, "tell the operator of the service that its signed files are out of date; check this machine's clock"},
	{patch.ErrRollback, "the service offers older files than before; tell its operator"},
	{patch.ErrUntrusted, "do not trust this service until its operator has explained it"},
	{patch.ErrTampered, "files were changed on the way or at the service; tell its operator if it goes on"},
	{patch.ErrMalformed, "tell the operator of the service; this machine stays as it is"},
	{patch.ErrTooLarge, "tell the operator of the service; this machine stays as it is"},
	{patch.ErrHalted, "nothing to do: the service will offer another patch"},
	{patch.ErrRevoked, "nothing to do: the service will offer another patch"},
	{patch.ErrSuspect, "it is not tried again until a newer one comes; see: journalctl -k -b -1"},
	{patch.ErrWrongKernel, "install the kernel package of the distribution and reboot"},
	{patch.ErrNoLivepatch, "run a kernel that is built with CONFIG_LIVEPATCH"},
	{patch.ErrSwitchedOff, "see what is switched off, and how to switch it on: canonical-livepatch status"},
	{patch.ErrModulesDisabled, "kernel.modules_disabled cannot be undone; reboot without setting it"},
	{patch.ErrFtraceDisabled, "switch it on with: sudo sysctl kernel.ftrace_enabled=1"},
	{patch.ErrFtraceConflict, "stop the tracing program that holds the function, then: sudo canonical-livepatch refresh"},
	{patch.ErrBusy, "wait for it to end; see: canonical-livepatch status --verbose"},
	{patch.ErrStalled, "a task is slow to switch; see: canonical-livepatch status --verbose"},
	{patch.ErrModuleSignature, "tell the vendor of the patch; see what the kernel says with: sudo dmesg"},
	{patch.ErrNotPermitted, "see what the kernel says with: sudo dmesg"},
	{patch.ErrNameTaken, "see which module it is with: lsmod; reboot to get rid of it"},
	{patch.ErrNoMemory, "free some memory; the agent tries again by itself"},
	{patch.ErrStorage, "make room on the disk that holds the loader's state"},
	{patch.ErrTransitionFailed, "see what the kernel says with: sudo dmesg"},
	{patch.ErrIncompatible, "see what the kernel says with: sudo dmesg"},
	{patch.ErrUnknownSymbol, "see what the kernel says with: sudo dmesg"},
	{patch.ErrBadFormat, "see what the kernel says with: sudo dmesg"},
	{patch.ErrKernel, "see what the kernel says with: sudo dmesg"},
	{patch.ErrNotLivepatch, "tell the vendor of the patch"},
	{patch.ErrNotOurs, "remove it with the program that inserted it, or reboot"},
	{patch.ErrNotFound, "tell the operator of the service: its files do not fit together"},
	{patch.ErrRefused, "run it with sudo"},
}

// Hint says what a person can do about err, in one line; "" if nothing useful is
// known.
func Hint(err error) string {
	var own interface{ Hint() string }
	if errors.As(err, &own) {
		return own.Hint()
	}
	for _, row := range advice {
		if errors.Is(err, row.err) {
			return row.hint
		}
	}
	return ""
}
