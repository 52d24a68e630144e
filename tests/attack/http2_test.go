//go:build attack

package attack

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"golang.org/x/sys/unix"

	"livepatch/tests/attack/report"
	"livepatch/tests/lab"
)

// A wire is a connection to the loader over which frames go that no client would
// send. What comes back is counted.
type wire struct {
	conn net.Conn
	fr   *http2.Framer
	buf  bytes.Buffer // of the header encoder
	enc  *hpack.Encoder

	mu     sync.Mutex
	seen   map[string]int // "RST_STREAM REFUSED_STREAM"
	closed bool           // the loader has hung up
	done   chan struct{}
}

// dial connects and reads whatever comes, until the loader hangs up.
func (l *target) dial(t *testing.T) *wire {
	t.Helper()
	conn, err := net.Dial("unix", l.Path("loader.sock"))
	lab.Must(t, err)
	w := &wire{conn: conn, fr: http2.NewFramer(conn, conn), seen: map[string]int{}, done: make(chan struct{})}
	w.fr.AllowIllegalWrites = true
	w.enc = hpack.NewEncoder(&w.buf)
	go w.read()
	t.Cleanup(func() { conn.Close(); <-w.done })
	return w
}

// hello sends the preface and the settings that a client begins with.
func (w *wire) hello(settings ...http2.Setting) {
	_, _ = io.WriteString(w.conn, http2.ClientPreface)
	_ = w.fr.WriteSettings(settings...)
}

func (w *wire) read() {
	defer close(w.done)
	dec := hpack.NewDecoder(4096, nil)
	for {
		f, err := w.fr.ReadFrame()
		if err != nil {
			w.mu.Lock()
			w.closed = !errors.Is(err, net.ErrClosed)
			w.mu.Unlock()
			return
		}
		w.note(dec, f)
	}
}

// note counts what says that the loader minds.
func (w *wire) note(dec *hpack.Decoder, f http2.Frame) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch f := f.(type) {
	case *http2.GoAwayFrame:
		if f.ErrCode != http2.ErrCodeNo {
			w.seen[fmt.Sprintf("GOAWAY %v %s", f.ErrCode, f.DebugData())]++
		}
	case *http2.RSTStreamFrame:
		w.seen["RST_STREAM "+f.ErrCode.String()]++
	case *http2.PingFrame:
		if f.IsAck() {
			w.seen[stillThere]++
		}
	case *http2.HeadersFrame:
		fields, _ := dec.DecodeFull(f.HeaderBlockFragment())
		for _, h := range fields {
			if h.Name == "grpc-status" || h.Name == ":status" && h.Value != "200" {
				w.seen[h.Name+" "+h.Value]++
			}
		}
	default:
	}
}

// stillThere is what a row says if the loader may ignore what was sent, and was seen
// to: it has answered the PING that came next.
const stillThere = "ignored, and the next frame answered"

// saw tells whether the loader has answered in a way that begins so.
func (w *wire) saw(what string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for s := range w.seen {
		if strings.HasPrefix(s, what) {
			return true
		}
	}
	return false
}

// hungUp tells whether the loader has closed the connection.
func (w *wire) hungUp() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.closed
}

// String says how the loader has reacted.
func (w *wire) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var parts []string
	for _, s := range slices.Sorted(maps.Keys(w.seen)) {
		if n := w.seen[s]; n > 1 {
			s = fmt.Sprintf("%s ×%d", s, n)
		}
		parts = append(parts, strings.TrimSpace(s))
	}
	if w.closed {
		parts = append(parts, "connection closed")
	}
	if len(parts) == 0 {
		return "frames ignored"
	}
	return strings.Join(parts, ", ")
}

// headers sends the headers of a call on a stream.
func (w *wire) headers(stream uint32, end bool, more ...string) {
	_ = w.fr.WriteHeaders(http2.HeadersFrameParam{
		StreamID: stream, BlockFragment: w.block(append(call(statusMethod), more...)...), EndHeaders: true, EndStream: end,
	})
}

// block encodes names and values.
func (w *wire) block(pairs ...string) []byte {
	w.buf.Reset()
	for i := 0; i+1 < len(pairs); i += 2 {
		_ = w.enc.WriteField(hpack.HeaderField{Name: pairs[i], Value: pairs[i+1]})
	}
	return bytes.Clone(w.buf.Bytes())
}

// call returns the headers that a call of a method needs.
func call(method string) []string {
	return []string{":method", "POST", ":scheme", "http", ":path", method, ":authority", "localhost", "content-type", "application/grpc", "te", "trailers"}
}

// many is how often the floods do what they do.
const many = 100_000

// status asks for the status as an honest client does.
func (w *wire) status(stream uint32) {
	w.headers(stream, false)
	_ = w.fr.WriteData(stream, true, make([]byte, 5))
}

// repeat does something many times, or until the loader hangs up.
func (w *wire) repeat(do func(i int) error) {
	_ = w.conn.SetWriteDeadline(time.Now().Add(lab.Patience))
	for i := range many {
		if do(i) != nil {
			return
		}
	}
}

func odd(i int) uint32 { return uint32(2*i + 1) }

// An oddity is a connection that does not keep to HTTP/2, or keeps to it with bad
// intent.
type oddity struct {
	do func(w *wire)
	// want is what the loader must be seen to do: hang up, or answer with what
	// begins so; "" where HTTP/2 lets it ignore the frames, and then it answers the
	// next call on the same connection.
	want string
}

const hangUp = "hang up"

var malformed = map[string]oddity{
	"no preface":                   {func(w *wire) { _, _ = io.WriteString(w.conn, "GET / HTTP/1.1\r\nHost: loader\r\n\r\n") }, hangUp},
	"preface that ends early":      {func(w *wire) { _, _ = io.WriteString(w.conn, http2.ClientPreface[:10]) }, hangUp},
	"connection that says nothing": {func(*wire) {}, hangUp},
	"preface without settings":     {func(w *wire) { _, _ = io.WriteString(w.conn, http2.ClientPreface) }, hangUp},
	"frame before the settings": {func(w *wire) {
		_, _ = io.WriteString(w.conn, http2.ClientPreface)
		_ = w.fr.WritePing(false, [8]byte{})
	}, hangUp},
	"frame that is longer than allowed": {func(w *wire) { w.hello(); _ = w.fr.WriteRawFrame(http2.FrameData, 0, 1, make([]byte, 1<<20)) }, hangUp},
	"frame whose length is a lie":       {func(w *wire) { w.hello(); _, _ = w.conn.Write([]byte{0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1}) }, hangUp},
	"DATA on stream 0":                  {func(w *wire) { w.hello(); _ = w.fr.WriteRawFrame(http2.FrameData, 0, 0, []byte("x")) }, hangUp},
	"HEADERS on stream 0": {func(w *wire) {
		w.hello()
		_ = w.fr.WriteRawFrame(http2.FrameHeaders, http2.FlagHeadersEndHeaders, 0, w.block(call(statusMethod)...))
	}, hangUp},
	"HEADERS on a stream of the loader's": {func(w *wire) { w.hello(); w.headers(2, true) }, hangUp},
	"stream numbers that go down":         {func(w *wire) { w.hello(); w.status(101); w.status(1) }, hangUp},
	"CONTINUATION of nothing":             {func(w *wire) { w.hello(); _ = w.fr.WriteContinuation(1, true, []byte("x")) }, hangUp},
	"HEADERS cut in two by a PING": {func(w *wire) {
		w.hello()
		_ = w.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: w.block(call(statusMethod)...)})
		_ = w.fr.WritePing(false, [8]byte{})
	}, hangUp},
	"WINDOW_UPDATE of 0":     {func(w *wire) { w.hello(); _ = w.fr.WriteWindowUpdate(0, 0) }, hangUp},
	"SETTINGS of five bytes": {func(w *wire) { w.hello(); _ = w.fr.WriteRawFrame(http2.FrameSettings, 0, 0, make([]byte, 5)) }, hangUp},
	"PING of seven bytes":    {func(w *wire) { w.hello(); _ = w.fr.WriteRawFrame(http2.FramePing, 0, 0, make([]byte, 7)) }, hangUp},
	"padding longer than its frame": {func(w *wire) {
		w.hello()
		w.headers(1, false)
		_ = w.fr.WriteRawFrame(http2.FrameData, http2.FlagDataPadded, 1, []byte{255, 0})
	}, hangUp},
	"header block that cannot be decoded": {func(w *wire) {
		w.hello()
		_ = w.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: bytes.Repeat([]byte{0xff}, 100), EndHeaders: true})
	}, hangUp},
	"GET in place of POST": {func(w *wire) {
		w.hello()
		_ = w.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: w.block(":method", "GET", ":scheme", "http", ":path", statusMethod, "content-type", "application/grpc"), EndHeaders: true, EndStream: true})
	}, ""},
	"call without a path": {func(w *wire) {
		w.hello()
		_ = w.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: w.block(":method", "POST", ":scheme", "http", "content-type", "application/grpc"), EndHeaders: true, EndStream: true})
	}, ""},
	"call with upper case in a header":       {func(w *wire) { w.hello(); w.headers(1, true, "X-Upper", "x") }, "RST_STREAM PROTOCOL_ERROR"},
	"call with a header of HTTP/1":           {func(w *wire) { w.hello(); w.headers(1, true, "connection", "keep-alive") }, "RST_STREAM"},
	"call with a time limit that is no time": {func(w *wire) { w.hello(); w.headers(1, true, "grpc-timeout", "99999999999999999999H") }, ""},
	"call that is not gRPC": {func(w *wire) {
		w.hello()
		_ = w.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: w.block(":method", "POST", ":scheme", "http", ":path", statusMethod, "content-type", "text/html"), EndHeaders: true, EndStream: true})
	}, ""},
	"message whose length is a lie": {func(w *wire) {
		w.hello()
		w.headers(1, false)
		_ = w.fr.WriteData(1, true, []byte{0, 0xff, 0xff, 0xff, 0xff})
	}, "grpc-status 8"},
	"message that says it is compressed":  {func(w *wire) { w.hello(); w.headers(1, false); _ = w.fr.WriteData(1, true, []byte{1, 0, 0, 0, 0}) }, "grpc-status 13"},
	"DATA on a stream that nobody opened": {func(w *wire) { w.hello(); _ = w.fr.WriteData(99, true, []byte("x")) }, ""},
	"WINDOW_UPDATE past the largest window": {func(w *wire) {
		w.hello()
		_ = w.fr.WriteWindowUpdate(0, 1<<31-1)
		_ = w.fr.WriteWindowUpdate(0, 1<<31-1)
	}, ""},
	"PUSH_PROMISE from a client": {func(w *wire) {
		w.hello()
		_ = w.fr.WritePushPromise(http2.PushPromiseParam{StreamID: 1, PromiseID: 2, BlockFragment: w.block(call(statusMethod)...), EndHeaders: true})
	}, ""},
	"stream that depends on itself": {func(w *wire) {
		w.hello()
		_ = w.fr.WritePriority(1, http2.PriorityParam{StreamDep: 1, Exclusive: true, Weight: 255})
	}, ""},
	"GOAWAY from a client":  {func(w *wire) { w.hello(); _ = w.fr.WriteGoAway(0, http2.ErrCodeNo, bytes.Repeat([]byte("x"), 10000)) }, ""},
	"header table of 4 GiB": {func(w *wire) { w.hello(http2.Setting{ID: http2.SettingHeaderTableSize, Val: 1<<32 - 1}) }, ""},
}

var floods = map[string]oddity{
	"flood of PINGs": {func(w *wire) { w.hello(); w.repeat(func(int) error { return w.fr.WritePing(false, [8]byte{}) }) }, "GOAWAY ENHANCE_YOUR_CALM"},
	"flood of SETTINGS": {func(w *wire) {
		w.hello()
		w.repeat(func(int) error { return w.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1}) })
	}, ""},
	"flood of streams, each reset at once (CVE-2023-44487)": {func(w *wire) {
		w.hello()
		w.repeat(func(i int) error { w.headers(odd(i), false); return w.fr.WriteRSTStream(odd(i), http2.ErrCodeCancel) })
	}, ""},
	"streams without an end, 100 000 of them": {func(w *wire) {
		w.hello()
		w.repeat(func(i int) error {
			return w.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: odd(i), BlockFragment: w.block(call(statusMethod)...), EndHeaders: true})
		})
	}, "RST_STREAM REFUSED_STREAM"},
	"headers without an end (CVE-2023-45288)": {func(w *wire) {
		w.hello()
		_ = w.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: w.block(call(statusMethod)...)})
		part := w.block("x-"+strings.Repeat("y", 1000), strings.Repeat("z", 8000))
		w.repeat(func(int) error { return w.fr.WriteContinuation(1, false, part) })
	}, hangUp},
	"one header of 4 KiB, referred to 100 000 times": {func(w *wire) {
		w.hello()
		bomb := append(w.block(append(call(statusMethod), "x-bomb", strings.Repeat("b", 3900))...), bytes.Repeat([]byte{0xbe}, 8000)...)
		w.repeat(func(i int) error {
			if i > many/8000 {
				return io.EOF
			}
			return w.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: odd(i), BlockFragment: bomb, EndHeaders: true, EndStream: true})
		})
	}, ""},
	"header list of 15 KiB": {func(w *wire) { w.hello(); w.headers(1, true, "x-long", strings.Repeat("z", 15000)) }, hangUp},
	"flood of empty DATA": {func(w *wire) {
		w.hello()
		w.headers(1, false)
		w.repeat(func(int) error { return w.fr.WriteData(1, false, nil) })
	}, ""},
	"flood of WINDOW_UPDATEs": {func(w *wire) { w.hello(); w.repeat(func(int) error { return w.fr.WriteWindowUpdate(0, 1) }) }, ""},
	"flood of PRIORITY": {func(w *wire) {
		w.hello()
		w.repeat(func(i int) error { return w.fr.WritePriority(odd(i), http2.PriorityParam{StreamDep: odd(i + 1)}) })
	}, ""},
	"flood of frames of unknown types": {func(w *wire) {
		w.hello()
		w.repeat(func(i int) error { return w.fr.WriteRawFrame(http2.FrameType(0x80+i%100), 0xff, odd(i), nil) })
	}, ""},
	"answers that are never taken": {func(w *wire) {
		w.hello(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
		w.repeat(func(i int) error { w.headers(odd(i), false); return w.fr.WriteData(odd(i), true, make([]byte, 5)) })
	}, "RST_STREAM REFUSED_STREAM"},
}

func TestHostileAgentHTTP2(t *testing.T) {
	t.Parallel()
	l := newTarget(t)
	for name, odd := range malformed {
		t.Run(name, func(t *testing.T) {
			a := report.Begin(t, report.Agent, "HTTP/2: "+name)
			w := l.dial(t)
			odd.do(w)
			odd.check(t, w)
			a.StoppedBy("gRPC: %v", w)
			l.survives(t)
		})
	}
}

func TestHostileAgentFloods(t *testing.T) {
	t.Parallel()
	l := newTarget(t)
	for name, odd := range floods {
		t.Run(name, func(t *testing.T) {
			a := report.Begin(t, report.Agent, "HTTP/2: "+name)
			l.forgetPeak()
			w := l.dial(t)
			odd.do(w)
			odd.check(t, w)
			l.survives(t)
			a.StoppedBy("gRPC: %v; %s", w, l.peak())
			w.conn.Close()
			l.settles(t)
		})
	}
}

// check fails the test unless the loader reacts as it must.
func (o oddity) check(t *testing.T, w *wire) {
	t.Helper()
	switch o.want {
	case "":
		if !w.hungUp() {
			_ = w.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 16})
			_ = w.fr.WritePing(false, [8]byte{1})
			lab.Eventually(t, "loader hangs up or answers a PING", func() bool { return w.hungUp() || w.saw(stillThere) })
		}
	case hangUp:
		lab.Eventually(t, "loader hangs up", w.hungUp)
	default:
		lab.Eventually(t, "loader answers "+o.want, func() bool { return w.saw(o.want) })
	}
}

// Files that come along with bytes over the socket are not taken.
func TestHostileAgentPassesFiles(t *testing.T) {
	t.Parallel()
	l := newTarget(t)
	a := report.Begin(t, report.Agent, "a thousand open files passed over the socket")
	conn, err := net.Dial("unix", l.Path("loader.sock"))
	lab.Must(t, err)
	defer conn.Close()
	rights := unix.UnixRights(slices.Repeat([]int{0}, 250)...) // the kernel takes 253 at once
	_, _, err = conn.(*net.UnixConn).WriteMsgUnix([]byte(http2.ClientPreface), rights, nil)
	lab.Must(t, err)
	settings := binary.BigEndian.AppendUint32([]byte{0, 0, 0, 4, 0}, 0)
	for range 3 {
		_, _, err = conn.(*net.UnixConn).WriteMsgUnix(settings, rights, nil)
		lab.Must(t, err)
	}
	l.survives(t)
	if got := l.descriptors(); got > l.fds+10 {
		t.Errorf("loader has %d files open, had %d", got, l.fds)
	}
	a.StoppedBy("kernel: read(2) drops passed files; the loader holds %d, held %d", l.descriptors(), l.fds)
	conn.Close()
	l.settles(t)
}
