//go:build vm

package vm

import (
	"bufio"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"livepatch/tests/vm/lab"
)

// TestMachine holds the harness to what the other tests rely on.
func TestMachine(t *testing.T) {
	service := echo(t)
	secret := echo(t)
	m := boot(t, lab.Setup{Root: here.NewRepo().Root(), Service: service.String(), NoAgent: true})

	t.Run("gives back exactly what a command prints, and its exit status", func(t *testing.T) {
		res, err := m.Run(t.Context(), `printf 'one\r\n\ttwo'; printf 'three\n' >&2; exit 7`)
		if err != nil {
			t.Fatal(err)
		}
		if res.Stdout != "one\r\n\ttwo" || res.Stderr != "three\n" || res.Code != 7 {
			t.Errorf("result = %+v, want what was printed and 7", res)
		}
	})
	t.Run("reaches the service with several connections at a time", func(t *testing.T) {
		got := m.run(`for i in 1 2 3 4 5 6 7 8; do (echo hello $i | nc -w 20 10.0.2.100 8443) & done; wait`)
		for i := range 8 {
			if want := fmt.Sprintf("hello %d", i+1); !strings.Contains(got, want) {
				t.Errorf("answers %q lack %q", got, want)
			}
		}
	})
	t.Run("reaches nothing else", func(t *testing.T) {
		// 10.0.2.2 is how QEMU usually calls the host's loopback.
		_, port, err := net.SplitHostPort(secret.String())
		if err != nil {
			t.Fatal(err)
		}
		if res, err := m.Run(t.Context(), "echo hello | nc -w 3 10.0.2.2 "+port); err != nil || strings.Contains(res.Stdout, "hello") {
			t.Errorf("the machine reached the host: %+v, %v", res, err)
		}
	})
	t.Run("has no network while the cable is pulled", func(t *testing.T) {
		if err := m.Network(false); err != nil {
			t.Fatal(err)
		}
		if res, err := m.Run(t.Context(), "echo hello | nc -w 3 10.0.2.100 8443"); err != nil || strings.Contains(res.Stdout, "hello") {
			t.Errorf("the machine reached the service: %+v, %v", res, err)
		}
		if err := m.Network(true); err != nil {
			t.Fatal(err)
		}
		eventually(t, 30*time.Second, "service is reached again", func() bool {
			return strings.Contains(m.run("echo hello | nc -w 3 10.0.2.100 8443 || true"), "hello")
		})
	})
	t.Run("keeps its disk through a reset", func(t *testing.T) {
		before := m.BootID()
		m.run("echo kept > /var/kept; sync")
		if err := m.Reset(t.Context()); err != nil {
			t.Fatal(err)
		}
		if m.BootID() == before {
			t.Error("boot-id is the same after a reset")
		}
		if got := m.run("cat /var/kept"); got != "kept" {
			t.Errorf("file = %q, want kept", got)
		}
	})
}

// echo starts a server on the loopback that gives back the first line.
func echo(t *testing.T) net.Addr {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				line, _ := bufio.NewReader(conn).ReadString('\n')
				fmt.Fprint(conn, line)
			}()
		}
	}()
	return l.Addr()
}
