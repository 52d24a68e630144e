package machine

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/hinshun/vt10x"
	"golang.org/x/text/encoding/charmap"
)

// A Terminal is what somebody sees and types who sits before a machine with
// firmware: its first serial port.
type Terminal struct {
	conn   net.Conn
	screen vt10x.Terminal

	mu    sync.Mutex
	last  time.Time     // when something was last written
	wrote chan struct{} // closed at the next write
	err   error         // why nothing more is written
}

// The size of the terminal. Firmware takes it for one of 80 by 25, and MokManager for
// one of 80 by 50; a line and some columns more keep the last letter of the screen
// from moving all others up.
const (
	terminalColumns = 90
	terminalRows    = 51
)

// quiet is how long a screen has to stay as it is to be a whole one: they are
// drawn piece by piece, and keys that are pressed meanwhile can be lost.
const quiet = time.Second

// newTerminal shows what comes from conn, until that is closed.
func newTerminal(conn net.Conn) *Terminal {
	t := &Terminal{
		conn: conn, wrote: make(chan struct{}),
		screen: vt10x.New(vt10x.WithSize(terminalColumns, terminalRows), vt10x.WithWriter(io.Discard)),
	}
	go t.read()
	return t
}

// read draws what comes. Firmware draws the frames of its menus with the letters of
// the first PCs.
func (t *Terminal) read() {
	b := bufio.NewReader(charmap.CodePage437.NewDecoder().Reader(t.conn))
	for {
		err := t.screen.Parse(b) // draws all that is there
		t.mu.Lock()
		t.last, t.err = time.Now(), err
		close(t.wrote)
		t.wrote = make(chan struct{})
		t.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// Screen returns what is on the screen, without the blanks at the end of each
// line and the empty lines at its end.
func (t *Terminal) Screen() string {
	var b strings.Builder
	for line := range strings.Lines(t.screen.String()) {
		b.WriteString(strings.TrimRight(line, " \n") + "\n")
	}
	return strings.TrimRight(b.String(), "\n") + "\n"
}

// WaitFor waits until a text is on the screen, and returns the screen.
func (t *Terminal) WaitFor(ctx context.Context, text string) (string, error) {
	return t.wait(ctx, text, 0)
}

// WaitForAll waits until a text is on the screen and the screen is whole, and
// returns the screen. One that counts seconds is never whole.
func (t *Terminal) WaitForAll(ctx context.Context, text string) (string, error) {
	return t.wait(ctx, text, quiet)
}

// wait waits until a text is on the screen and nothing was written for a time.
func (t *Terminal) wait(ctx context.Context, text string, still time.Duration) (string, error) {
	for {
		screen, last, wrote, err := t.look()
		found, rest := strings.Contains(screen, text), time.Until(last.Add(still))
		switch {
		case found && rest <= 0:
			return screen, nil
		case err != nil:
			return screen, fmt.Errorf("cannot find %q on screen: %w\n%s", text, err, screen)
		case !found:
			rest = time.Hour // only another write can change that
		}
		select {
		case <-wrote:
		case <-time.After(rest):
		case <-ctx.Done():
			return screen, fmt.Errorf("cannot find %q on screen: %w\n%s", text, context.Cause(ctx), screen)
		}
	}
}

// look returns what is on the screen, when something was written last, what is
// closed when there is more, and why there will be no more.
func (t *Terminal) look() (screen string, last time.Time, wrote <-chan struct{}, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.Screen(), t.last, t.wrote, t.err
}

// Keys that are more than a letter, as a terminal sends them.
const (
	KeyDown  = "\x1b[B"
	KeyEnter = "\r"
)

// Press presses keys, and waits a moment for what comes of it; of what is typed in
// secret nothing is shown.
func (t *Terminal) Press(ctx context.Context, keys string) error {
	_, _, wrote, err := t.look()
	if err == nil {
		_, err = io.WriteString(t.conn, keys)
	}
	if err != nil {
		return fmt.Errorf("cannot press keys: %w", err)
	}
	select {
	case <-wrote:
	case <-time.After(2 * quiet):
	case <-ctx.Done():
		return fmt.Errorf("cannot see what came of keys: %w", context.Cause(ctx))
	}
	return nil
}
