package disk

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"testing"
)

// content returns n sectors, each full of its number.
func content(n int) []byte {
	var b []byte
	for i := range n {
		b = append(b, bytes.Repeat([]byte{byte(i)}, Sector)...)
	}
	return b
}

func newDisk(t *testing.T) *Disk {
	t.Helper()
	d, err := New(content(8))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// sectors returns the first byte of each sector.
func sectors(t *testing.T, d *Disk) string {
	t.Helper()
	b := make([]byte, d.size())
	if !d.read(b, 0) {
		t.Fatal("the power is off")
	}
	var first []byte
	for i := 0; i < len(b); i += Sector {
		first = append(first, 'a'+b[i])
	}
	return string(first)
}

// fill returns n sectors full of a letter, as [sectors] shows it.
func fill(letter byte, n int) []byte { return bytes.Repeat([]byte{letter - 'a'}, n*Sector) }

func never() bool  { return false }
func always() bool { return true }

func TestWhatWasNotFlushedIsLost(t *testing.T) {
	d := newDisk(t)
	d.write(fill('x', 2), 2*Sector)
	d.flush()
	d.write(fill('y', 1), 3*Sector)
	d.write(fill('z', 1), 3*Sector)
	d.write(fill('z', 1), 5*Sector)
	if got := sectors(t, d); got != "abxzezgh" {
		t.Errorf("before the cut the disk is %s", got)
	}
	d.Cut()
	if kept, lost := d.PowerOn(never); kept != 0 || lost != 2 {
		t.Errorf("kept %d, lost %d, want 2 lost", kept, lost)
	}
	if got := sectors(t, d); got != "abxxefgh" {
		t.Errorf("after the cut the disk is %s", got)
	}
}

func TestAnySectorsMayBeKept(t *testing.T) {
	d := newDisk(t)
	d.write(fill('x', 4), 0)
	d.Cut()
	odd := true
	kept, lost := d.PowerOn(func() bool { odd = !odd; return odd })
	if got := sectors(t, d); kept != 2 || lost != 2 || got != "axcxefgh" {
		t.Errorf("kept %d, lost %d: %s", kept, lost, got)
	}
	// What was kept is durable: it does not get lost later.
	d.Cut()
	d.PowerOn(never)
	if got := sectors(t, d); got != "axcxefgh" {
		t.Errorf("after another cut the disk is %s", got)
	}
}

func TestPowerGoesBeforeTheChangeThatWasChosen(t *testing.T) {
	d := newDisk(t)
	d.write(fill('x', 1), 0)
	d.CutAfter(2)
	if !d.write(fill('x', 1), Sector) || !d.flush() {
		t.Fatal("the power went too early")
	}
	select {
	case <-d.Off():
		t.Fatal("the power went too early")
	default:
	}
	if d.write(fill('x', 1), 2*Sector) || d.flush() {
		t.Error("the power did not go")
	}
	<-d.Off()
	if n := d.Changes(); n != 3 {
		t.Errorf("%d changes, want 3", n)
	}
	d.PowerOn(never)
	if got := sectors(t, d); got != "xxcdefgh" || d.Changes() != 0 {
		t.Errorf("after the cut: %s, %d changes", got, d.Changes())
	}
}

func TestPartOfASectorIsLostWithIt(t *testing.T) {
	d := newDisk(t)
	d.write(fill('x', 1)[:unit], 2*Sector-unit) // the end of sector 1
	if b := make([]byte, unit); !d.read(b, 2*Sector-unit) || b[0] != 'x'-'a' {
		t.Errorf("the end of the sector is %q", b[0])
	}
	d.Cut()
	if _, lost := d.PowerOn(never); lost != 1 || d.content[2*Sector-1] != 1 {
		t.Errorf("lost %d sectors, the end is %q", lost, d.content[2*Sector-1])
	}
}

func TestDiskThatLiesKeepsNothing(t *testing.T) {
	d := newDisk(t)
	d.IgnoreFlush = true
	d.write(fill('x', 8), 0)
	if !d.flush() {
		t.Fatal("the power is off")
	}
	d.Cut()
	if _, lost := d.PowerOn(never); lost != 8 {
		t.Errorf("lost %d sectors, want all", lost)
	}
}

func TestSizeThatNoDiskHas(t *testing.T) {
	for _, n := range []int{0, 1, Sector + 1} {
		if _, err := New(make([]byte, n)); err == nil {
			t.Errorf("a disk of %d bytes was made", n)
		}
	}
}

// hello is what a client sends before its first request.
func hello() []byte {
	b := binary.BigEndian.AppendUint32(nil, 3)  // its flags
	for _, option := range []uint32{8, optGo} { // structured replies, which we have not; go
		b = binary.BigEndian.AppendUint64(b, magicOption)
		b = binary.BigEndian.AppendUint32(b, option)
		b = binary.BigEndian.AppendUint32(b, 6)
		b = append(b, "export"...)
	}
	return b
}

func encode(q request, data ...byte) []byte {
	q.Magic = magicAsk
	b, err := binary.Append(nil, binary.BigEndian, q)
	if err != nil {
		panic(err) // a struct of numbers
	}
	return append(b, data...)
}

// connect greets a disk and returns the connection after that.
func connect(t *testing.T, d *Disk) net.Conn {
	t.Helper()
	here, there := net.Pipe()
	ended := make(chan error, 1)
	go func() { ended <- d.converse(there); there.Close() }()
	t.Cleanup(func() { here.Close(); <-ended })
	greeting := make([]byte, 18)
	if _, err := io.ReadFull(here, greeting); err != nil || string(greeting[:16]) != "NBDMAGICIHAVEOPT" {
		t.Fatalf("greeting = %q, %v", greeting, err)
	}
	go func() { _, _ = here.Write(hello()) }()
	answers := make([]byte, 20+20+12+20) // unknown; info with size and flags; ack
	if _, err := io.ReadFull(here, answers); err != nil {
		t.Fatal(err)
	}
	if size := binary.BigEndian.Uint64(answers[42:]); size != 8*Sector {
		t.Fatalf("size = %d: %x", size, answers)
	}
	return here
}

// exchange sends a request and reads its answer, n bytes of data included.
func exchange(t *testing.T, conn net.Conn, q request, data []byte, n int) (code uint32, got []byte) {
	t.Helper()
	go func() { _, _ = conn.Write(encode(q, data...)) }()
	answer := make([]byte, 16+n)
	if _, err := io.ReadFull(conn, answer); err != nil {
		t.Fatal(err)
	}
	if binary.BigEndian.Uint32(answer) != magicAnswer || binary.BigEndian.Uint64(answer[8:]) != q.Handle {
		t.Fatalf("answer = %x", answer)
	}
	return binary.BigEndian.Uint32(answer[4:]), answer[16:]
}

func TestMachineReadsAndWrites(t *testing.T) {
	d := newDisk(t)
	conn := connect(t, d)
	if code, _ := exchange(t, conn, request{Type: cmdWrite, Handle: 1, Offset: Sector, Length: Sector}, fill('x', 1), 0); code != 0 {
		t.Errorf("write failed with %d", code)
	}
	if code, _ := exchange(t, conn, request{Type: cmdFlush, Handle: 2}, nil, 0); code != 0 {
		t.Errorf("flush failed with %d", code)
	}
	code, got := exchange(t, conn, request{Type: cmdRead, Handle: 3, Length: 2 * Sector}, nil, 2*Sector)
	if code != 0 || !bytes.Equal(got, append(fill('a', 1), fill('x', 1)...)) {
		t.Errorf("read = %d, %x", code, got)
	}
	if code, _ := exchange(t, conn, request{Type: 4, Handle: 4, Length: Sector}, nil, 0); code != errInvalid {
		t.Errorf("trim, which was not offered, gave %d", code)
	}
	d.Cut()
	d.PowerOn(never)
	if got := sectors(t, d); got != "axcdefgh" {
		t.Errorf("disk = %s", got)
	}
}

func TestRequestsThatNoDiskCanServe(t *testing.T) {
	tests := map[string]request{
		"past the end":                    {Type: cmdRead, Offset: 8 * Sector, Length: Sector},
		"from inside to past the end":     {Type: cmdWrite, Offset: 7 * Sector, Length: 2 * Sector},
		"an offset that wraps":            {Type: cmdRead, Offset: 1<<64 - Sector, Length: 2 * Sector},
		"part of a unit":                  {Type: cmdWrite, Offset: 0, Length: 1},
		"an offset inside a unit":         {Type: cmdRead, Offset: 1, Length: Sector},
		"more than is sent in one go":     {Type: cmdRead, Length: maxData + Sector},
		"a flush as long as no flush is":  {Type: cmdFlush, Length: maxData + 1},
		"a write longer than it is given": {Type: cmdWrite, Length: Sector},
	}
	for name, q := range tests {
		t.Run(name, func(t *testing.T) {
			d := newDisk(t)
			if err := d.answer(bytes.NewReader(encode(q, 1, 2, 3)), io.Discard); err == nil {
				t.Error("it was served")
			}
			if got := sectors(t, d); got != "abcdefgh" {
				t.Errorf("disk = %s", got)
			}
		})
	}
}

func TestMachineIsNotToldThatThePowerWent(t *testing.T) {
	d := newDisk(t)
	d.Cut()
	in := bytes.NewReader(join(hello(), encode(request{Type: cmdFlush}), encode(request{Type: cmdFlush})))
	var out bytes.Buffer
	err := d.converse(struct {
		io.Reader
		io.Writer
	}{in, &out})
	if !errors.Is(err, io.EOF) || bytes.Contains(out.Bytes(), binary.BigEndian.AppendUint32(nil, magicAnswer)) {
		t.Errorf("converse = %v, answered %x", err, out.Bytes())
	}
}

func join(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

func FuzzConverse(f *testing.F) {
	f.Add([]byte{})
	f.Add(hello())
	f.Add(join(hello(), encode(request{Type: cmdWrite, Length: Sector}, fill('x', 1)...), encode(request{Type: cmdFlush}), encode(request{Type: cmdClose})))
	f.Add(join(hello(), encode(request{Type: cmdRead, Offset: 1<<64 - 1, Length: 1<<32 - 1})))
	f.Add(join(binary.BigEndian.AppendUint32(nil, 3), binary.BigEndian.AppendUint64(nil, magicOption), []byte{0, 0, 0, optAbort, 0xff, 0xff, 0xff, 0xff}))
	f.Fuzz(func(t *testing.T, in []byte) {
		d, err := New(content(8))
		if err != nil {
			t.Fatal(err)
		}
		err = d.converse(struct {
			io.Reader
			io.Writer
		}{bytes.NewReader(in), io.Discard})
		if err == nil {
			t.Error("the conversation ended without a reason")
		}
		if len(d.content) != 8*Sector {
			t.Errorf("disk has %d bytes now", len(d.content))
		}
		d.Cut()
		d.PowerOn(always)
	})
}
