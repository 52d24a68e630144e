package cli_test

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/pem"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/secure-systems-lab/go-securesystemslib/encrypted"

	"livepatch/internal/elftest"
	"livepatch/publisher/internal/cli"
	"livepatch/publisher/internal/keys"
	"livepatch/publisher/internal/sign"
)

// TestMain makes the program a command of the transcripts. Its clock stands
// still, and its keys are quick to open.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"livepatch-publish": func() { os.Exit(cli.Main(context.Background(), environment(), os.Args[1:])) },
	})
}

func environment() cli.Env {
	now, err := time.Parse(time.DateOnly, os.Getenv("TODAY"))
	if err != nil {
		panic(err)
	}
	env := cli.Env{
		Stdout: os.Stdout, Stderr: os.Stderr, Passphrase: os.Getenv("LIVEPATCH_PASSPHRASE"),
		Now: func() time.Time { return now }, Strength: encrypted.Legacy,
		Backends: map[string]keys.Backend{"drawer": drawer{}},
	}
	if typed, ok := os.LookupEnv("TYPED"); ok {
		env.Ask = typist(strings.Split(typed, ","))
	}
	return env
}

// A drawer holds keys that are made of their URIs, unless it is locked: there is
// a file of that name.
type drawer struct{}

func (drawer) Open(_ context.Context, name, uri string) (sign.Signer, error) {
	if _, err := os.Stat("locked"); err == nil {
		return nil, sign.ErrAbsent
	}
	if b, err := os.ReadFile("swapped"); err == nil {
		uri = string(b)
	}
	seed := sha256.Sum256([]byte(uri))
	return drawn{name, ed25519.NewKeyFromSeed(seed[:])}, nil
}

// A drawn key came out of a drawer.
type drawn struct {
	name    string
	private ed25519.PrivateKey
}

func (d drawn) Name() string              { return d.name }
func (d drawn) Public() ed25519.PublicKey { return d.private.Public().(ed25519.PublicKey) }
func (d drawn) Sign(_ context.Context, message []byte) ([]byte, error) {
	return ed25519.Sign(d.private, message), nil
}

// typist is a person who types these lines at the terminal.
func typist(lines []string) func(context.Context, string) ([]byte, error) {
	return func(_ context.Context, prompt string) ([]byte, error) {
		if len(lines) == 0 {
			return nil, errors.New("nobody typed anything")
		}
		line := lines[0]
		lines = lines[1:]
		_, err := os.Stderr.WriteString(prompt + "\n")
		return []byte(line), err
	}
}

func TestTranscripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"livepatch": makeLivepatch,
			"module":    makeModule,
			"vmlinuz":   makeVmlinuz,
			"zeros":     makeZeros,
			"count":     countFiles,
			"sed":       substitute,
		},
		Setup: func(env *testscript.Env) error {
			env.Setenv("TODAY", "2026-11-22")
			env.Setenv("LIVEPATCH_PASSPHRASE", "correct horse")
			return startService(env)
		},
	})
}

// startService runs a service that knows no token. SERVER is its URL, ca.crt
// its certificate.
func startService(env *testscript.Env) error {
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusUnauthorized)
		_, _ = w.Write([]byte(`{"code":"unknown-token","message":"token is not known"}`))
	}))
	server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError) // clients that do not trust it are part of the tests
	server.StartTLS()
	env.Defer(server.Close)
	env.Setenv("SERVER", server.URL)
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	return os.WriteFile(env.WorkDir+"/ca.crt", ca, 0o644)
}

// livepatch FILE RELEASE writes a livepatch that is called as its file.
func makeLivepatch(ts *testscript.TestScript, _ bool, args []string) {
	name := strings.TrimSuffix(args[0][strings.LastIndex(args[0], "/")+1:], ".ko")
	write(ts, args[0], elftest.Livepatch(name, args[1]))
}

// module FILE FIELD... writes a module with these fields in .modinfo.
func makeModule(ts *testscript.TestScript, _ bool, args []string) {
	write(ts, args[0], elftest.File{Type: 1, Sections: []elftest.Section{elftest.Modinfo(args[1:]...)}}.Bytes())
}

// vmlinuz FILE RELEASE BUILD-ID writes a kernel image.
func makeVmlinuz(ts *testscript.TestScript, _ bool, args []string) {
	banner := args[1] + " (builder@example) #1 SMP"
	write(ts, args[0], elftest.BzImage(banner, elftest.Vmlinux(banner, args[2])))
}

// zeros FILE MIB writes a file of zeros.
func makeZeros(ts *testscript.TestScript, _ bool, args []string) {
	size, err := strconv.Atoi(args[1])
	ts.Check(err)
	f, err := os.Create(ts.MkAbs(args[0]))
	ts.Check(err)
	ts.Check(f.Truncate(int64(size) << 20))
	ts.Check(f.Close())
}

func write(ts *testscript.TestScript, name string, b []byte) {
	ts.Check(os.WriteFile(ts.MkAbs(name), b, 0o644))
}

// count DIR N fails unless DIR has N entries.
func countFiles(ts *testscript.TestScript, _ bool, args []string) {
	entries, err := os.ReadDir(ts.MkAbs(args[0]))
	ts.Check(err)
	n, err := strconv.Atoi(args[1])
	ts.Check(err)
	if len(entries) != n {
		ts.Fatalf("%s has %d entries, want %d", args[0], len(entries), n)
	}
}

// sed FROM TO PATTERN TEXT writes a copy of a file in which the first match of a
// pattern is another text.
func substitute(ts *testscript.TestScript, _ bool, args []string) {
	text := ts.ReadFile(args[0])
	found := regexp.MustCompile(args[2]).FindString(text)
	if found == "" {
		ts.Fatalf("%s has no %s", args[0], args[2])
	}
	write(ts, args[1], []byte(strings.Replace(text, found, args[3], 1)))
}
