// Command forward connects its standard input and output to a TCP address. QEMU
// starts one for each connection that a machine makes to the service, which is
// the only way out of the machine.
//
// It says nothing when it fails: QEMU hands its standard error to the machine as
// well, as part of the connection. The machine sees the connection end.
package main

import (
	"errors"
	"io"
	"net"
	"os"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 1 {
		return errors.New("need one argument, HOST:PORT")
	}
	conn, err := net.Dial("tcp", args[0])
	if err != nil {
		return err
	}
	defer conn.Close()
	go func() {
		_, _ = io.Copy(conn, os.Stdin)
		_ = conn.(*net.TCPConn).CloseWrite()
	}()
	_, err = io.Copy(os.Stdout, conn)
	return err
}
