package disk

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
)

// What follows is the part of the protocol that QEMU 5 to 9 speaks to a server
// that offers nothing it need not: the fixed newstyle handshake, simple replies,
// read, write, flush and disconnect
// (github.com/NetworkBlockDevice/nbd, doc/proto.md). All numbers are big endian.

// Numbers of the handshake.
const (
	magicServer  = 0x4e42444d41474943 // "NBDMAGIC"
	magicOption  = 0x49484156454f5054 // "IHAVEOPT"
	magicReply   = 0x3e889045565a9
	fixedNew     = 1 // flag of the handshake
	noZeroes     = 2 // flag of the handshake
	optAbort     = 2
	optGo        = 7
	replyAck     = 1
	replyInfo    = 3
	replyUnknown = 1<<31 + 1
	infoExport   = 0
)

// Numbers of the transmission.
const (
	flagsAre    = 1 // there are flags
	flagFlush   = 4 // flushes are understood; without them QEMU would send none
	magicAsk    = 0x25609513
	magicAnswer = 0x67446698
	cmdRead     = 0
	cmdWrite    = 1
	cmdClose    = 2
	cmdFlush    = 3
	errInvalid  = 22 // EINVAL
)

// Limits of what is read from QEMU.
const (
	unit      = 512 // requests are for whole ones
	maxOption = 4 << 10
	maxData   = 32 << 20 // QEMU sends no more at a time
)

// Serve answers the machines that connect to l, one at a time, until l is closed.
func (d *Disk) Serve(l net.Listener) error {
	for {
		conn, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("cannot serve disk: %w", err)
		}
		// How the conversation ended is of no interest: a machine whose power goes
		// breaks it off, and one that misses its disk says so itself.
		_ = d.converse(conn)
		conn.Close()
	}
}

// errOff ends a conversation because the power is off.
var errOff = errors.New("power is off")

// converse serves one machine until it leaves. When the power goes, the machine
// is left without an answer: it is not told that its disk has failed.
func (d *Disk) converse(conn io.ReadWriter) error {
	r := bufio.NewReaderSize(conn, 64<<10)
	if err := d.greet(r, conn); err != nil {
		return fmt.Errorf("cannot greet: %w", err)
	}
	for {
		err := d.answer(r, conn)
		if errors.Is(err, errOff) {
			_, err = io.Copy(io.Discard, r)
		}
		if err != nil {
			return err
		}
	}
}

// greet agrees on the only export there is, whatever the client calls it.
func (d *Disk) greet(r io.Reader, w io.Writer) error {
	hello := binary.BigEndian.AppendUint64(nil, magicServer)
	hello = binary.BigEndian.AppendUint64(hello, magicOption)
	if _, err := w.Write(binary.BigEndian.AppendUint16(hello, fixedNew|noZeroes)); err != nil {
		return err
	}
	var clientFlags uint32
	if err := binary.Read(r, binary.BigEndian, &clientFlags); err != nil {
		return err
	}
	for {
		option, err := readOption(r)
		if err != nil {
			return err
		}
		switch option {
		case optGo:
			export := binary.BigEndian.AppendUint16(nil, infoExport)
			export = binary.BigEndian.AppendUint64(export, uint64(d.size()))
			export = binary.BigEndian.AppendUint16(export, flagsAre|flagFlush)
			return errors.Join(reply(w, option, replyInfo, export), reply(w, option, replyAck, nil))
		case optAbort:
			return errors.Join(reply(w, option, replyAck, nil), io.EOF)
		default:
			err = reply(w, option, replyUnknown, nil)
		}
		if err != nil {
			return err
		}
	}
}

// readOption returns the number of the next option. What it says is skipped.
func readOption(r io.Reader) (uint32, error) {
	var head struct {
		Magic          uint64
		Option, Length uint32
	}
	if err := binary.Read(r, binary.BigEndian, &head); err != nil {
		return 0, err
	}
	if head.Magic != magicOption || head.Length > maxOption {
		return 0, fmt.Errorf("not an option: %+v", head)
	}
	_, err := io.CopyN(io.Discard, r, int64(head.Length))
	return head.Option, err
}

func reply(w io.Writer, option, kind uint32, data []byte) error {
	b := binary.BigEndian.AppendUint64(nil, magicReply)
	b = binary.BigEndian.AppendUint32(b, option)
	b = binary.BigEndian.AppendUint32(b, kind)
	b = binary.BigEndian.AppendUint32(b, uint32(len(data)))
	_, err := w.Write(append(b, data...))
	return err
}

// A request is what the machine wants of its disk.
type request struct {
	Magic  uint32
	Flags  uint16
	Type   uint16
	Handle uint64
	Offset uint64
	Length uint32
}

// check returns an error unless the request is within the disk and in whole
// units.
func (q request) check(size int64) error {
	switch {
	case q.Magic != magicAsk:
		return fmt.Errorf("not a request: %+v", q)
	case q.Length > maxData:
		return fmt.Errorf("request is too large: %+v", q)
	case q.Type != cmdRead && q.Type != cmdWrite:
		return nil
	case q.Offset > uint64(size) || uint64(q.Length) > uint64(size)-q.Offset,
		q.Offset%unit != 0, q.Length%unit != 0:
		return fmt.Errorf("request does not fit this disk: %+v", q)
	}
	return nil
}

// answer serves one request.
func (d *Disk) answer(r io.Reader, w io.Writer) error {
	var q request
	if err := binary.Read(r, binary.BigEndian, &q); err != nil {
		return err
	}
	if err := q.check(d.size()); err != nil {
		return err
	}
	var out []byte
	var code uint32
	on := true
	switch q.Type {
	case cmdRead:
		out = make([]byte, q.Length)
		on = d.read(out, int64(q.Offset))
	case cmdWrite:
		data := make([]byte, q.Length)
		if _, err := io.ReadFull(r, data); err != nil {
			return err
		}
		on = d.write(data, int64(q.Offset))
	case cmdFlush:
		on = d.flush()
	case cmdClose:
		return io.EOF
	default:
		code = errInvalid
	}
	if !on {
		return errOff
	}
	head := binary.BigEndian.AppendUint32(nil, magicAnswer)
	head = binary.BigEndian.AppendUint32(head, code)
	head = binary.BigEndian.AppendUint64(head, q.Handle)
	_, err := w.Write(append(head, out...))
	return err
}
