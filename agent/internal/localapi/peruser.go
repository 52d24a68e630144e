package localapi

import (
	"errors"
	"net"
	"sync"
	"syscall"

	"livepatch/internal/peercred"
)

// maxPerUser is how many connections one user of the machine can have at the public
// socket, so that nobody can take all places.
const maxPerUser = 16

// A perUserListener closes the connections of a user who has too many. Its listener
// is that of a unix socket.
type perUserListener struct {
	net.Listener
	most int

	mu   sync.Mutex
	open map[uint32]int // by uid
}

func limitPerUser(l net.Listener, most int) net.Listener {
	return &perUserListener{Listener: l, most: most, open: map[uint32]int{}}
}

// Accept implements [net.Listener].
func (l *perUserListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		peer, err := peercred.FromConn(conn)
		if err == nil && l.add(peer.UID, 1) <= l.most {
			return &perUserConn{Conn: conn, release: sync.OnceFunc(func() { l.add(peer.UID, -1) })}, nil
		}
		if err == nil {
			l.add(peer.UID, -1)
		}
		_ = conn.Close() // nothing was written
	}
}

// add counts a connection and returns how many the user has.
func (l *perUserListener) add(uid uint32, n int) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open[uid] += n; l.open[uid] == 0 {
		delete(l.open, uid)
		return 0
	}
	return l.open[uid]
}

// A perUserConn gives its place back when it is closed.
type perUserConn struct {
	net.Conn
	release func()
}

// SyscallConn implements [syscall.Conn]: whoever serves the connection may have to
// know who is at its other end.
func (c *perUserConn) SyscallConn() (syscall.RawConn, error) {
	conn, ok := c.Conn.(syscall.Conn)
	if !ok {
		return nil, errors.ErrUnsupported
	}
	return conn.SyscallConn()
}

// Close implements [net.Conn].
func (c *perUserConn) Close() error {
	c.release()
	return c.Conn.Close()
}

// A onceEach knows which users it has seen.
type onceEach struct {
	mu   sync.Mutex
	seen map[uint32]bool
}

// maxSeen bounds what a onceEach remembers; beyond that nobody is new.
const maxSeen = 1000

// first tells whether a user was not seen before.
func (o *onceEach) first(uid uint32) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.seen[uid] || len(o.seen) >= maxSeen {
		return false
	}
	if o.seen == nil {
		o.seen = map[uint32]bool{}
	}
	o.seen[uid] = true
	return true
}
