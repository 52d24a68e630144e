package main

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// programs are in the snap, in bin. The first is that of the hooks.
var programs = []string{"canonical-livepatch", "canonical-livepatchd", "livepatch-loader"}

// Sources say where the content of a snap comes from.
type sources struct {
	bin     string // folder with the programs
	trust   string // folder with root.json, livepatch-kmod.x509 and, if there is any, metadata
	cas     string // file with the certificate authorities, PEM
	license string
}

// layOut makes the tree of the snap in the folder dir, but for meta. Each file is
// checked to be what it is called: a snap with a wrong root would be installed
// everywhere and help nobody.
func layOut(dir string, s sources, hooks []string, hookDir string) error {
	if _, err := os.Stat(filepath.Join(s.trust, "root.json")); err != nil {
		return fmt.Errorf("cannot use folder %s as what the snap trusts: %w", s.trust, err)
	}
	for _, f := range []struct {
		from, to string
		mode     fs.FileMode
		check    func([]byte) error
	}{
		{filepath.Join(s.bin, programs[0]), "bin/" + programs[0], 0o755, checkStatic},
		{filepath.Join(s.bin, programs[1]), "bin/" + programs[1], 0o755, checkStatic},
		{filepath.Join(s.bin, programs[2]), "bin/" + programs[2], 0o755, checkStatic},
		{filepath.Join(s.trust, "root.json"), "tuf/root.json", 0o644, checkRole("root")},
		{filepath.Join(s.trust, "livepatch-kmod.x509"), "keys/livepatch-kmod.x509", 0o644, checkCertificate},
		{s.cas, "etc/ssl/certs/ca-certificates.crt", 0o644, checkAuthorities},
		{s.license, "LICENSE", 0o644, func([]byte) error { return nil }},
	} {
		if err := install(f.from, filepath.Join(dir, f.to), f.mode, f.check); err != nil {
			return err
		}
	}
	if err := installMetadata(filepath.Join(s.trust, "metadata"), filepath.Join(dir, "tuf/metadata")); err != nil {
		return err
	}
	return link(filepath.Join(dir, hookDir), hooks)
}

// install copies a file if check is content with it.
func install(from, to string, mode fs.FileMode, check func([]byte) error) error {
	b, err := os.ReadFile(from)
	if err == nil {
		err = check(b)
	}
	if err != nil {
		return fmt.Errorf("cannot use %s: %w", from, err)
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	return os.WriteFile(to, b, mode)
}

// installMetadata copies recent files of the TUF repository: what a machine starts
// from, and nothing older than which it believes.
func installMetadata(from, to string) error {
	if err := os.MkdirAll(to, 0o755); err != nil {
		return err
	}
	entries, err := os.ReadDir(from)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		name := e.Name()
		role := strings.TrimLeft(strings.TrimSuffix(name, ".json"), "0123456789.")
		if err := install(filepath.Join(from, name), filepath.Join(to, name), 0o644, checkRole(role)); err != nil {
			return err
		}
	}
	return err
}

// link makes the hooks: the CLI under other names.
func link(dir string, hooks []string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for _, h := range hooks {
		to := filepath.Join(dir, h)
		if err := errors.Join(os.RemoveAll(to), os.Symlink("../../bin/"+programs[0], to)); err != nil {
			return err
		}
	}
	return nil
}

// checkStatic refuses a program that needs a loader or a library: there is none
// in the snap.
func checkStatic(b []byte) error {
	if !bytes.HasPrefix(b, []byte("\x7fELF")) {
		return errors.New("it is no program")
	}
	return checkELF(b)
}

// checkRole refuses what is not a file of a TUF role; that it is signed well is
// for those who trust the root to say.
func checkRole(role string) func([]byte) error {
	return func(b []byte) error {
		var file struct {
			Signed struct {
				Type string `json:"_type"`
			} `json:"signed"`
		}
		if err := json.Unmarshal(b, &file); err != nil {
			return fmt.Errorf("it is no file of a TUF repository: %w", err)
		}
		if file.Signed.Type != role {
			return fmt.Errorf("it is of TUF role %q, need %q", file.Signed.Type, role)
		}
		return nil
	}
}

// checkCertificate refuses what mokutil could not import.
func checkCertificate(b []byte) error {
	if _, err := x509.ParseCertificate(b); err != nil {
		return fmt.Errorf("it is no certificate in DER form: %w", err)
	}
	return nil
}

func checkAuthorities(b []byte) error {
	if block, _ := pem.Decode(b); block == nil || block.Type != "CERTIFICATE" {
		return errors.New("there is no certificate in PEM form in it")
	}
	return nil
}
