package machine

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// An Accel is how QEMU runs the guest's instructions.
type Accel string

// The ways that we use.
const (
	KVM Accel = "kvm" // by the processor
	TCG Accel = "tcg" // by translation; works everywhere and is slower
)

// probeTime is how long a guest may take to start under KVM. One that works
// takes two seconds.
const probeTime = 20 * time.Second

// accelArgs returns QEMU's options for that. With firmware, translation keeps to one
// thread and a plain processor: with "max" and several, a firmware once stopped for
// good in the middle of a menu.
func (o *Options) accelArgs() []string {
	switch {
	case o.Accel == KVM:
		return []string{"-accel", "kvm", "-cpu", "host"}
	case o.Firmware != nil:
		return []string{"-accel", "tcg,thread=single", "-cpu", "Nehalem,+rdrand"}
	}
	return []string{"-accel", "tcg,thread=multi", "-cpu", "max"}
}

// ProbeAccel finds out whether KVM works here. That /dev/kvm exists says little:
// under some hypervisors guests hang, so one is started. The answer is kept in
// the folder cache until the host reboots.
func ProbeAccel(ctx context.Context, cache string, k *Kernel, tools *Tools) (Accel, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", err
	}
	type answer struct {
		HostBoot string `json:"host_boot"`
		Accel    Accel  `json:"accel"`
	}
	file, now := filepath.Join(cache, "accel.json"), answer{HostBoot: strings.TrimSpace(string(boot)), Accel: TCG}
	if b, err := os.ReadFile(file); err == nil {
		var known answer
		if json.Unmarshal(b, &known) == nil && known.HostBoot == now.HostBoot {
			return known.Accel, nil
		}
	}
	if kvmBoots(ctx, k, tools) {
		now.Accel = KVM
	}
	b, err := json.Marshal(now)
	if err != nil {
		return "", err
	}
	return now.Accel, writeFile(file, b)
}

// kvmBoots tells whether a small machine starts under KVM.
func kvmBoots(ctx context.Context, k *Kernel, tools *Tools) bool {
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return false
	}
	f.Close()
	dir, err := os.MkdirTemp("", "livepatch-probe")
	if err != nil {
		return false
	}
	defer os.RemoveAll(dir)
	ctx, cancel := context.WithTimeout(ctx, probeTime)
	defer cancel()
	m, err := Boot(ctx, Options{Dir: dir, Kernel: k, Tools: tools, Accel: KVM})
	if err != nil {
		return false
	}
	return m.Close() == nil
}
