// Package guest is what the harness and the machine's first process have in
// common: how the machine is set up, and the requests that the harness sends
// over the control port.
//
// The control port is a virtio-serial port of its own, so that what a command
// prints is exact: the kernel's log goes to the first serial port, and there is
// no terminal that echoes or wraps. Each message is one line of JSON.
package guest

// Port is the name of the virtio-serial port that carries [Request] and
// [Response].
const Port = "livepatch.control"

// ConfigFile is where the machine finds its [Config].
const ConfigFile = "/etc/machine.json"

// ModulesFile lists the kernel modules to load at start, one path a line, each
// after those it depends on.
const ModulesFile = "/etc/modules.load"

// Overlay is where files lie that are to be put into the machine's root file
// system before its own first process starts.
const Overlay = "/overlay"

// DisabledDir holds an empty file for each unit that is not to be started at
// boot. It lies on the disk, so it survives reboots and power cuts.
const DisabledDir = "/var/lib/machine/disabled"

// A Config tells the first process what the machine is made of. The zero Config
// is a machine with a shell and nothing else.
type Config struct {
	// Address is the static IPv4 address of eth0, with its prefix length
	// ("10.0.2.15/24"). Empty means no network.
	Address string `json:"address,omitempty"`
	// Dirs are made before anything runs, in this order.
	Dirs []Dir `json:"dirs,omitempty"`
	// AtBoot are commands that run one after the other before the units start.
	// One that fails is logged and does not keep the machine from starting.
	AtBoot []Job `json:"at_boot,omitempty"`
	// AtShutdown are commands that run when all units have stopped, before a
	// clean reboot or power-off.
	AtShutdown []Job `json:"at_shutdown,omitempty"`
	// Units are the services.
	Units []Unit `json:"units,omitempty"`
	// Systemd says that the machine's first process is systemd. Ours is one of its
	// services then, which loads the drivers and serves the harness; the rest of
	// Config is systemd's business.
	Systemd bool `json:"systemd,omitempty"`
	// Root is the block device with the file system of a whole system, to which
	// the first process hands over. Of Config, Address counts then and nothing else.
	Root string `json:"root,omitempty"`
}

// A Dir is a folder with its owner and mode.
type Dir struct {
	Path string `json:"path"`
	Mode uint32 `json:"mode"` // permission bits
	UID  int    `json:"uid"`
	GID  int    `json:"gid"`
}

// A Job is a command that runs to its end as root.
type Job struct {
	Name    string   `json:"name"`
	Command []string `json:"command"`
}

// A Unit is a service, started at boot or by the first connection to its socket.
type Unit struct {
	Name    string   `json:"name"`
	Command []string `json:"command"`
	Env     []string `json:"env,omitempty"` // NAME=VALUE; nothing else is inherited but PATH
	UID     uint32   `json:"uid"`
	GID     uint32   `json:"gid"`
	// Socket makes the unit start with the first connection, as systemd does
	// for a stream socket with Accept=no. Nil means at boot.
	Socket *Socket `json:"socket,omitempty"`
}

// A Socket is a Unix socket that exists before its service runs.
type Socket struct {
	Path string `json:"path"`
	Mode uint32 `json:"mode"` // permission bits
	UID  int    `json:"uid"`
	GID  int    `json:"gid"`
}

// An Op is something the harness can ask for.
type Op string

// What the harness can ask for.
const (
	OpRun      Op = "run"      // run Command with the shell
	OpStart    Op = "start"    // start Unit; one that runs is left alone
	OpStop     Op = "stop"     // stop Unit and wait for its end
	OpReboot   Op = "reboot"   // shut down cleanly and start again
	OpPoweroff Op = "poweroff" // shut down cleanly and stay off
)

// A Request is one thing to do. Requests are served at the same time; the
// answers come in the order in which they are done.
type Request struct {
	ID      uint64 `json:"id"` // chosen by the harness; never 0
	Op      Op     `json:"op"`
	Command string `json:"command,omitempty"`
	Stdin   []byte `json:"stdin,omitempty"`
	UID     uint32 `json:"uid,omitempty"` // Command's user; 0 is root
	GID     uint32 `json:"gid,omitempty"` // Command's group
	Unit    string `json:"unit,omitempty"`
}

// A Response answers the request of the same ID. One with ID 0 says that the
// machine has started: it is the first line after every boot.
type Response struct {
	ID     uint64 `json:"id"`
	Stdout []byte `json:"stdout,omitempty"`
	Stderr []byte `json:"stderr,omitempty"`
	Code   int    `json:"code,omitempty"`  // exit status; 128 and the signal's number if killed
	Error  string `json:"error,omitempty"` // why the request could not be served
	Boot   string `json:"boot,omitempty"`  // boot-id, in the first line
}
