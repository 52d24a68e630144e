// Package localapi serves the agent to programs on the same machine: HTTP over
// two unix sockets, as the existing client has them.
//
// The public socket answers everybody and changes nothing. The private one
// answers root, the agent's own user and one more if so configured; that is
// checked with the credentials that the kernel recorded, and not only by the
// mode of the file.
package localapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	"livepatch/agent/internal/agent"
	"livepatch/agent/internal/config"
	"livepatch/agent/internal/fetch"
	"livepatch/agent/internal/status"
	"livepatch/internal/patch"
	"livepatch/internal/peercred"
)

// Names of the sockets.
const (
	PublicSocket  = "livepatchd.sock"
	PrivateSocket = "livepatchd-priv.sock"
)

// maxBody bounds a request: a bundle of certificates is the largest.
const maxBody = 1 << 20

// An Agent is what is served; [agent.Agent] is one.
type Agent interface {
	Status(secrets bool) (s status.Status, enabled bool)
	UpgradeRequired() (string, error)
	Enable(ctx context.Context, authToken string) (machineToken string, err error)
	Disable(ctx context.Context, remove bool) (machineToken string, notes []string, err error)
	Refresh(ctx context.Context) ([]string, error)
	Unfinished() (why, hint string)
	Config() map[string]string
	SetConfig(ctx context.Context, values map[string]string) (changed []string, err error)
	Configure(ctx context.Context, c config.Change) (config.Standing, error)
	Recheck()
}

// A Server serves one agent.
type Server struct {
	Log     *slog.Logger
	Agent   Agent
	Version string
	// Allow are the user ids that may use the private socket, besides root.
	Allow []uint32
	// Hint says what a person can do about an error.
	Hint func(error) string

	refused onceEach
}

// Public returns the handler of the public socket.
func (s *Server) Public() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, r *http.Request) { s.status(w, r, false) })
	mux.HandleFunc("GET /kernel-upgrade-required", s.upgradeRequired)
	mux.HandleFunc("GET /version", s.version)
	return mux
}

// Private returns the handler of the private socket. It has everything that the
// public one has.
func (s *Server) Private() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, r *http.Request) {
		s.status(w, r, r.URL.Query().Get("show-secrets") == "true")
	})
	mux.HandleFunc("GET /kernel-upgrade-required", s.upgradeRequired)
	mux.HandleFunc("GET /version", s.version)
	mux.HandleFunc("PUT /enable", s.enable)
	mux.HandleFunc("PUT /disable", s.disable)
	mux.HandleFunc("PUT /refresh", s.refresh)
	mux.HandleFunc("GET /config", s.getConfig)
	mux.HandleFunc("PUT /config", s.setConfig)
	mux.HandleFunc("PUT /configure", s.configure)
	mux.HandleFunc("PUT /recheck", func(w http.ResponseWriter, _ *http.Request) {
		s.Agent.Recheck()
		w.WriteHeader(http.StatusNoContent)
	})
	return s.authorized(mux)
}

// peerKey is the key of a connection's peer in the context of its requests.
type peerKey struct{}

// connContext records who connected. A peer that cannot be told is nobody.
func connContext(ctx context.Context, c net.Conn) context.Context {
	info, err := peercred.FromConn(c)
	if err != nil {
		return ctx
	}
	return context.WithValue(ctx, peerKey{}, info)
}

// authorized refuses peers that may not use the private socket.
func (s *Server) authorized(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		peer, ok := r.Context().Value(peerKey{}).(peercred.Info)
		if !ok || peer.UID != 0 && !slices.Contains(s.Allow, peer.UID) {
			level := slog.LevelInfo
			if s.refused.first(peer.UID) { // nobody fills the log by asking again
				level = slog.LevelWarn
			}
			s.Log.Log(r.Context(), level, "Refused a request", "path", r.URL.Path, "peer_uid", peer.UID)
			refuse(w, http.StatusForbidden, "cannot do this as an ordinary user", "run it with sudo")
			return
		}
		next.ServeHTTP(w, r)
	})
}

func (s *Server) status(w http.ResponseWriter, r *http.Request, secrets bool) {
	req, err := status.ParseRequest(r.URL.Query())
	if err != nil {
		refuse(w, http.StatusBadRequest, err.Error(), "")
		return
	}
	st, enabled := s.Agent.Status(secrets)
	if !enabled {
		s.fail(w, agent.ErrNotEnabled)
		return
	}
	b, err := req.Render(st, time.Now())
	if err != nil {
		s.fail(w, fmt.Errorf("cannot write status: %w", err))
		return
	}
	w.Header().Set("Content-Type", req.ContentType())
	_, _ = w.Write(b)
}

func (s *Server) upgradeRequired(w http.ResponseWriter, _ *http.Request) {
	line, err := s.Agent.UpgradeRequired()
	if err != nil {
		s.fail(w, err)
		return
	}
	if line == "" {
		w.WriteHeader(http.StatusNoContent)
		return
	}
	say(w, line)
}

func (s *Server) version(w http.ResponseWriter, _ *http.Request) { say(w, s.Version) }

func (s *Server) enable(w http.ResponseWriter, r *http.Request) {
	token, err := authToken(w, r)
	if err != nil {
		s.fail(w, err)
		return
	}
	machineToken, err := s.Agent.Enable(r.Context(), token)
	if err != nil {
		s.fail(w, err)
		return
	}
	say(w, "Successfully enabled device. Using machine-token: "+machineToken)
}

// authToken returns the token of a request: in its body, or as older programs
// send it, in the query.
func authToken(w http.ResponseWriter, r *http.Request) (string, error) {
	if token := r.URL.Query().Get("auth-token"); token != "" {
		return token, nil
	}
	var body struct {
		AuthToken string `json:"auth_token"`
	}
	if err := decode(w, r, &body); err != nil {
		return "", fmt.Errorf("cannot enable this machine: %w", err)
	}
	return body.AuthToken, nil
}

// body reads the body of a request.
func body(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	b, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	var tooLong *http.MaxBytesError
	if errors.As(err, &tooLong) {
		return nil, fmt.Errorf("request is longer than %d bytes: %w", tooLong.Limit, patch.ErrTooLarge)
	}
	return b, err
}

// decode reads the JSON body of a request.
func decode(w http.ResponseWriter, r *http.Request, v any) error {
	b, err := body(w, r)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("%w: need a JSON object", patch.ErrInvalid)
	}
	return nil
}

func (s *Server) disable(w http.ResponseWriter, r *http.Request) {
	machineToken, notes, err := s.Agent.Disable(r.Context(), r.URL.Query().Get("remove") == "true")
	if err != nil {
		s.fail(w, err)
		return
	}
	line := "Successfully disabled device. Removed machine-token: " + machineToken
	if machineToken == "" {
		line = "Successfully disabled device. It was waiting to be enabled."
	}
	say(w, append([]string{line}, notes...)...)
}

func (s *Server) refresh(w http.ResponseWriter, r *http.Request) {
	lines, err := s.Agent.Refresh(r.Context())
	if err != nil {
		s.fail(w, err)
		return
	}
	say(w, lines...)
}

func (s *Server) getConfig(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(s.Agent.Config())
}

func (s *Server) setConfig(w http.ResponseWriter, r *http.Request) {
	values := map[string]string{}
	if err := decode(w, r, &values); err != nil {
		s.fail(w, fmt.Errorf("cannot change the configuration: %w", err))
		return
	}
	if _, err := s.Agent.SetConfig(r.Context(), values); err != nil {
		s.fail(w, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// configure makes a change of everything at once, as snapd's hook needs it.
func (s *Server) configure(w http.ResponseWriter, r *http.Request) {
	b, err := body(w, r)
	var change config.Change
	if err == nil {
		if change, err = config.ParseChange(b); err != nil {
			err = fmt.Errorf("%w: %w", patch.ErrInvalid, err)
		}
	}
	var now config.Standing
	if err == nil {
		now, err = s.Agent.Configure(r.Context(), change)
	}
	if err != nil {
		s.fail(w, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(now)
}

// say answers with lines of text.
func say(w http.ResponseWriter, lines ...string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = io.WriteString(w, strings.Join(lines, "\n")+"\n")
}

// fail answers with an error and the next step.
func (s *Server) fail(w http.ResponseWriter, err error) {
	switch {
	case errors.Is(err, agent.ErrNotEnabled):
		s.refuseNotEnabled(w)
	case errors.Is(err, agent.ErrEnabled):
		refuse(w, http.StatusConflict, err.Error(), "")
	default:
		refuse(w, codeOf(err), firstLine(err.Error()), s.hint(err))
	}
}

// refuseNotEnabled answers what has to do with an enrolment that there is not.
// Programs look for the first sentence; behind it people learn what became of the
// token that they gave.
func (s *Server) refuseNotEnabled(w http.ResponseWriter) {
	why, hint := s.Agent.Unfinished()
	if why == "" {
		refuse(w, http.StatusBadRequest, status.NotEnabled, "")
		return
	}
	sentence, _, _ := strings.Cut(status.NotEnabled, ".")
	refuse(w, http.StatusBadRequest, sentence+". "+firstLine(why), firstLine(hint))
}

func (s *Server) hint(err error) string {
	if s.Hint == nil {
		return agent.HintFor(err)
	}
	return s.Hint(err)
}

// codeOf returns the HTTP status for an error.
func codeOf(err error) int {
	var fetched *fetch.Error
	var inKernel *agent.PatchError
	switch {
	case errors.Is(err, patch.ErrTooLarge):
		return http.StatusRequestEntityTooLarge
	case errors.Is(err, patch.ErrInvalid), errors.Is(err, config.ErrInvalid), errors.Is(err, config.ErrUnknownKey):
		return http.StatusBadRequest
	case errors.Is(err, context.Canceled):
		return http.StatusServiceUnavailable
	case errors.As(err, &fetched), errors.As(err, &inKernel):
		return http.StatusBadGateway
	default:
		return http.StatusInternalServerError
	}
}

// firstLine keeps an error to the one line that it is promised to be.
func firstLine(s string) string {
	return strings.Join(strings.FieldsFunc(s, func(r rune) bool { return r == '\n' || r == '\r' }), " ")
}

// refuse answers with an error in one line and, if there is one, a second line
// with the next step.
func refuse(w http.ResponseWriter, code int, message, hint string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(code)
	if hint != "" {
		message += "\nhint: " + hint
	}
	_, _ = io.WriteString(w, message+"\n")
}
