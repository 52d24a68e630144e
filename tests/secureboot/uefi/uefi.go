// Package uefi writes the variables of a UEFI firmware as OVMF keeps them in its
// flash, from outside: keys for a test machine, without a person who enrols them.
//
// Names and formats are those of the UEFI specification 2.10, chapters 8.2
// (variables) and 32.4 (signature lists), and of the UEFI Platform Initialization
// specification 1.8, volume 3 (firmware volumes); how variables lie in the flash is
// EDK II's MdeModulePkg/Include/Guid/VariableFormat.h.
package uefi

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"unicode/utf16"
)

// A GUID is in the order of bytes that UEFI has in memory.
type GUID [16]byte

// Vendors of variables.
var (
	Global   = guid(0x8be4df61, 0x93ca, 0x11d2, 0xaa0d00e098032b8c) // PK, KEK
	Security = guid(0xd719b2cb, 0x3d3a, 0x4596, 0xa3bcdad00e67656f) // db, dbx
	Shim     = guid(0x605dab50, 0xe046, 0x4300, 0xabb63dd810dd8b23) // MokList, MokListX
)

// guid returns the GUID that is written a-b-c-d, d with a dash after its first four
// digits. The first three parts are little-endian.
func guid(a uint32, b, c uint16, d uint64) (g GUID) {
	binary.LittleEndian.PutUint32(g[0:], a)
	binary.LittleEndian.PutUint16(g[4:], b)
	binary.LittleEndian.PutUint16(g[6:], c)
	binary.BigEndian.PutUint64(g[8:], d)
	return g
}

// Attributes of a variable.
type Attributes uint32

// What a variable can be.
const (
	NonVolatile   Attributes = 0x1
	BootService   Attributes = 0x2  // can be read before the system starts
	Runtime       Attributes = 0x4  // and after
	Authenticated Attributes = 0x20 // written only with a signature, by time

	// KeyAttributes are those of PK, KEK, db and dbx.
	KeyAttributes = NonVolatile | BootService | Runtime | Authenticated
)

// A Variable is a variable and its value.
type Variable struct {
	Name       string
	Vendor     GUID
	Attributes Attributes
	Data       []byte
}

// A Store is a flash image with variables.
type Store struct {
	image []byte
	start int // of the first variable
	end   int // of the room for variables
	vars  []variable
}

// A variable also has what Variable leaves out.
type variable struct {
	Variable
	header [headerSize]byte
}

// Sizes, offsets and values of the flash format.
const (
	volumeSignature       = 40 // "_FVH"
	volumeHeaderSize      = 48 // where it stands, uint16
	storeHeaderSize       = 28
	storeSize             = 16 // where it stands, uint32, from the start of the store
	headerSize            = 60
	headerMark            = 0x55aa
	stateAdded            = 0x3f
	offsetState           = 2
	offsetAttributes      = 4
	offsetTime            = 16
	offsetNameSize        = 36
	offsetDataSize        = 40
	offsetVendor          = 44
	alignment             = 4
	erased           byte = 0xff
)

// storeFormat identifies a store whose variables have 60 bytes of header.
var storeFormat = guid(0xaaf32c78, 0x947b, 0x439a, 0xa1802e144ec37792)

// errFormat is the cause when an image is none of variables.
var errFormat = errors.New("not a flash image of authenticated variables")

// ParseStore reads a flash image. Variables that were deleted in it are left out.
func ParseStore(image []byte) (*Store, error) {
	s := &Store{image: bytes.Clone(image)}
	if err := s.parseHeaders(); err != nil {
		return nil, fmt.Errorf("cannot read firmware variables: %w", err)
	}
	for at := s.start; ; {
		v, size, err := parseVariable(s.image[at:s.end])
		if err != nil {
			return nil, fmt.Errorf("cannot read firmware variable at %#x: %w", at, err)
		}
		if size == 0 {
			return s, nil
		}
		if v.header[offsetState] == stateAdded {
			s.vars = append(s.vars, v)
		}
		at += min(size, s.end-at)
	}
}

// parseHeaders finds the store in the volume.
func (s *Store) parseHeaders() error {
	b := s.image
	if len(b) < volumeHeaderSize+2 || string(b[volumeSignature:][:4]) != "_FVH" {
		return errFormat
	}
	store := int(binary.LittleEndian.Uint16(b[volumeHeaderSize:]))
	if len(b) < store+storeHeaderSize || GUID(b[store:][:16]) != storeFormat {
		return errFormat
	}
	size := binary.LittleEndian.Uint32(b[store+storeSize:])
	if size < storeHeaderSize || uint64(size) > uint64(len(b)-store) {
		return fmt.Errorf("%w: the store has %d bytes of %d", errFormat, size, len(b)-store)
	}
	s.start, s.end = store+storeHeaderSize, store+int(size)
	return nil
}

// parseVariable reads the variable at the start of b. Its size includes what fills
// it up to the next one; 0 means that there is none.
func parseVariable(b []byte) (v variable, size int, err error) {
	if len(b) < headerSize || binary.LittleEndian.Uint16(b) != headerMark {
		return v, 0, nil
	}
	copy(v.header[:], b)
	name, data := binary.LittleEndian.Uint32(b[offsetNameSize:]), binary.LittleEndian.Uint32(b[offsetDataSize:])
	if uint64(headerSize)+uint64(name)+uint64(data) > uint64(len(b)) || name%2 != 0 {
		return v, 0, fmt.Errorf("name of %d and data of %d bytes in %d", name, data, len(b))
	}
	rest := b[headerSize:]
	v.Name = decodeName(rest[:name])
	if !bytes.Equal(encodeName(v.Name), rest[:name]) {
		return v, 0, fmt.Errorf("its name is %x", rest[:name])
	}
	v.Data = bytes.Clone(rest[name:][:data])
	v.Attributes = Attributes(binary.LittleEndian.Uint32(b[offsetAttributes:]))
	v.Vendor = GUID(b[offsetVendor:][:16])
	return v, align(headerSize + int(name) + int(data)), nil
}

func align(n int) int { return (n + alignment - 1) / alignment * alignment }

// decodeName reads UTF-16 up to the first zero.
func decodeName(b []byte) string {
	var units []uint16
	for ; len(b) >= 2; b = b[2:] {
		u := binary.LittleEndian.Uint16(b)
		if u == 0 {
			break
		}
		units = append(units, u)
	}
	return string(utf16.Decode(units))
}

func encodeName(name string) (b []byte) {
	for _, u := range append(utf16.Encode([]rune(name)), 0) {
		b = binary.LittleEndian.AppendUint16(b, u)
	}
	return b
}

// Variables returns the variables, in their order.
func (s *Store) Variables() (list []Variable) {
	for _, v := range s.vars {
		list = append(list, v.Variable)
	}
	return list
}

// Get returns a variable's data, and whether there is such a variable.
func (s *Store) Get(vendor GUID, name string) ([]byte, bool) {
	i := s.index(vendor, name)
	if i < 0 {
		return nil, false
	}
	return s.vars[i].Data, true
}

func (s *Store) index(vendor GUID, name string) int {
	return slices.IndexFunc(s.vars, func(v variable) bool { return v.Vendor == vendor && v.Name == name })
}

// Set adds a variable, or replaces the one of its vendor and name. Nobody asks for
// a signature here.
func (s *Store) Set(v Variable) {
	entry := variable{Variable: v}
	if v.Attributes&Authenticated != 0 {
		entry.header = setTime(entry.header)
	}
	if i := s.index(v.Vendor, v.Name); i >= 0 {
		s.vars[i] = entry
		return
	}
	s.vars = append(s.vars, entry)
}

// setTime sets the time of the signature that the variable would have been written
// with: some day in the past, so that later updates are newer.
func setTime(h [headerSize]byte) [headerSize]byte {
	binary.LittleEndian.PutUint16(h[offsetTime:], 2020)
	h[offsetTime+2], h[offsetTime+3] = 1, 1 // month and day
	return h
}

// Image returns the flash image.
func (s *Store) Image() ([]byte, error) {
	image := bytes.Clone(s.image)
	room := image[s.start:s.end]
	for i := range room {
		room[i] = erased
	}
	for _, v := range s.vars {
		b := v.encode()
		if len(b) > len(room) {
			return nil, fmt.Errorf("cannot write firmware variable %s: no room", v.Name)
		}
		copy(room, b)
		room = room[min(align(len(b)), len(room)):]
	}
	return image, nil
}

func (v *variable) encode() []byte {
	name := encodeName(v.Name)
	h := v.header
	binary.LittleEndian.PutUint16(h[0:], headerMark)
	h[offsetState] = stateAdded
	binary.LittleEndian.PutUint32(h[offsetAttributes:], uint32(v.Attributes))
	binary.LittleEndian.PutUint32(h[offsetNameSize:], uint32(len(name)))
	binary.LittleEndian.PutUint32(h[offsetDataSize:], uint32(len(v.Data)))
	copy(h[offsetVendor:], v.Vendor[:])
	return slices.Concat(h[:], name, v.Data)
}
