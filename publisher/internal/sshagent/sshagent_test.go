package sshagent_test

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"

	"livepatch/publisher/internal/sign"
	"livepatch/publisher/internal/sshagent"
)

// inProcess serves an agent of this process on a socket.
func inProcess(t *testing.T, a agent.Agent) (socket string) {
	t.Helper()
	socket = socketPath(t)
	lis, err := net.Listen("unix", socket)
	must(t, err)
	var work sync.WaitGroup
	work.Go(func() {
		for {
			conn, err := lis.Accept()
			if err != nil {
				return
			}
			work.Go(func() {
				defer conn.Close()
				_ = agent.ServeAgent(a, conn) // it ends when the client leaves
			})
		}
	})
	t.Cleanup(func() { lis.Close(); work.Wait() })
	return socket
}

// socketPath is short enough for a socket, which that of t.TempDir may not be.
func socketPath(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "agent-")
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "s")
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// openSSH starts the ssh-agent of OpenSSH.
func openSSH(t *testing.T) (socket string) {
	t.Helper()
	if _, err := exec.LookPath("ssh-agent"); err != nil {
		t.Skip("ssh-agent is not installed; scripts/setup.sh does it")
	}
	socket = socketPath(t)
	cmd := exec.CommandContext(t.Context(), "ssh-agent", "-D", "-a", socket)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	// It says where it listens as soon as it does.
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	return socket
}

// give adds a new key to the agent at a socket, and returns its URI.
func give(t *testing.T, socket string, private any) string {
	t.Helper()
	conn, err := net.Dial("unix", socket)
	must(t, err)
	defer conn.Close()
	must(t, agent.NewClient(conn).Add(agent.AddedKey{PrivateKey: private, Comment: "debian-builder"}))
	s, err := ssh.NewSignerFromKey(private)
	must(t, err)
	return "ssh-agent:" + ssh.FingerprintSHA256(s.PublicKey())
}

func newKey(t *testing.T) ed25519.PrivateKey {
	t.Helper()
	_, private, err := ed25519.GenerateKey(nil)
	must(t, err)
	return private
}

func TestAKeyInAnAgentSigns(t *testing.T) {
	agents := map[string]func(*testing.T) string{
		"of OpenSSH":      openSSH,
		"of this process": func(t *testing.T) string { return inProcess(t, agent.NewKeyring()) },
	}
	for name, start := range agents {
		t.Run(name, func(t *testing.T) {
			socket := start(t)
			private := newKey(t)
			give(t, socket, newKey(t)) // somebody's
			b := &sshagent.Backend{Socket: socket}
			s, err := b.Open(t.Context(), "debian-builder", give(t, socket, &private))
			must(t, err)
			if !s.Public().Equal(private.Public()) || s.Name() != "debian-builder" {
				t.Errorf("opened %s %x", s.Name(), s.Public())
			}
			for _, message := range []string{`{"_type":"root"}`, "", strings.Repeat("x", 100_000)} {
				sig, err := sign.Message(t.Context(), s, []byte(message))
				must(t, err)
				if want := ed25519.Sign(private, []byte(message)); string(sig) != string(want) {
					t.Errorf("signature of %d bytes is not the plain one of ed25519", len(message))
				}
			}
		})
	}
}

func TestOpenRefuses(t *testing.T) {
	socket := inProcess(t, agent.NewKeyring())
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	ec := give(t, socket, other)
	private := newKey(t)
	good := give(t, socket, &private)
	tests := map[string]struct {
		socket, uri string
		want        error
	}{
		"no agent":                   {"", good, sign.ErrAbsent},
		"an agent that is gone":      {socket + "-gone", good, sign.ErrAbsent},
		"a key that it has not":      {socket, "ssh-agent:SHA256:0000000000000000000000000000000000000000000", sign.ErrAbsent},
		"a key of another kind":      {socket, ec, sshagent.ErrKind},
		"an old kind of fingerprint": {socket, "ssh-agent:MD5:00:11", sshagent.ErrURI},
		"another scheme":             {socket, "pkcs11:token=a", sshagent.ErrURI},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			b := &sshagent.Backend{Socket: tc.socket}
			if _, err := b.Open(t.Context(), "k", tc.uri); !errors.Is(err, tc.want) {
				t.Errorf("Open = %v, want %v", err, tc.want)
			}
		})
	}
}

// A liar is an agent that signs with another key, or waits for ever.
type liar struct {
	agent.Agent
	other ed25519.PrivateKey
	wait  <-chan struct{}
}

func (l *liar) Sign(ssh.PublicKey, []byte) (*ssh.Signature, error) {
	if l.wait != nil {
		<-l.wait
	}
	return &ssh.Signature{Format: ssh.KeyAlgoED25519, Blob: ed25519.Sign(l.other, []byte("other"))}, nil
}

func TestASignatureOfAnAgentIsChecked(t *testing.T) {
	keyring := agent.NewKeyring()
	socket := inProcess(t, &liar{Agent: keyring, other: newKey(t)})
	private := newKey(t)
	s, err := (&sshagent.Backend{Socket: socket}).Open(t.Context(), "k", give(t, socket, &private))
	must(t, err)
	if _, err := sign.Message(t.Context(), s, []byte("message")); !errors.Is(err, sign.ErrFaulty) {
		t.Errorf("Message = %v, want ErrFaulty", err)
	}
}

func TestAnAgentThatDoesNotAnswerIsLeft(t *testing.T) {
	wait := make(chan struct{})
	socket := inProcess(t, &liar{Agent: agent.NewKeyring(), other: newKey(t), wait: wait})
	defer close(wait)
	private := newKey(t)
	s, err := (&sshagent.Backend{Socket: socket}).Open(t.Context(), "k", give(t, socket, &private))
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	go cancel()
	if _, err := s.Sign(ctx, []byte("message")); !errors.Is(err, context.Canceled) {
		t.Errorf("Sign = %v, want it to say that it was cancelled", err)
	}
}
