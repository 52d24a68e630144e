package module_test

import (
	"bytes"
	"crypto/sha256"
	"debug/elf"
	"errors"
	"strings"
	"testing"

	"livepatch/internal/elftest"
	"livepatch/internal/patch"
	"livepatch/internal/service"
	"livepatch/publisher/internal/module"
)

const release = "6.1.0-53-amd64"

// relocatable returns a module with these fields in .modinfo.
func relocatable(fields ...string) []byte {
	return elftest.File{Type: elf.ET_REL, Sections: []elftest.Section{elftest.Modinfo(fields...)}}.Bytes()
}

func TestRead(t *testing.T) {
	good := elftest.Livepatch("lkp_Debian_6_1_0_53_amd64_1", release)
	tests := map[string]struct {
		file    []byte
		want    module.Info // Length and Digest are filled in
		wantErr error
		says    string
	}{
		"a livepatch": {
			file: good,
			want: module.Info{Arch: "x86_64", Release: release, Name: "lkp_Debian_6_1_0_53_amd64_1"},
		},
		"a livepatch for aarch64": {
			file: elftest.File{Type: elf.ET_REL, Machine: elf.EM_AARCH64, Sections: []elftest.Section{elftest.Modinfo("livepatch=Y", "name=lp", "vermagic=6.1.0 SMP")}}.Bytes(),
			want: module.Info{Arch: "aarch64", Release: "6.1.0", Name: "lp"},
		},
		"a livepatch for s390x": {
			file: elftest.File{Type: elf.ET_REL, Machine: elf.EM_S390, BigEnd: true, Sections: []elftest.Section{elftest.Modinfo("livepatch=Y", "name=lp", "vermagic=6.1.0 SMP")}}.Bytes(),
			want: module.Info{Arch: "s390x", Release: "6.1.0", Name: "lp"},
		},
		"a livepatch for ppc64le": {
			file: elftest.File{Type: elf.ET_REL, Machine: elf.EM_PPC64, Sections: []elftest.Section{elftest.Modinfo("livepatch=Y", "name=lp", "vermagic=6.1.0 SMP")}}.Bytes(),
			want: module.Info{Arch: "ppc64le", Release: "6.1.0", Name: "lp"},
		},
		"big-endian ppc64 is no target":  {file: elftest.File{Type: elf.ET_REL, Machine: elf.EM_PPC64, BigEnd: true}.Bytes(), wantErr: module.ErrNotELF, says: "want x86_64"},
		"nothing":                        {file: nil, wantErr: module.ErrNotELF},
		"a text":                         {file: []byte("#!/bin/sh\n"), wantErr: module.ErrNotELF},
		"compressed":                     {file: []byte("\xfd7zXZ\x00"), wantErr: module.ErrNotELF},
		"the ELF magic and no more":      {file: []byte(elf.ELFMAG), wantErr: module.ErrTruncated},
		"half of it":                     {file: good[:len(good)/2], wantErr: module.ErrTruncated},
		"without its last byte":          {file: good[:len(good)-1], wantErr: module.ErrTruncated},
		"a program":                      {file: elftest.File{Type: elf.ET_EXEC}.Bytes(), wantErr: module.ErrNotELF, says: "ET_EXEC"},
		"no .modinfo":                    {file: elftest.File{Type: elf.ET_REL}.Bytes(), wantErr: module.ErrNotELF, says: ".modinfo"},
		"an ordinary module":             {file: relocatable("name=ext4", "vermagic="+release), wantErr: patch.ErrNotLivepatch},
		"livepatch=N":                    {file: relocatable("livepatch=N", "name=lp", "vermagic="+release), wantErr: patch.ErrNotLivepatch},
		"livepatch said twice":           {file: relocatable("livepatch=Y", "livepatch=Y", "name=lp", "vermagic="+release), wantErr: patch.ErrNotLivepatch},
		"no vermagic":                    {file: relocatable("livepatch=Y", "name=lp"), wantErr: module.ErrNoField, says: "vermagic"},
		"two vermagics":                  {file: relocatable("livepatch=Y", "name=lp", "vermagic=6.1.0", "vermagic=6.2.0"), wantErr: module.ErrNoField, says: "2 times vermagic"},
		"an empty vermagic":              {file: relocatable("livepatch=Y", "name=lp", "vermagic="), wantErr: patch.ErrInvalid},
		"a vermagic that climbs":         {file: relocatable("livepatch=Y", "name=lp", "vermagic=../etc"), wantErr: patch.ErrInvalid},
		"no name":                        {file: relocatable("livepatch=Y", "vermagic="+release), wantErr: module.ErrNoField, says: "name"},
		"a name that is a path":          {file: relocatable("livepatch=Y", "name=a/b", "vermagic="+release), wantErr: patch.ErrInvalid},
		"a name longer than Linux takes": {file: relocatable("livepatch=Y", "name="+strings.Repeat("a", 56), "vermagic="+release), wantErr: patch.ErrInvalid},
		"larger than 64 MiB":             {file: append(bytes.Clone(good), make([]byte, service.MaxModule)...), wantErr: patch.ErrTooLarge},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := module.Read(tc.file)
			if !errors.Is(err, tc.wantErr) {
				t.Fatalf("error = %v, want %v", err, tc.wantErr)
			}
			if err != nil {
				if !strings.Contains(err.Error(), tc.says) {
					t.Errorf("error = %v, want it to say %q", err, tc.says)
				}
				return
			}
			tc.want.Length, tc.want.Digest = int64(len(tc.file)), sha256.Sum256(tc.file)
			if got != tc.want {
				t.Errorf("info = %+v, want %+v", got, tc.want)
			}
		})
	}
}

func TestNaming(t *testing.T) {
	debian := module.Naming{
		Vendor: "debian", Release: "6.1.0-53-cloud-amd64", KernelVersion: "6.1.187-1",
		Flavour: "cloud-amd64", Version: "113.1", Sequence: 3,
	}
	ubuntu := module.Naming{
		Vendor: "ubuntu", Release: "6.8.0-1047-aws", KernelVersion: "6.8.0-1047.50-aws",
		Flavour: "aws", Version: "121.1", Sequence: 7,
	}
	tests := map[string]struct {
		naming module.Naming
		name   string
		ok     bool
	}{
		"with the whole version":          {debian, "lkp_Debian_6_1_0_53_cloud_amd64_113_1", true},
		"with the first number":           {debian, "lkp_Debian_6_1_0_53_cloud_amd64_113", true},
		"with the sequence number":        {debian, "lkp_Debian_6_1_0_53_cloud_amd64_3", true},
		"all in lower case":               {debian, "lkp_debian_6_1_0_53_cloud_amd64_113", true},
		"with the version of the package": {debian, "lkp_Debian_6_1_187_1_cloud_amd64_113", true},
		"as Ubuntu does":                  {ubuntu, "lkp_Ubuntu_6_8_0_1047_50_aws_121", true},
		"another version":                 {debian, "lkp_Debian_6_1_0_53_cloud_amd64_114", false},
		"another kernel":                  {debian, "lkp_Debian_6_1_0_54_cloud_amd64_113", false},
		"another flavour":                 {debian, "lkp_Debian_6_1_0_53_amd64_113", false},
		"another vendor":                  {debian, "lkp_Ubuntu_6_1_0_53_cloud_amd64_113", false},
		"another prefix":                  {debian, "livepatch_6_1_0_53", false},
		"no version":                      {debian, "lkp_Debian_6_1_0_53_cloud_amd64", false},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			err := tc.naming.Check(tc.name)
			if tc.ok != (err == nil) || err != nil && !errors.Is(err, module.ErrName) {
				t.Errorf("Check(%q) = %v", tc.name, err)
			}
		})
	}
	if got, want := debian.Suggest(), "lkp_Debian_6_1_0_53_cloud_amd64_113_1"; got != want {
		t.Errorf("Suggest() = %q, want %q", got, want)
	}
	if err := debian.Check(debian.Suggest()); err != nil {
		t.Errorf("what is suggested is refused: %v", err)
	}
}

func TestCheckFileName(t *testing.T) {
	if err := module.CheckFileName("lp.ko", "lp"); err != nil {
		t.Errorf("lp in lp.ko: %v", err)
	}
	if err := module.CheckFileName("other.ko", "lp"); !errors.Is(err, module.ErrName) {
		t.Errorf("lp in other.ko: %v, want ErrName", err)
	}
}

func FuzzRead(f *testing.F) {
	good := elftest.Livepatch("lkp_Debian_6_1_0_53_amd64_1", release)
	f.Add(good)
	f.Add(good[:len(good)-1])
	f.Add(elftest.Vmlinux("6.1.0", "00112233445566778899aabbccddeeff00112233"))
	f.Add(relocatable("livepatch=Y", "name=lp"))
	f.Fuzz(func(t *testing.T, b []byte) {
		info, err := module.Read(b)
		if err != nil {
			return
		}
		if patch.CheckModuleName(info.Name) != nil || patch.CheckWord("release", info.Release) != nil || info.Arch == "" {
			t.Errorf("accepted with info %+v", info)
		}
	})
}
