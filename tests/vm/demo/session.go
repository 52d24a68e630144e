package main

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"time"

	"livepatch/tests/vm/lab"
)

// setUp makes everything that is there before the user comes.
func (d *demo) setUp(ctx context.Context, cache string) (err error) {
	d.heading("From nothing: programs, keys, a service, a patch, a machine")
	bin := filepath.Join(d.dir, "bin")
	if err := os.Mkdir(bin, 0o700); err != nil {
		return err
	}
	d.lab, err = lab.New(ctx, cache, bin, func(step string, took time.Duration) { d.timed("   "+step, took) })
	if err != nil {
		return err
	}
	if err := d.do("start the service, with a CA of its own", func() (err error) {
		d.service, err = d.lab.NewService(ctx, filepath.Join(d.dir, "service"), lab.ServiceOptions{Soak: soak})
		return err
	}); err != nil {
		return err
	}
	if err := d.do("create the offline keys and the repository", func() (err error) {
		dir := filepath.Join(d.dir, "publisher")
		if err := os.Mkdir(dir, 0o700); err != nil {
			return err
		}
		d.publisher, err = d.lab.NewPublisher(ctx, dir, d.service)
		return err
	}); err != nil {
		return err
	}
	if err := d.publish(ctx, &d.first, "1", answerFirst, "CVE-2026-10001"); err != nil {
		return err
	}
	if d.token, err = d.service.Admin(ctx, "token", "create"); err != nil {
		return err
	}
	return d.do("start a machine with Debian's kernel "+d.lab.Kernel.Release+", under "+string(d.lab.Accel), func() error {
		return d.startMachine(ctx)
	})
}

// publish builds a patch, signs it and pushes it.
func (d *demo) publish(ctx context.Context, mod *lab.Module, version, answer string, fixes ...string) error {
	return d.do("build, sign and push livepatch "+version, func() (err error) {
		*mod, err = d.lab.Build(ctx, lab.Patch{Source: "answer", Version: version, Answer: answer})
		if err != nil {
			return err
		}
		if err := d.publisher.Sign(ctx, *mod, version, fixes...); err != nil {
			return err
		}
		return d.publisher.Push(ctx)
	})
}

func (d *demo) startMachine(ctx context.Context) (err error) {
	dir := filepath.Join(d.dir, "machine")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	d.machine, err = d.lab.Boot(ctx, lab.Setup{Dir: dir, Root: d.publisher.Root, Service: d.service.Address})
	if err != nil {
		return err
	}
	ca, err := os.ReadFile(d.service.CA)
	if err != nil {
		return err
	}
	return d.machine.WriteFile(ctx, "/root/ca.crt", ca)
}

// enable is the user's first contact, until the patch is in force.
func (d *demo) enable(ctx context.Context) error {
	d.heading("The user enables the machine with a token")
	if err := d.until(ctx, "(the agent has started)", "canonical-livepatch status 2>&1", "not enabled"); err != nil {
		return err
	}
	if _, err := d.user(ctx, "uname -rv"); err != nil {
		return err
	}
	if err := d.kernel(ctx, own); err != nil {
		return err
	}
	for _, command := range []string{
		"canonical-livepatch config ca-certs=@stdin < /root/ca.crt",
		"canonical-livepatch config remote-server=https://" + lab.ServiceName + ":8443",
		"canonical-livepatch enable " + d.token,
	} {
		if _, err := d.user(ctx, command); err != nil {
			return err
		}
	}
	if err := d.applied(ctx, "1"); err != nil {
		return err
	}
	if err := d.kernel(ctx, is(answerFirst)); err != nil {
		return err
	}
	_, err := d.user(ctx, "canonical-livepatch status --verbose")
	return err
}

// applied waits until the agent says that a version is applied.
func (d *demo) applied(ctx context.Context, version string) error {
	return d.until(ctx, "(the patch is in the kernel)", `canonical-livepatch status --format json | tr -d ' \n'`,
		`"State":"applied","Version":"`+version+`"`)
}

// replace publishes a newer patch, which takes the place of the first.
func (d *demo) replace(ctx context.Context) error {
	d.heading("A newer patch is published and replaces the first")
	if err := d.publish(ctx, &d.second, "2", answerSecond, "CVE-2026-10001", "CVE-2026-10002"); err != nil {
		return err
	}
	if _, err := d.user(ctx, "canonical-livepatch refresh"); err != nil {
		return err
	}
	if err := d.applied(ctx, "2"); err != nil {
		return err
	}
	if err := d.kernel(ctx, is(answerSecond)); err != nil {
		return err
	}
	loaded, err := d.user(ctx, "ls /sys/kernel/livepatch")
	if err != nil {
		return err
	}
	return expect(loaded, d.second.Name)
}

// reboot takes the network away and boots: the accepted patch returns.
func (d *demo) reboot(ctx context.Context) error {
	d.heading("The machine reboots, without a network")
	if err := d.until(ctx, "(the patch has proven itself and is accepted)", "canonical-livepatch status --verbose", "patch standing: accepted"); err != nil {
		return err
	}
	if err := d.do("pull the network cable", func() error { return d.machine.Network(false) }); err != nil {
		return err
	}
	before, err := d.user(ctx, "cat /proc/sys/kernel/random/boot_id")
	if err != nil {
		return err
	}
	start := time.Now()
	if err := d.machine.Reboot(ctx); err != nil {
		return err
	}
	d.timed("$ reboot", time.Since(start))
	after, err := d.user(ctx, "cat /proc/sys/kernel/random/boot_id")
	if err != nil {
		return err
	}
	if before == after {
		return expect(after, "another boot-id")
	}
	if err := d.kernel(ctx, is(answerSecond)); err != nil {
		return err
	}
	if err := d.until(ctx, "(the agent has found what is in the kernel)", "canonical-livepatch status 2>&1", "patch version: 2"); err != nil {
		return err
	}
	_, err = d.user(ctx, "canonical-livepatch status")
	return err
}

// remove ends it: the kernel is as it was.
func (d *demo) remove(ctx context.Context) error {
	d.heading("The user has had enough")
	if err := d.do("plug the network cable in", func() error { return d.machine.Network(true) }); err != nil {
		return err
	}
	if _, err := d.user(ctx, "canonical-livepatch disable --remove"); err != nil {
		return err
	}
	if err := d.kernel(ctx, own); err != nil {
		return err
	}
	left, err := d.user(ctx, "grep -c '^lkp_' /proc/modules || true")
	if err != nil {
		return err
	}
	return expect(strings.TrimSpace(left), "0")
}
