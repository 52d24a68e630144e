package localapi

import (
	"net"
	"sync"

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

// Close implements [net.Conn].
func (c *perUserConn) Close() error {
	c.release()
	return c.Conn.Close()
}
