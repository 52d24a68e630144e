//go:build snap

package snap

import (
	"context"
	"io/fs"

	"livepatch/tests/vm/debian"
	"livepatch/tests/vm/machine"
)

// standIns is where the disks have the snaps that stand in for those of a store.
const standIns = "/var/lib/stand-ins"

// packStandIns makes the two snaps that snapd asks a store for before it installs
// any other. "snapd" holds what snapd reads of its own snap: its version, and the
// profile of snap-confine. "bare" is the base of our snap and holds the places
// where snap-confine mounts something. They are packed when the disk is made, from
// what the suite's own package has.
const packStandIns = `
trap 'rm -rf pack' EXIT
out=$PWD` + standIns + `
mkdir -p "$out"
pack() { mksquashfs "pack/$1" "$out/$1.snap" -quiet -no-progress -noappend -comp xz -all-root -no-xattrs -no-fragments >/dev/null; }

mkdir -p pack/snapd/meta pack/snapd/usr/lib/snapd pack/snapd/etc/apparmor.d
cp usr/lib/snapd/info pack/snapd/usr/lib/snapd/
cp etc/apparmor.d/usr.lib.snapd.snap-confine* pack/snapd/etc/apparmor.d/usr.lib.snapd.snap-confine.real
printf 'name: snapd\ntype: snapd\nversion: "1"\nsummary: Stands in for snapd\ndescription: For tests.\n' >pack/snapd/meta/snap.yaml
pack snapd

mkdir -p pack/bare/meta
for d in dev etc home root proc sys tmp run media mnt opt boot snap lib/modules lib/firmware usr/src usr/lib/snapd usr/share/fonts \
	var/snap var/log var/tmp var/cache/fontconfig var/lib/snapd var/lib/extrausers; do mkdir -p "pack/bare/$d"; done
printf 'name: bare\ntype: base\nversion: "1"\nsummary: Stands in for bare\ndescription: For tests.\n' >pack/bare/meta/snap.yaml
pack bare
`

// recipe is a Debian with snapd, to which an ordinary user can log in.
func recipe(s debian.Suite) debian.Recipe {
	return debian.Recipe{
		Suite:    s,
		Packages: []string{"snapd", "apparmor", "libpam-systemd", "dbus-user-session", "login", "strace"},
		Mask: []string{
			"snapd.recovery-chooser-trigger.service", "snapd.autoimport.service", "snapd.system-shutdown.service",
			"snapd.snap-repair.timer", "snapd.core-fixup.service", "ssh-agent.service", "gpg-agent.service",
		},
		Files: []machine.File{
			{Path: "/home/user", Mode: fs.ModeDir | 0o755},
			// Not one line of what is denied may be lost.
			{Path: "/etc/sysctl.d/test.conf", Data: []byte("kernel.printk_ratelimit = 0\n")},
		},
		Commands: []string{
			"echo user:x:1000:1000::/home/user:/bin/sh >>etc/passwd; echo user:x:1000: >>etc/group; echo 'user:*:20000:0:99999:7:::' >>etc/shadow; chown 1000:1000 home/user",
			packStandIns,
		},
	}
}

// installStandIns is done once for each disk: half of a test's time would go there.
var installStandIns = []string{
	"snap wait system seed.loaded",
	"snap install --dangerous " + standIns + "/snapd.snap",
	"snap install --dangerous " + standIns + "/bare.snap",
	"snap list",
	// What a store would be asked for, and when: never here.
	"snap set system refresh.timer=fri5,23:00-23:01",
}

// makeDisk returns a disk on which snapd waits for our snap.
func makeDisk(ctx context.Context, cache *debian.Cache, s debian.Suite, opts machine.Options) (*debian.Image, error) {
	plain, err := cache.Image(ctx, "snapd", recipe(s))
	if err != nil {
		return nil, err
	}
	id := ""
	for _, c := range installStandIns {
		id += c + "\n"
	}
	return cache.Derive(ctx, plain, debian.Change{Name: "ready", ID: id, Machine: opts, Do: debian.Steps(note, installStandIns...)})
}
