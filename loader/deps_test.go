// Package loader holds the root part of the system; here are the tests of what it
// is made of.
package loader

import (
	"go/scanner"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const program = "./cmd/livepatch-loader"

// linked is what runs as root, by package, and why. To add a line here is to ask
// for code to run as root: it comes with a decision in docs/adr.
var linked = []struct {
	reason, prefix string
	packages       []string
}{
	{
		reason: "our own code, reviewed as root's",
		prefix: "livepatch/",
		packages: []string{
			"internal/confine", "internal/durable", "internal/kernel", "internal/kmsg", "internal/patch", "internal/peercred", "internal/rpcerr", "internal/tuf",
			"internal/version", "loader/cmd/livepatch-loader", "loader/internal/gate", "loader/internal/journal", "loader/internal/klp",
			"loader/internal/kmod", "loader/internal/sandbox", "loader/internal/server", "proto/loader/v1",
		},
	},
	{
		reason: "system calls: finit_module, memfd seals, capabilities; no dependency of its own",
		prefix: "golang.org/x/sys/",
		packages: []string{
			"unix",
		},
	},
	{
		reason: "wire format of the contract: generated code of proto/loader/v1 and what it needs to run",
		prefix: "google.golang.org/protobuf/",
		packages: []string{
			"encoding/protojson", "encoding/prototext", "encoding/protowire", "internal/descfmt", "internal/descopts", "internal/detrand",
			"internal/editiondefaults", "internal/encoding/defval", "internal/encoding/json", "internal/encoding/messageset",
			"internal/encoding/tag", "internal/encoding/text", "internal/errors", "internal/filedesc", "internal/filetype",
			"internal/flags", "internal/genid", "internal/impl", "internal/order", "internal/pragma", "internal/protolazy", "internal/set",
			"internal/strs", "internal/version", "proto", "protoadapt", "reflect/protoreflect", "reflect/protoregistry",
			"runtime/protoiface", "runtime/protoimpl", "types/known/anypb", "types/known/durationpb", "types/known/timestamppb",
		},
	},
	{
		reason: "statuses with a reason, as rpcerr sends them",
		prefix: "google.golang.org/genproto/googleapis/rpc/",
		packages: []string{
			"errdetails", "status",
		},
	},
	{
		reason: "HTTP/2 frames and header compression, under gRPC",
		prefix: "golang.org/x/net/",
		packages: []string{
			"http/httpguts", "http2", "http2/hpack", "idna", "internal/httpcommon", "internal/httpsfv",
		},
	},
	{
		reason: "host names in HTTP headers, linked by x/net/http2; no request here has one",
		prefix: "golang.org/x/text/",
		packages: []string{
			"secure/bidirule", "transform", "unicode/bidi", "unicode/norm",
		},
	},
	{
		reason: "gRPC, the server: streams, limits, statuses",
		prefix: "google.golang.org/grpc",
		packages: []string{
			"", "/codes", "/credentials", "/encoding", "/encoding/internal", "/encoding/proto", "/experimental/stats", "/grpclog",
			"/grpclog/internal", "/internal", "/internal/balancerload", "/internal/buffer", "/internal/credentials", "/internal/envconfig",
			"/internal/grpclog", "/internal/grpcsync", "/internal/grpcutil", "/internal/mem", "/internal/metadata", "/internal/pretty",
			"/internal/stats", "/internal/status", "/internal/syscall", "/internal/transport", "/internal/transport/internal",
			"/internal/transport/networktype", "/internal/transport/readyreader", "/keepalive", "/mem", "/metadata", "/peer", "/stats",
			"/status", "/tap",
		},
	},
	{
		reason: "gRPC, linked with it and not used: its client side (resolvers, balancers) and its introspection (channelz, binary logs), off unless asked for",
		prefix: "google.golang.org/grpc/",
		packages: []string{
			"attributes", "backoff", "balancer", "balancer/base", "balancer/endpointsharding", "balancer/grpclb/state",
			"balancer/pickfirst", "balancer/pickfirst/internal", "balancer/roundrobin", "binarylog/grpc_binarylog_v1", "channelz",
			"connectivity", "credentials/insecure", "experimental/balancer/weight", "internal/backoff", "internal/balancer/gracefulswitch",
			"internal/binarylog", "internal/channelz", "internal/idle", "internal/proxyattributes", "internal/resolver",
			"internal/resolver/delegatingresolver", "internal/resolver/dns", "internal/resolver/dns/internal",
			"internal/resolver/passthrough", "internal/resolver/unix", "internal/serviceconfig", "resolver", "resolver/dns",
			"serviceconfig",
		},
	},
}

// goList returns the packages that the loader is linked from, as "go list"
// prints them with a template: as "make build" links it, and without tests.
func goList(t *testing.T, template string) []string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-deps", "-tags", "grpcnotrace", "-f", template, program)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	return strings.Fields(string(out))
}

func TestWhatRunsAsRootIsAgreed(t *testing.T) {
	t.Parallel()
	agreed := map[string]bool{}
	for _, group := range linked {
		for _, p := range group.packages {
			agreed[group.prefix+p] = true
		}
	}
	now := goList(t, "{{if not .Standard}}{{.ImportPath}}{{end}}")
	for _, p := range now {
		if !agreed[p] {
			t.Errorf("loader links %s, which nobody has agreed to run as root", p)
		}
	}
	for p := range agreed {
		if !slices.Contains(now, p) {
			t.Errorf("loader no longer links %s; take it off the list", p)
		}
	}
}

// gRPC links net/http for a way to serve that is not used here (Server.ServeHTTP)
// and crypto/tls for credentials that are not used either; the sandbox and the
// unit leave the process no network to use them on. What matters is that nothing
// of ours does, and that nobody at all starts programs or loads code.
func TestRootHasNoOtherProgramAndNoNetworkOfItsOwn(t *testing.T) {
	t.Parallel()
	all := goList(t, "{{.ImportPath}}")
	for _, p := range []string{"os/exec", "plugin", "os/user", "net/rpc", "net/smtp", "net/http/pprof", "expvar", "runtime/cgo"} {
		if slices.Contains(all, p) {
			t.Errorf("loader links %s", p)
		}
	}
	imports := goList(t, `{{$p := .ImportPath}}{{range .Imports}}{{$p}}>{{.}}{{"\n"}}{{end}}`)
	for _, edge := range imports {
		importer, imported, _ := strings.Cut(edge, ">")
		if !strings.HasPrefix(importer, "livepatch/") {
			continue
		}
		for _, p := range []string{"net/http", "crypto/tls", "net/url", "net/textproto", "golang.org/x/net"} {
			if imported == p || strings.HasPrefix(imported, p+"/") {
				t.Errorf("%s imports %s", importer, imported)
			}
		}
	}
}

// maxLines bounds the code of ours that decides what runs as root: the loader and
// the verifier, without blanks, comments, tests and generated code.
const maxLines = 2000

func TestRootStaysSmallEnoughToRead(t *testing.T) {
	t.Parallel()
	total := 0
	for _, dir := range []string{".", "../internal/tuf"} {
		lines := 0
		err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
			if err == nil && strings.HasSuffix(path, ".go") && !strings.HasSuffix(path, "_test.go") {
				lines += codeLines(t, path)
			}
			return err
		})
		if err != nil || lines == 0 {
			t.Fatalf("%s: %d lines, %v", dir, lines, err)
		}
		t.Logf("%s: %d lines", dir, lines)
		total += lines
	}
	t.Logf("%d lines of our own run as root, at most %d", total, maxLines)
	if total >= maxLines {
		t.Errorf("%d lines of our own run as root, want fewer than %d", total, maxLines)
	}
}

// codeLines counts the lines of a file that hold more than blanks and comments.
func codeLines(t *testing.T, path string) int {
	t.Helper()
	src, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	file := token.NewFileSet().AddFile(path, -1, len(src))
	var s scanner.Scanner
	s.Init(file, src, func(pos token.Position, msg string) { t.Errorf("%v: %s", pos, msg) }, 0)
	lines := map[int]bool{}
	for {
		pos, tok, lit := s.Scan()
		if tok == token.EOF {
			return len(lines)
		}
		if tok == token.SEMICOLON && lit == "\n" {
			continue // put there by the scanner
		}
		for i := range strings.Count(lit, "\n") + 1 {
			lines[file.Line(pos)+i] = true
		}
	}
}
