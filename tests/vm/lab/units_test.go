package lab

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestUnitsWeShipBecomeTheMachines(t *testing.T) {
	cfg, err := readUnits("../../../packaging/systemd")
	if err != nil {
		t.Fatal(err)
	}
	if len(cfg.Units) != 2 || cfg.Units[0].Name != Loader || cfg.Units[1].Name != Agent {
		t.Fatalf("units = %+v, want the loader and the agent", cfg.Units)
	}
	loader, agent := cfg.Units[0], cfg.Units[1]
	if loader.UID != 0 || loader.Socket == nil || loader.Socket.Mode != 0o660 || loader.Socket.GID != AgentUID {
		t.Errorf("loader = %+v with socket %+v, want root's, started by a socket for root and the agent", loader, loader.Socket)
	}
	if !slices.Contains(loader.Command, "997") {
		t.Errorf("loader's command = %q, want one that names the agent's uid", loader.Command)
	}
	if agent.UID != AgentUID || agent.Socket != nil {
		t.Errorf("agent = %+v, want the agent's user and no socket", agent)
	}
	for what, job := range map[string][]string{"-boot": cfg.AtBoot[0].Command, "-shutdown": cfg.AtShutdown[0].Command} {
		if !slices.Contains(job, what) {
			t.Errorf("command = %q, want %s", job, what)
		}
	}
	for _, d := range cfg.Dirs {
		if strings.HasSuffix(d.Path, "livepatch-loader") && (d.Mode != 0o700 || d.UID != 0) {
			t.Errorf("loader's state = %+v, want root's alone", d)
		}
	}
}

func TestUnitsThatCannotBeReadAreAnError(t *testing.T) {
	tests := map[string]string{
		"a line before any section": "ExecStart=/bin/true\n",
		"a line without a value":    "[Service]\nExecStart\n",
	}
	for name, text := range tests {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, "a.service"), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			if u, err := readUnit(dir, "a.service"); err == nil {
				t.Errorf("unit = %v, want an error", u)
			}
		})
	}
}
