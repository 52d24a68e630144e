package agent

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"regexp"
	"strings"
	"time"

	"livepatch/agent/internal/config"
	"livepatch/agent/internal/fetch"
	"livepatch/agent/internal/machine"
	"livepatch/internal/durable"
	"livepatch/internal/patch"
	"livepatch/internal/service"
)

// Errors of the enrolment that callers branch on.
var (
	// ErrNotEnabled means that the machine has no token.
	ErrNotEnabled = errors.New("machine is not enabled")
	// ErrEnabled means that it has one.
	ErrEnabled = errors.New("Machine-token already exists! Please use 'disable' to delete existing machine-token.") //nolint:revive,staticcheck // other programs know the sentence

	errDisabled = errors.New("machine has been disabled meanwhile")
)

// forgetTimeout bounds how long disable waits for the service.
const forgetTimeout = 15 * time.Second

// hex32 is what a machine token and a machine id look like.
var hex32 = regexp.MustCompile(`^[0-9a-f]{32}$`)

// loadMachineID returns the id that the service knows this machine by, which is
// made at the first start.
func (a *Agent) loadMachineID() (string, error) {
	b, err := os.ReadFile(a.path(machineIDFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("cannot read machine id: %w", err)
	}
	if id := strings.TrimSpace(string(b)); hex32.MatchString(id) {
		return id, nil
	}
	if err == nil {
		a.log.Warn("Machine id is damaged, making a new one")
	}
	raw := make([]byte, 16)
	_, _ = rand.Read(raw) // never fails; see crypto/rand
	id := hex.EncodeToString(raw)
	if err := durable.WriteFile(a.path(machineIDFile), []byte(id+"\n"), 0o600); err != nil {
		return "", fmt.Errorf("cannot keep machine id: %w", err)
	}
	return id, nil
}

// loadToken returns the machine token, or "" if the machine is not enabled.
func (a *Agent) loadToken() (string, error) {
	b, err := os.ReadFile(a.path(tokenFile))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("cannot read machine token: %w", err)
	}
	token := strings.TrimSpace(string(b))
	if !hex32.MatchString(token) {
		a.log.Warn("Machine token is damaged, the machine has to be enabled again", "file", a.path(tokenFile))
		return "", nil
	}
	return token, nil
}

// Enable exchanges an auth token for a machine token, and has the first check
// made at once; it does not wait for that. A machine whose token the service no
// longer accepts can be enabled without being disabled first.
func (a *Agent) Enable(ctx context.Context, authToken string) (machineToken string, err error) {
	if err := checkAuthToken(authToken); err != nil {
		return "", err
	}
	if err := a.mayEnable(); err != nil {
		return "", err
	}
	if err := a.begin(ctx); err != nil {
		return "", err
	}
	defer a.end()
	if err := a.mayEnable(); err != nil { // somebody else was first
		return "", err
	}
	cfg := a.configuration()
	e, err := a.enrol(ctx, cfg, authToken)
	if err != nil {
		return "", fmt.Errorf("cannot enable this machine: %w", err)
	}
	return e.MachineToken, a.takeEnrolment(ctx, cfg, authToken, e)
}

// checkAuthToken refuses what cannot be a token. The error does not show it.
func checkAuthToken(token string) error {
	if token == "" || len(token) > 16<<10 || strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return fmt.Errorf("cannot enable this machine: the token is empty or has characters that no token has: %w", patch.ErrInvalid)
	}
	return nil
}

// takeEnrolment keeps what the service has answered to an auth token.
func (a *Agent) takeEnrolment(ctx context.Context, cfg config.Config, authToken string, e service.Enrolment) error {
	if err := durable.WriteFile(a.path(tokenFile), []byte(e.MachineToken+"\n"), 0o600); err != nil {
		// Or the service would wait for a machine that does not know its token.
		if ferr := a.forget(ctx, cfg, e.MachineToken); ferr != nil {
			a.log.WarnContext(ctx, "Cannot tell the service", "err", ferr)
		}
		return fmt.Errorf("cannot keep the machine token: %w", err)
	}
	a.stopWaiting(ctx)
	a.mu.Lock()
	a.token = e.MachineToken
	a.rec = record{Tier: e.Tier, BootID: a.live.facts.BootID, Release: a.live.facts.Kernel.Release, EnrolledWith: a.fingerprint(cfg, authToken)}
	a.live.failures, a.live.succeeded, a.live.trouble = 0, false, nil
	serr := a.saveRecord()
	a.mu.Unlock()
	if serr != nil {
		a.log.ErrorContext(ctx, "Cannot save state", "err", serr)
	}
	a.story(ctx, "Enabled", "server", cfg.RemoteServer, "tier", e.Tier)
	a.schedule(func(l *live) { l.nextCheck = time.Now() })
	return nil
}

// fingerprint tells an auth token, as used with a service, from others, and does
// not give it away.
func (a *Agent) fingerprint(cfg config.Config, authToken string) string {
	sum := sha256.Sum256([]byte(a.machineID + "\n" + cfg.RemoteServer + "\n" + authToken))
	return hex.EncodeToString(sum[:])
}

func (a *Agent) mayEnable() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.token != "" && a.rec.TokenProblem == "" {
		return ErrEnabled
	}
	return nil
}

func (a *Agent) configuration() config.Config {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.cfg
}

// enrol asks the service for a machine token.
func (a *Agent) enrol(ctx context.Context, cfg config.Config, authToken string) (service.Enrolment, error) {
	facts, err := machine.Read(a.kernel)
	if err != nil && facts.BootID == "" {
		return service.Enrolment{}, err
	} // else the build of the kernel is not known, which the service need not know yet
	a.mu.Lock()
	a.live.facts = facts
	a.mu.Unlock()
	svc, err := a.dial(ctx, cfg)
	if err != nil {
		return service.Enrolment{}, err
	}
	defer svc.Close()
	hostname, err := os.Hostname()
	if err != nil {
		hostname = "" // only for the operator's list of machines
	}
	e, err := svc.Enrol(ctx, authToken, service.EnrolRequest{
		MachineID: a.machineID,
		Hostname:  hostname,
		Version:   a.version,
		Facts:     serviceFacts(facts),
	})
	if err != nil {
		return service.Enrolment{}, &authTokenError{svc.Base(), err}
	}
	if !hex32.MatchString(e.MachineToken) {
		return service.Enrolment{}, fmt.Errorf("answer of %s has no machine token: %w", svc.Base(), fetch.ErrAnswer)
	}
	return e, nil
}

// An authTokenError is a failed enrolment.
type authTokenError struct {
	base string
	err  error
}

// Error words the refusal of the auth token as other programs expect it.
func (e *authTokenError) Error() string {
	if errors.Is(e.err, fetch.ErrToken) {
		return fmt.Sprintf("Unknown Auth-Token: %v (%s)", e.err, e.base)
	}
	return fmt.Sprintf("%v (%s)", e.err, e.base)
}

// Unwrap returns why it failed.
func (e *authTokenError) Unwrap() error { return e.err }

// Disable ends the enrolment: whatever is being done is broken off, the token
// deleted, the service told. The livepatch stays in the kernel unless remove is
// set. It returns the token and what else a person should know, a line each.
func (a *Agent) Disable(ctx context.Context, remove bool) (machineToken string, notes []string, err error) {
	a.interrupt()
	if err := a.begin(ctx); err != nil {
		return "", nil, err
	}
	defer a.end()
	return a.endEnrolment(ctx, remove)
}

// interrupt breaks off the check that runs, if one does, because the machine is
// being disabled.
func (a *Agent) interrupt() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.cancel != nil {
		a.cancel(errDisabled)
	}
}

// endEnrolment is Disable for a caller who has the right to change things.
func (a *Agent) endEnrolment(ctx context.Context, remove bool) (machineToken string, notes []string, err error) {
	waited := a.stopWaiting(ctx)
	a.mu.Lock()
	token, cfg := a.token, a.cfg
	a.mu.Unlock()
	switch {
	case token == "" && waited:
		a.story(ctx, "No longer waiting to be enabled")
		return "", nil, nil
	case token == "":
		return "", nil, ErrNotEnabled
	}
	if notes, err = a.leaveKernel(ctx, remove); err != nil {
		return "", nil, err
	}
	if err := durable.Remove(a.path(tokenFile)); err != nil {
		return "", nil, fmt.Errorf("cannot delete the machine token: %w", err)
	}
	a.mu.Lock()
	a.token = ""
	a.rec = record{BootID: a.rec.BootID, Release: a.rec.Release}
	a.live.nextCheck, a.live.nextLook, a.live.trouble = time.Time{}, time.Time{}, nil
	serr := a.saveRecord()
	a.mu.Unlock()
	if serr != nil {
		a.log.ErrorContext(ctx, "Cannot save state", "err", serr)
	}
	if err := a.forget(ctx, cfg, token); err != nil {
		a.log.WarnContext(ctx, "Cannot tell the service", "err", err)
		notes = append(notes, "The service could not be told: "+err.Error())
	}
	a.story(ctx, "Disabled")
	a.schedule(func(*live) {})
	return token, notes, nil
}

// leaveKernel takes our livepatch out of the kernel, and sees to it that none returns at
// boot; or says that it stays.
func (a *Agent) leaveKernel(ctx context.Context, remove bool) ([]string, error) {
	s, err := a.loader.Status(ctx)
	if err != nil {
		if remove {
			return nil, fmt.Errorf("cannot remove the livepatch: %w", err)
		}
		return nil, nil
	}
	l := current(&s)
	switch {
	case l != nil && !remove:
		return []string{fmt.Sprintf("Livepatch %s stays in the kernel.", l.Name)}, nil
	case !remove:
		return nil, nil
	case l != nil:
		if _, err := a.loader.Remove(ctx, l.Name); err != nil {
			return nil, fmt.Errorf("cannot remove livepatch %s: %w", l.Name, err)
		}
		return []string{fmt.Sprintf("Removed livepatch %s from the kernel.", l.Name)}, nil
	}
	if l = s.Returning(); l == nil {
		return nil, nil
	}
	if _, err := a.loader.Remove(ctx, l.Name); err != nil {
		return nil, fmt.Errorf("cannot keep livepatch %s from returning at boot: %w", l.Name, err)
	}
	return []string{fmt.Sprintf("Livepatch %s is not in the kernel, and does not return at boot.", l.Name)}, nil
}

// forget tells the service that the machine is gone. That it does not know the
// token is success.
func (a *Agent) forget(ctx context.Context, cfg config.Config, token string) error {
	ctx, cancel := context.WithTimeout(ctx, forgetTimeout)
	defer cancel()
	svc, err := a.dial(ctx, cfg)
	if err != nil {
		return err
	}
	defer svc.Close()
	if err := svc.Forget(ctx, token); err != nil && !isTokenProblem(err) {
		return err
	}
	return nil
}
