// Package devconf knows the files <device>_dev<N>.conf with which a guest's
// out-of-tree QAT driver is told what instances to make of a VF: their model,
// what a VF has room for, and their text. It does not know who holds a VF, nor
// how a file gets into a guest.
//
// The facts about the format are those of Intel's Programmer's Guide, chapter
// "Configuration Files" (https://intel.github.io/quickassist/PG), and of the
// driver package QAT20.L.1.2.30: quickassist/utilities/adf_ctl, which reads
// the file, and qat_common/adf_cfg_{device,section,bundle}.c, which give ring
// pairs to instances and refuse the device when there are not enough.
package devconf

import (
	"strconv"

	"github.com/kata-qat/kata-qat/internal/qat"
)

// File is the configuration of one device. Keys and sections that this package
// does not know are kept as they are and in their order.
type File struct {
	General  General
	Sections []Section // all but [GENERAL], in the order of the file
}

// General is the section [GENERAL]. A number that is 0 is not in the file.
type General struct {
	ServicesEnabled []string // "cy", "sym", "asym", "dc", …
	ConfigVersion   int      // adf_ctl takes nothing but 2
	SymRequests     int      // CyNumConcurrentSymRequests
	AsymRequests    int      // CyNumConcurrentAsymRequests
	DcRequests      int      // DcNumConcurrentRequests
	Other           []Key
}

// Section is [KERNEL], or the section of the user-space processes that start
// under its name.
type Section struct {
	Name string
	// Foreign is set for a section that says nothing of instances. All that it
	// has is in Other.
	Foreign        bool
	Processes      int  // NumProcesses; not in [KERNEL]
	LimitDevAccess bool // a process has the instances of one device only; not in [KERNEL]
	Cy, Dc         []Instance
	Other          []Key
}

// Instance is one crypto or compression instance of each process of a section.
type Instance struct {
	Name    string
	Polling Polling
	// Cores are the CPUs of the instance, one for each process in turn. They
	// mean something to an instance that is not polled.
	Cores []int
}

// Polling says how responses are learnt of: the value of CyKIsPolled.
type Polling int

// The ways to learn of responses. User space has no use for PollingInterrupt.
const (
	PollingInterrupt Polling = 0
	PollingBusy      Polling = 1
	PollingEvent     Polling = 2 // epoll on the device's file
)

// Key is one setting.
type Key struct{ Name, Value string }

// Limits of the driver, and of this package where the driver has none.
const (
	configVersion = 2   // adf_ctl, dev_config.cpp: "Only version 2 config file supported"
	maxLength     = 63  // of a section's name, a key and a value: ADF_CFG_MAX_STR_LEN with its final zero
	maxCores      = 256 // ADF_CFG_MAX_CORE_NUM: the driver does not check it and writes past its array
	maxSections   = 16  // ADF_CFG_MAX_NUM_OF_SECTIONS, likewise
	maxCore       = 8191
	maxInstances  = 128 // of a whole device of hardware version 1.7, Programmer's Guide
	maxProcesses  = 128
	minRequests   = 64 // and only powers of two, Programmer's Guide, "General Section"
	maxRequests   = 65536
	maxLines      = 1024
	maxSize       = 256 << 10 // more than maxLines of any length
)

const generalSection = "GENERAL"

// kernelSections hold the instances of the guest's kernel.
var kernelSections = map[string]bool{"KERNEL": true, "KERNEL_QAT": true}

// Name is the name of the configuration file of the n-th VF, from 0, of a
// guest, counted among the VFs with the same configuration name.
func Name(f *qat.Family, n int) string { return f.Conf + "_dev" + strconv.Itoa(n) + Suffix }

// Suffix ends every name of a configuration file.
const Suffix = ".conf"

// GuestPath is where the driver looks for the file Name(f, n).
func GuestPath(f *qat.Family, n int) string { return "/etc/" + Name(f, n) }
