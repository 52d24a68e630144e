package peercred_test

import (
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"livepatch/internal/peercred"
)

// pair returns both ends of a connection through a unix socket.
func pair(t *testing.T) (server, client net.Conn) {
	t.Helper()
	lis, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer lis.Close()
	client, err = net.Dial("unix", lis.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	server, err = lis.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	return server, client
}

func TestPeerIsThisProcess(t *testing.T) {
	server, _ := pair(t)
	got, err := peercred.FromConn(server)
	if err != nil {
		t.Fatal(err)
	}
	want := peercred.Info{PID: int32(os.Getpid()), UID: uint32(os.Getuid()), GID: uint32(os.Getgid())}
	if got != want {
		t.Errorf("peer = %+v, want %+v", got, want)
	}
}

func TestOtherSocketsHaveNoPeer(t *testing.T) {
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	if _, err := peercred.FromConn(a); err == nil {
		t.Error("a pipe was given an identity")
	}
}

func TestHandshakeAsksBeforeReading(t *testing.T) {
	for name, allowed := range map[string]bool{"allowed peer": true, "refused peer": false} {
		t.Run(name, func(t *testing.T) {
			server, _ := pair(t)
			creds := peercred.Credentials(1, func(i peercred.Info) bool {
				return i.UID == uint32(os.Getuid()) && allowed
			})
			_, info, err := creds.ServerHandshake(server)
			if (err == nil) != allowed {
				t.Fatalf("handshake error = %v, allowed = %v", err, allowed)
			}
			if allowed && info.(peercred.Info).UID != uint32(os.Getuid()) {
				t.Errorf("info = %+v", info)
			}
		})
	}
}

func TestConnectionsAreLimited(t *testing.T) {
	creds := peercred.Credentials(2, func(peercred.Info) bool { return true })
	var open []net.Conn
	for range 2 {
		server, _ := pair(t)
		c, _, err := creds.ServerHandshake(server)
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, c)
	}
	third, _ := pair(t)
	if _, _, err := creds.Clone().ServerHandshake(third); err == nil {
		t.Error("a third connection was accepted, the limit is 2")
	}
	for range 2 { // closing twice frees one place
		_ = open[0].Close()
	}
	fourth, fifth := third, third
	if _, _, err := creds.ServerHandshake(fourth); err != nil {
		t.Errorf("after one was closed: %v", err)
	}
	if _, _, err := creds.ServerHandshake(fifth); err == nil {
		t.Error("a third connection was accepted after one was closed twice")
	}
}

// What is more than the limit stays in the kernel's queue until a place is free.
func TestListenerIsLimited(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	inner, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	l := peercred.Limit(inner, 1)
	defer l.Close()
	accepted := make(chan net.Conn)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				close(accepted)
				return
			}
			accepted <- c
		}
	}()
	for range 2 {
		c, err := net.Dial("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	first := <-accepted
	if info, err := peercred.FromConn(first); err != nil || info.UID != uint32(os.Getuid()) {
		t.Errorf("peer = %+v, %v", info, err)
	}
	select {
	case <-accepted:
		t.Error("a second connection was accepted, the limit is 1")
	case <-time.After(50 * time.Millisecond):
	}
	_, _ = first.Close(), first.Close() // closing twice frees one place
	second := <-accepted
	defer second.Close()
}
