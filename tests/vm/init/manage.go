package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"livepatch/tests/vm/guest"
)

// A manager owns the units and serves the harness.
type manager struct {
	config   guest.Config
	services map[string]*service

	mu   sync.Mutex // held while a response is written
	port *os.File
}

// manage runs the machine. It returns, with the reason, only when it cannot.
func manage() error {
	cfg, err := setUp()
	if err != nil {
		return err
	}
	m := &manager{config: cfg, services: make(map[string]*service)}
	if m.port, err = openPort(); err != nil {
		return err
	}
	for _, u := range cfg.Units {
		if m.services[u.Name], err = newService(u); err != nil {
			return err
		}
	}
	for _, j := range cfg.AtBoot {
		runJob(j)
	}
	for _, u := range cfg.Units {
		if enabled(u.Name) {
			m.services[u.Name].start()
		}
	}
	if err := m.hello(); err != nil {
		return err
	}
	return m.serve()
}

// openPort opens the control port, which the kernel names by number.
func openPort() (*os.File, error) {
	if !appears("/sys/class/virtio-ports/*/name") {
		return nil, errors.New("cannot find control port")
	}
	names, err := filepath.Glob("/sys/class/virtio-ports/*/name")
	if err != nil {
		return nil, err
	}
	for _, file := range names {
		b, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		if strings.TrimSpace(string(b)) == guest.Port {
			return os.OpenFile(filepath.Join("/dev", filepath.Base(filepath.Dir(file))), os.O_RDWR, 0)
		}
	}
	return nil, fmt.Errorf("cannot find control port %q", guest.Port)
}

// hello says that the machine has started. The empty line before it ends
// whatever the boot before this one left half written.
func (m *manager) hello() error {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return err
	}
	if _, err := m.port.Write([]byte("\n")); err != nil {
		return fmt.Errorf("cannot write to control port: %w", err)
	}
	return m.answer(guest.Response{Boot: strings.TrimSpace(string(boot))})
}

// serve handles requests until the port is closed.
func (m *manager) serve() error {
	r := bufio.NewReader(m.port)
	for {
		line, err := r.ReadBytes('\n')
		if err == io.EOF { // the harness is not connected
			time.Sleep(10 * time.Millisecond)
			continue
		}
		if err != nil {
			return fmt.Errorf("cannot read from control port: %w", err)
		}
		var req guest.Request
		if err := json.Unmarshal(line, &req); err != nil {
			slog.Warn("Cannot read request", "err", err)
			continue
		}
		go func() {
			if err := m.answer(m.handle(req)); err != nil {
				slog.Warn("Cannot answer request", "err", err)
			}
		}()
	}
}

func (m *manager) answer(resp guest.Response) error {
	b, err := json.Marshal(resp)
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	_, err = m.port.Write(append(b, '\n'))
	return err
}

// handle serves one request.
func (m *manager) handle(req guest.Request) guest.Response {
	resp := guest.Response{ID: req.ID}
	switch req.Op {
	case guest.OpRun:
		resp = run(req)
	case guest.OpStart, guest.OpStop:
		s, ok := m.services[req.Unit]
		if !ok {
			resp.Error = fmt.Sprintf("no unit %q", req.Unit)
			break
		}
		if req.Op == guest.OpStart {
			s.start()
		} else {
			s.end()
		}
	case guest.OpReboot:
		resp.Error = m.leave(unix.LINUX_REBOOT_CMD_RESTART).Error()
	case guest.OpPoweroff:
		resp.Error = m.leave(unix.LINUX_REBOOT_CMD_POWER_OFF).Error()
	default:
		resp.Error = fmt.Sprintf("unknown request %q", req.Op)
	}
	return resp
}

// run runs a shell command and returns what it printed and how it ended.
func run(req guest.Request) guest.Response {
	var stdout, stderr bytes.Buffer
	cmd := exec.Command("/bin/sh", "-c", req.Command)
	cmd.Env = []string{"PATH=" + path, "HOME=/root"}
	cmd.Dir = "/"
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(req.Stdin), &stdout, &stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if req.UID != 0 || req.GID != 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: req.UID, Gid: req.GID}
	}
	// A command may leave something in the background that keeps its output
	// open; what it printed until then is the answer.
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	resp := guest.Response{ID: req.ID, Stdout: stdout.Bytes(), Stderr: stderr.Bytes()}
	if cmd.ProcessState == nil {
		resp.Error = err.Error()
		return resp
	}
	status := cmd.ProcessState.Sys().(syscall.WaitStatus)
	resp.Code = status.ExitStatus()
	if status.Signaled() {
		resp.Code = 128 + int(status.Signal())
	}
	return resp
}

// leave stops all units, the last first, and ends the machine. It returns only
// if the kernel refuses.
func (m *manager) leave(how int) error {
	for i := len(m.config.Units) - 1; i >= 0; i-- {
		start := time.Now()
		m.services[m.config.Units[i].Name].end()
		slog.Info("Stopped unit", "unit", m.config.Units[i].Name, "took", time.Since(start).Round(time.Millisecond))
	}
	for _, j := range m.config.AtShutdown {
		runJob(j)
	}
	if m.config.Root != "" {
		return leaveSystemd(how)
	}
	return shutDown(how)
}
