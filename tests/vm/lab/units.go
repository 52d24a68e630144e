package lab

import (
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	"livepatch/tests/vm/guest"
)

// A section is one part of a systemd unit, and what it says of each key. Of a key
// that may stand several times the last counts; that is enough for what is read
// here.
type section map[string]string

// readUnit reads a unit file of packaging/systemd.
func readUnit(dir, name string) (map[string]section, error) {
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		return nil, err
	}
	unit := make(map[string]section)
	var current section
	for line := range strings.Lines(string(b)) {
		line = strings.TrimSpace(line)
		switch {
		case line == "" || line[0] == '#':
		case line[0] == '[':
			current = make(section)
			unit[strings.Trim(line, "[]")] = current
		default:
			key, value, ok := strings.Cut(line, "=")
			if !ok || current == nil {
				return nil, fmt.Errorf("cannot read unit %s: line %q", name, line)
			}
			current[key] = value
		}
	}
	return unit, nil
}

// readUnits turns the units that we ship into what the machine's first process
// does in systemd's place: the same commands, users, folders and socket. The
// sandbox is left out.
func readUnits(dir string) (guest.Config, error) {
	units := make(map[string]map[string]section)
	for _, name := range []string{"livepatch-loader.socket", "livepatch-loader.service", "livepatch-loader-boot.service", "canonical-livepatchd.service"} {
		u, err := readUnit(dir, name)
		if err != nil {
			return guest.Config{}, err
		}
		units[name] = u
	}
	socket := units["livepatch-loader.socket"]["Socket"]
	loader := units["livepatch-loader.service"]["Service"]
	boot := units["livepatch-loader-boot.service"]["Service"]
	agent := units["canonical-livepatchd.service"]["Service"]
	mode, err := permissions(socket["SocketMode"])
	if err != nil {
		return guest.Config{}, err
	}
	cfg := guest.Config{
		AtBoot:     []guest.Job{{Name: "livepatch-loader-boot", Command: commandOf(boot["ExecStart"])}},
		AtShutdown: []guest.Job{{Name: "livepatch-loader-boot (stop)", Command: commandOf(boot["ExecStop"])}},
		Units: []guest.Unit{
			{
				Name: Loader, Command: commandOf(loader["ExecStart"]),
				Socket: &guest.Socket{Path: socket["ListenStream"], Mode: mode, UID: userID(socket["SocketUser"]), GID: userID(socket["SocketGroup"])},
			},
			{
				Name: Agent, Command: commandOf(agent["ExecStart"]),
				UID: uint32(userID(agent["User"])), GID: uint32(userID(agent["Group"])),
			},
		},
	}
	cfg.Dirs = []guest.Dir{{Path: path.Dir(socket["ListenStream"]), Mode: 0o755}}
	for _, s := range []section{loader, agent} {
		dirs, err := dirsOf(s)
		if err != nil {
			return guest.Config{}, err
		}
		cfg.Dirs = append(cfg.Dirs, dirs...)
	}
	return cfg, nil
}

// dirsOf returns the folders that systemd makes for a service.
func dirsOf(s section) ([]guest.Dir, error) {
	var dirs []guest.Dir
	for key, parent := range map[string]string{"StateDirectory": "/var/lib", "RuntimeDirectory": "/run"} {
		if s[key] == "" {
			continue
		}
		mode, err := permissions(s[key+"Mode"])
		if err != nil {
			return nil, err
		}
		dirs = append(dirs, guest.Dir{Path: path.Join(parent, s[key]), Mode: mode, UID: userID(s["User"]), GID: userID(s["Group"])})
	}
	return dirs, nil
}

// commandOf splits a command line of a unit. Ours have no quotes.
func commandOf(line string) []string {
	return strings.Fields(strings.ReplaceAll(line, "${AGENT_UID}", strconv.Itoa(AgentUID)))
}

func permissions(s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 8, 32)
	if err != nil {
		return 0, fmt.Errorf("cannot read mode %q of a unit: %w", s, err)
	}
	return uint32(fs.FileMode(n).Perm()), nil
}

// userID returns the number of a user or group of the machine.
func userID(name string) int {
	if name == "livepatch" {
		return AgentUID
	}
	return 0
}
