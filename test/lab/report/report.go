// Package report is what the lab's guest tells the machine that runs it: JSON
// objects, one a line, on the guest's second serial port, which nothing else
// writes to.
package report

import "time"

// Port is the device of the serial port in the guest.
const Port = "/dev/ttyS1"

// Directory is where the guest's init finds its orders.
const Directory = "/lab"

// OrdersFile is the file in Directory that holds Orders.
const OrdersFile = "orders.json"

// SystemDirectory is where they are in a guest that runs from a disk.
const SystemDirectory = "/run/lab"

// DiskFiles is where the files are that init puts onto the disk of such a guest.
const DiskFiles = Directory + "/files"

// Orders are what the guest's init is to do.
type Orders struct {
	// Disk is the block device with the root that the guest is to run from, by
	// the init that it has; "" for what the initrd has.
	Disk string `json:"disk,omitempty"`
	// Modules are loaded first, in order: a name, then perhaps parameters.
	Modules []string `json:"modules,omitempty"`
	// Run is the command line whose output and exit status are reported.
	Run []string `json:"run"`
	// Env is added to the command's environment.
	Env []string `json:"env,omitempty"`
}

// Kind says what an Event is.
type Kind string

// The events, in the order in which they come.
const (
	Started Kind = "started" // init runs; Text is the kernel's release
	Output  Kind = "output"  // a line of the command's output
	Exited  Kind = "exited"  // the command's end, with Code; nothing follows
	Failed  Kind = "failed"  // Text says what kept init from running the command; nothing follows
)

// Event is one line of the report.
type Event struct {
	Kind   Kind          `json:"kind"`
	Uptime time.Duration `json:"uptime"` // of the guest
	Text   string        `json:"text,omitempty"`
	Code   int           `json:"code,omitempty"`
}
