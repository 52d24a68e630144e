// Package peercred tells who is at the other end of a unix socket, as the
// kernel recorded it when the peer connected (unix(7), SO_PEERCRED).
package peercred

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
)

// Info identifies a peer. It is a credentials.AuthInfo, so that a handler finds
// it in its context.
//
// Info is made by this package only; the zero Info would be root, so the
// functions here return it together with an error or not at all.
type Info struct {
	PID      int32
	UID, GID uint32
}

// AuthType implements [credentials.AuthInfo].
func (Info) AuthType() string { return "peercred" }

// FromConn returns who connected to c, which must be a unix socket.
func FromConn(c net.Conn) (Info, error) {
	uc, ok := c.(syscall.Conn)
	if !ok || c.LocalAddr().Network() != "unix" {
		return Info{}, fmt.Errorf("cannot identify peer of a %T", c)
	}
	raw, err := uc.SyscallConn()
	if err != nil {
		return Info{}, fmt.Errorf("cannot identify peer: %w", err)
	}
	var cred *unix.Ucred
	var credErr error
	err = raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err := errors.Join(err, credErr); err != nil {
		return Info{}, fmt.Errorf("cannot identify peer: %w", err)
	}
	return Info{PID: cred.Pid, UID: cred.Uid, GID: cred.Gid}, nil
}

// FromContext returns the peer of the gRPC call that ctx belongs to, if the
// server uses [Credentials].
func FromContext(ctx context.Context) (Info, bool) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return Info{}, false
	}
	info, ok := p.AuthInfo.(Info)
	return info, ok
}

// Limit returns a listener that leaves connections in the kernel's queue while n
// are open, those being refused among them: however fast they come, they do not
// use up the file descriptors of the process. l is that of a unix socket.
func Limit(l net.Listener, n int) net.Listener {
	return limited{l, make(chan struct{}, n)}
}

type limited struct {
	net.Listener
	open chan struct{} // a token for each connection
}

// Accept implements [net.Listener].
func (l limited) Accept() (net.Conn, error) {
	l.open <- struct{}{}
	release := sync.OnceFunc(func() { <-l.open })
	c, err := l.Listener.Accept()
	if err != nil {
		release()
		return nil, err
	}
	return conn{c, release}, nil
}

// Credentials returns transport credentials for a server on a unix socket. A
// connection whose peer allow refuses, and any that finds limit of them open for a
// tenth of a second, is closed before a byte of it is read, so that whoever may
// not call has no parser to talk to, and whoever may does not use up what the
// server has.
func Credentials(limit int, allow func(Info) bool) credentials.TransportCredentials {
	return transport{allow, make(chan struct{}, limit)}
}

// patience is how long a connection waits for a place: one that is being closed is
// soon free.
const patience = 100 * time.Millisecond

type transport struct {
	allow func(Info) bool
	open  chan struct{} // a token for each connection
}

// A conn gives its token back when it is closed.
type conn struct {
	net.Conn
	release func()
}

// SyscallConn implements [syscall.Conn].
func (c conn) SyscallConn() (syscall.RawConn, error) {
	sc, ok := c.Conn.(syscall.Conn)
	if !ok {
		return nil, fmt.Errorf("cannot reach the socket of a %T", c.Conn)
	}
	return sc.SyscallConn()
}

// Close implements [net.Conn].
func (c conn) Close() error {
	c.release()
	return c.Conn.Close()
}

func (t transport) ServerHandshake(c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	info, err := FromConn(c)
	if err != nil {
		return nil, nil, err
	}
	if !t.allow(info) {
		return nil, nil, fmt.Errorf("cannot accept connection from uid %d: not allowed", info.UID)
	}
	select {
	case t.open <- struct{}{}:
		return conn{c, sync.OnceFunc(func() { <-t.open })}, info, nil
	case <-time.After(patience):
		return nil, nil, fmt.Errorf("cannot accept connection from uid %d: %d are open", info.UID, cap(t.open))
	}
}

func (transport) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("cannot use peer credentials as a client")
}

func (transport) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "peercred"}
}

func (t transport) Clone() credentials.TransportCredentials { return t }

func (transport) OverrideServerName(string) error { return nil }
