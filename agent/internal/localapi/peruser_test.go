package localapi

import (
	"errors"
	"net"
	"path/filepath"
	"testing"
	"time"
)

// dialed connects and tells whether the listener has kept the connection.
func dialed(t *testing.T, path string, accepted <-chan net.Conn) (client, server net.Conn) {
	t.Helper()
	client, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	refused := make(chan struct{})
	go func() {
		defer close(refused)
		_, _ = client.Read(make([]byte, 1)) // ends when the listener hangs up
	}()
	select {
	case server = <-accepted:
	case <-refused:
	case <-time.After(20 * time.Second):
		t.Fatal("neither accepted nor refused")
	}
	return client, server
}

func TestOneUserDoesNotGetAllPlaces(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	raw, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	l := limitPerUser(raw, 2)
	accepted, ended := make(chan net.Conn), make(chan error, 1)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				ended <- err
				return
			}
			accepted <- conn
		}
	}()
	_, first := dialed(t, path, accepted)
	_, second := dialed(t, path, accepted)
	if first == nil || second == nil {
		t.Fatal("the first two were refused")
	}
	if _, third := dialed(t, path, accepted); third != nil {
		t.Error("the third was accepted")
	}
	first.Close()
	first.Close() // twice gives one place back
	_, third := dialed(t, path, accepted)
	_, fourth := dialed(t, path, accepted)
	if third == nil || fourth != nil {
		t.Errorf("after one has left: third %v, fourth %v", third, fourth)
	}
	raw.Close()
	if err := <-ended; !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept = %v, want %v", err, net.ErrClosed)
	}
}

func TestEachUserIsNewOnce(t *testing.T) {
	var o onceEach
	for uid := range uint32(2 * maxSeen) {
		if first := o.first(uid); first != (uid < maxSeen) {
			t.Fatalf("user %d: %v", uid, first)
		}
		if o.first(uid) {
			t.Fatalf("user %d is new again", uid)
		}
	}
}
