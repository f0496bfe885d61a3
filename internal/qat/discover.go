package qat

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// Discover reads the QAT devices of the machine below root ("/", or where its
// root is mounted) in one pass over sysfs. It fails only if there is no PCI bus
// to read. Whatever else cannot be read, or vanishes while it is being read, is
// among the Problems of the inventory and hides no other device. Devices of
// other kinds do not appear except as members of a VF's IOMMU group.
func Discover(root string) (*Inventory, error) {
	sys, err := openSysfs(root)
	if err != nil {
		return nil, fmt.Errorf("discover QAT devices: open /sys/bus/pci/devices below %s: %w: expected the root of a machine with sysfs mounted", root, err)
	}
	defer sys.close()
	names, err := new(reader).names(sys.devices)
	if err != nil {
		return nil, fmt.Errorf("discover QAT devices: list /sys/bus/pci/devices below %s: %w", root, err)
	}

	devices := make([]device, len(names))
	each(len(names), func(r *reader, i int) { devices[i] = readDevice(r, sys, names[i]) })
	readVFs(sys, devices)
	return assemble(devices, readGroups(sys, devices)), nil
}

// device is what one entry of the PCI bus says of itself, before it is known
// what belongs together. A device that is not QAT has neither pf nor vf.
type device struct {
	name     string
	physfn   Address // of the VF of any device
	pf       *PF
	virtfns  []virtfn // of a PF
	vf       *VF
	group    string // of a VF: its IOMMU group's id, or ""
	problems []Problem
}

func (dev *device) note(err error) {
	if err != nil {
		dev.problems = append(dev.problems, Problem{Address: dev.name, Err: err})
	}
}

// virtfn is one virtfnN link of a PF.
type virtfn struct {
	index   int
	address Address
}

// group is an IOMMU group, or why it could not be read.
type group struct {
	*Group
	err error
}

// readDevice reads all of a device but a VF with a PF, of which it reads only
// that: what VF it is, and whether it is one of ours, its PF has said already
// when readVFs comes to it. That halves the files to be read where there are
// many VFs, ours or a network adapter's.
func readDevice(r *reader, sys sysfs, name string) (dev device) {
	dev.name = name
	physfn, err := r.link(sys.devices, name+"/physfn")
	dev.note(err)
	if physfn != "" {
		dev.physfn = Address(physfn)
		return dev
	}
	d, err := sys.devices.open(name)
	if err != nil {
		dev.note(&fs.PathError{Op: "open", Path: name, Err: err})
		return dev
	}
	defer d.close()
	id, err := readIDs(r, d)
	dev.note(err)
	if f := byPFDevice[id]; f != nil {
		dev.pf = &PF{Address: Address(name), Family: f}
		dev.readPF(r, sys, d)
	} else if f := byVFDevice[id]; f != nil {
		dev.readVF(r, sys.devices, f)
		dev.vf.NUMANode, err = r.number(d, "numa_node", -1)
		dev.note(err)
	}
	return dev
}

// readVFs reads the QAT VFs among the devices that have a PF.
func readVFs(sys sysfs, devices []device) {
	pfs := make(map[Address]*device)
	for i := range devices {
		if dev := &devices[i]; dev.physfn == "" && len(dev.problems) == 0 || dev.pf != nil {
			pfs[Address(dev.name)] = dev
		}
	}
	each(len(devices), func(r *reader, i int) {
		dev := &devices[i]
		if dev.physfn == "" {
			return
		}
		parent := pfs[dev.physfn]
		switch {
		case parent == nil: // It could not be read, and may be anybody's.
			dev.readLostVF(r, sys.devices)
		case parent.pf != nil:
			dev.readVF(r, sys.devices, parent.pf.Family)
		}
	})
}

// readLostVF reads a VF, should it be QAT, whose PF cannot tell.
func (dev *device) readLostVF(r *reader, devices dir) {
	d, err := devices.open(dev.name)
	if err != nil {
		dev.note(&fs.PathError{Op: "open", Path: dev.name, Err: err})
		return
	}
	defer d.close()
	id, err := readIDs(r, d)
	dev.note(err)
	if f := byVFDevice[id]; f != nil {
		dev.readVF(r, devices, f)
		dev.vf.NUMANode, err = r.number(d, "numa_node", -1)
		dev.note(err)
	}
}

// readIDs returns the device id of a device of Intel's, 0 for any other.
func readIDs(r *reader, d dir) (uint16, error) {
	vendor, err := readID(r, d, "vendor")
	if err != nil || vendor != Vendor {
		return 0, err
	}
	return readID(r, d, "device")
}

func readID(r *reader, d dir, name string) (uint16, error) {
	s, err := r.text(d, name)
	if err != nil {
		return 0, err
	}
	id, err := strconv.ParseUint(s, 0, 16)
	if err != nil {
		return 0, fmt.Errorf("read %s: %q is no PCI id: expected one like 0x4940", name, s)
	}
	return uint16(id), nil
}

func (dev *device) readPF(r *reader, sys sysfs, d dir) {
	pf := dev.pf
	var err error
	pf.Driver, err = r.link(d, "driver")
	dev.note(err)
	pf.NUMANode, err = r.number(d, "numa_node", -1)
	dev.note(err)
	pf.TotalVFs, err = r.number(d, "sriov_totalvfs", 0)
	dev.note(err)
	pf.NumVFs, err = r.number(d, "sriov_numvfs", 0)
	dev.note(err)
	pf.State, err = readState(r, d)
	dev.note(err)
	pf.Services, err = readServices(r, d)
	dev.note(err)
	pf.Health, err = readHealth(r, sys.debug, pf)
	dev.note(err)

	names, err := r.names(d)
	dev.note(err)
	for _, name := range names {
		digits, ok := strings.CutPrefix(name, "virtfn")
		if !ok {
			continue
		}
		index, err := strconv.Atoi(digits)
		if err != nil {
			dev.note(fmt.Errorf("%s: expected virtfn and a number", name))
			continue
		}
		target, err := r.link(d, name)
		dev.note(err)
		// A link that is gone again was the last sign of a VF that is.
		if target != "" {
			dev.virtfns = append(dev.virtfns, virtfn{index, Address(target)})
		}
	}
}

// readVF reads what every VF has to say for itself.
func (dev *device) readVF(r *reader, devices dir, f *Family) {
	vf := &VF{Address: Address(dev.name), PF: dev.physfn, Family: f, Health: HealthUnknown}
	dev.vf = vf
	var err error
	vf.Driver, err = r.link(devices, dev.name+"/driver")
	dev.note(err)
	dev.group, err = r.link(devices, dev.name+"/iommu_group")
	dev.note(err)
}

// readState returns "" where the driver has no qat/state: before Gen4 and
// before Linux 6.0.
func readState(r *reader, d dir) (string, error) {
	state, err := r.text(d, "qat/state")
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", nil
	case err != nil:
		return "", err
	case state != StateUp && state != StateDown:
		return "", fmt.Errorf("read qat/state: %q: expected %s or %s", state, StateUp, StateDown)
	}
	return state, nil
}

// readServices returns "" where the driver has no qat/cfg_services.
func readServices(r *reader, d dir) (Services, error) {
	s, err := r.text(d, "qat/cfg_services")
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", nil
	case err != nil:
		return "", err
	case !readableServices(s):
		return "", fmt.Errorf("read qat/cfg_services: %q: expected services joined by \";\", for example sym;asym", s)
	}
	return Services(s), nil
}

// heartbeats is what heartbeat/status can say
// (Linux 6.6, Documentation/ABI/testing/debugfs-driver-qat).
var heartbeats = map[string]Health{"0": HealthOK, "-1": HealthDead}

// readHealth asks the heartbeat. That debugfs is not there, or not for us, is no
// problem: nothing depends on it, and containers and locked-down kernels
// (lockdown=confidentiality) have none.
func readHealth(r *reader, debug dir, pf *PF) (Health, error) {
	status, err := r.text(debug, pf.debugDir()+"/heartbeat/status")
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, fs.ErrPermission):
		return HealthUnknown, nil
	case err != nil:
		return HealthUnknown, err
	}
	health, ok := heartbeats[status]
	if !ok {
		return HealthUnknown, fmt.Errorf("read heartbeat/status: %q: expected 0 or -1", status)
	}
	return health, nil
}

// readGroups reads the IOMMU groups of the VFs, by id.
func readGroups(sys sysfs, devices []device) map[string]group {
	drivers := make(map[string]string)
	groups := make(map[string]group)
	for i := range devices {
		if vf := devices[i].vf; vf != nil {
			drivers[string(vf.Address)] = vf.Driver
			if id := devices[i].group; id != "" {
				groups[id] = group{}
			}
		}
	}
	ids := slices.Collect(maps.Keys(groups))
	read := make([]group, len(ids))
	each(len(ids), func(r *reader, i int) { read[i].Group, read[i].err = readGroup(r, sys, ids[i], drivers) })
	for i, id := range ids {
		groups[id] = read[i]
	}
	return groups
}

// noIOMMUName is what vfio calls the groups that it makes up when there is no
// IOMMU (Linux, drivers/vfio/group.c, vfio_noiommu_group_alloc).
const noIOMMUName = "vfio-noiommu"

// readGroup reads one group. The drivers of VFs are known already.
func readGroup(r *reader, sys sysfs, id string, drivers map[string]string) (*Group, error) {
	number, err := strconv.Atoi(id)
	if err != nil {
		return nil, fmt.Errorf("IOMMU group %q: expected a number", id)
	}
	name, err := r.text(sys.groups, id+"/name")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("IOMMU group %s: %w", id, err)
	}
	d, err := sys.groups.open(id + "/devices")
	if err != nil {
		return nil, fmt.Errorf("IOMMU group %s: list its devices: %w", id, err)
	}
	defer d.close()
	members, err := r.names(d)
	if err != nil {
		return nil, fmt.Errorf("IOMMU group %s: list its devices: %w", id, err)
	}

	g := &Group{ID: number, NoIOMMU: name == noIOMMUName, Members: make([]GroupMember, len(members))}
	slices.Sort(members)
	for i, member := range members {
		driver, known := drivers[member]
		if !known {
			if driver, err = r.link(d, member+"/driver"); err != nil {
				return nil, fmt.Errorf("IOMMU group %s: driver of %s: %w", id, member, err)
			}
		}
		g.Members[i] = GroupMember{Address: member, Driver: driver}
	}
	return g, nil
}

// assemble puts together what belongs together.
func assemble(devices []device, groups map[string]group) *Inventory {
	inv := &Inventory{PFs: []PF{}}
	problem := func(a Address, err error) {
		inv.Problems = append(inv.Problems, Problem{Address: string(a), Err: err})
	}
	vfs := make(map[Address]*VF)
	var pfs []device
	for _, dev := range devices {
		inv.Problems = append(inv.Problems, dev.problems...)
		if dev.pf != nil {
			pfs = append(pfs, dev)
		}
		if dev.vf == nil {
			continue
		}
		vfs[dev.vf.Address] = dev.vf
		if g := groups[dev.group]; g.err != nil {
			problem(dev.vf.Address, g.err)
		} else {
			dev.vf.Group = g.Group
		}
	}

	slices.SortFunc(pfs, func(a, b device) int { return a.pf.Address.Compare(b.pf.Address) })
	for _, dev := range pfs {
		pf := dev.pf
		slices.SortFunc(dev.virtfns, func(a, b virtfn) int { return cmp.Compare(a.index, b.index) })
		pf.VFs = make([]VF, 0, len(dev.virtfns))
		for _, link := range dev.virtfns {
			vf := vfs[link.address]
			if vf == nil {
				problem(link.address, fmt.Errorf("virtfn%d of PF %s: no such QAT VF: expected one, unless VFs are being changed", link.index, pf.Address))
				continue
			}
			delete(vfs, link.address)
			vf.PF, vf.Index, vf.NUMANode, vf.Services, vf.Health = pf.Address, link.index, pf.NUMANode, pf.Services, pf.Health
			pf.VFs = append(pf.VFs, *vf)
		}
		inv.PFs = append(inv.PFs, *pf)
	}

	for _, vf := range vfs {
		if vf.PF != "" {
			problem(vf.Address, fmt.Errorf("physfn is %s: no such QAT PF that has this VF: expected one, unless VFs are being changed", vf.PF))
		}
		inv.Orphans = append(inv.Orphans, *vf)
	}
	slices.SortFunc(inv.Orphans, func(a, b VF) int { return a.Address.Compare(b.Address) })
	slices.SortStableFunc(inv.Problems, func(a, b Problem) int { return Address(a.Address).Compare(Address(b.Address)) })
	return inv
}
