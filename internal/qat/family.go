package qat

import "fmt"

// Family is what all devices of one kind of QAT hardware have in common. The
// table is the only place where a name is bound to a device id: module, driver
// directory and configuration file are called differently for the same device,
// and no name may be derived from another.
//
// Sources: Linux, drivers/crypto/intel/qat (adf_accel_devices.h has ids and
// driver names, the Makefiles the module names, adf_*_hw_data.h the firmware
// and the ring pairs) and drivers/vfio/pci/vfio_pci.c (the deny-list);
// intel-device-plugins, cmd/qat_plugin/dpdkdrv (the VF drivers that are not in
// Linux). What only the vendor's out-of-tree drivers say could not be checked
// against a public source: modules and routing offsets of d15xx, c4xxx and
// 200xx, VFModule from 4xxx on, and all of 6xxx's VF but its id and driver.
type Family struct {
	Name       string   // "c62x", as the kernel's directory and linux-firmware call it
	Generation int      // 1 (dh895xcc), 2, 4 or 6
	PFDevice   uint16   // PCI device id of the PF; the vendor is always Vendor
	VFDevice   uint16   // PCI device id of the VF
	PFDriver   string   // directory below /sys/bus/pci/drivers of the PF's driver
	PFModule   string   // kernel module that has it
	VFDriver   string   // directory below /sys/bus/pci/drivers of the VF's driver, in a guest
	VFModule   string   // kernel module that has it
	Conf       string   // <Conf>_dev<N>.conf configures the N-th such VF of a guest
	Firmware   []string // below /lib/firmware, perhaps compressed (.xz, .zst) or below intel/qat; nil: comes with the vendor's driver
	MaxVFs     int      // for display and simulators: sriov_totalvfs is the truth; 0: unknown
	VFOffset   int      // routing id of the first VF, relative to the PF
	PFInTree   string   // first Linux release with the PF driver; "" when there is none
	VFInTree   bool     // Linux has the VF driver
	DenyListed bool     // vfio-pci refuses PF and VF unless loaded with disable_denylist=1
	// RingPairs is the number of ring pairs that a VF has for each kind of
	// crypto and compression instance.
	RingPairs RingPairs
}

// RingPairs are the ring pairs of one VF, which bound the instances that a
// configuration file may ask for. A Gen2 VF owns one bundle with a ring pair of
// each kind; a Gen4 VF owns four ring pairs that its PF's services share out.
type RingPairs struct {
	// Bundle is set when every VF has its own bundle (before Gen4): then
	// Count is the number of instances of each service.
	Bundle bool
	Count  int
}

// Vendor is Intel's PCI vendor id.
const Vendor = 0x8086

var (
	// A bank of 16 rings, two to a pair, over the four services of the default
	// map (Linux, ADF_GEN2_DEFAULT_RING_TO_SRV_MAP): two pairs for each, as the
	// vendor's c6xxvf_dev0.conf.vm asks for. A bank of c4xxx has 8 rings.
	gen2Rings  = RingPairs{Bundle: true, Count: 2}
	c4xxxRings = RingPairs{Bundle: true, Count: 1}
	gen4Rings  = RingPairs{Count: 4}
)

// Families is the table of all known QAT devices, oldest first.
var Families = []Family{
	{
		Name: "dh895xcc", Generation: 1, PFDevice: 0x0435, VFDevice: 0x0443,
		PFDriver: "dh895xcc", PFModule: "qat_dh895xcc", VFDriver: "dh895xccvf", VFModule: "qat_dh895xccvf", Conf: "dh895xccvf",
		Firmware: []string{"qat_895xcc.bin", "qat_895xcc_mmp.bin"},
		MaxVFs:   32, VFOffset: 8, PFInTree: "3.17", VFInTree: true, DenyListed: true, RingPairs: gen2Rings,
	},
	{
		Name: "c62x", Generation: 2, PFDevice: 0x37c8, VFDevice: 0x37c9,
		PFDriver: "c6xx", PFModule: "qat_c62x", VFDriver: "c6xxvf", VFModule: "qat_c62xvf", Conf: "c6xxvf",
		Firmware: []string{"qat_c62x.bin", "qat_c62x_mmp.bin"},
		MaxVFs:   16, VFOffset: 8, PFInTree: "4.5", VFInTree: true, DenyListed: true, RingPairs: gen2Rings,
	},
	{
		Name: "c3xxx", Generation: 2, PFDevice: 0x19e2, VFDevice: 0x19e3,
		PFDriver: "c3xxx", PFModule: "qat_c3xxx", VFDriver: "c3xxxvf", VFModule: "qat_c3xxxvf", Conf: "c3xxxvf",
		Firmware: []string{"qat_c3xxx.bin", "qat_c3xxx_mmp.bin"},
		MaxVFs:   16, VFOffset: 8, PFInTree: "4.5", VFInTree: true, DenyListed: true, RingPairs: gen2Rings,
	},
	{
		Name: "d15xx", Generation: 2, PFDevice: 0x6f54, VFDevice: 0x6f55,
		PFDriver: "d15xx", PFModule: "qat_d15xx", VFDriver: "d15xxvf", VFModule: "qat_d15xxvf", Conf: "d15xxvf",
		MaxVFs: 16, VFOffset: 8, RingPairs: gen2Rings,
	},
	{
		Name: "c4xxx", Generation: 2, PFDevice: 0x18a0, VFDevice: 0x18a1,
		PFDriver: "c4xxx", PFModule: "qat_c4xxx", VFDriver: "c4xxxvf", VFModule: "qat_c4xxxvf", Conf: "c4xxxvf",
		MaxVFs: 128, VFOffset: 8, RingPairs: c4xxxRings,
	},
	{
		Name: "200xx", Generation: 2, PFDevice: 0x18ee, VFDevice: 0x18ef,
		PFDriver: "200xx", PFModule: "qat_200xx", VFDriver: "200xxvf", VFModule: "qat_200xxvf", Conf: "200xxvf",
		MaxVFs: 16, VFOffset: 8, RingPairs: gen2Rings,
	},
	{
		Name: "4xxx", Generation: 4, PFDevice: 0x4940, VFDevice: 0x4941,
		PFDriver: "4xxx", PFModule: "qat_4xxx", VFDriver: "4xxxvf", VFModule: "qat_4xxxvf", Conf: "4xxxvf",
		Firmware: []string{"qat_4xxx.bin", "qat_4xxx_mmp.bin"},
		MaxVFs:   16, VFOffset: 1, PFInTree: "5.11", RingPairs: gen4Rings,
	},
	{
		Name: "401xx", Generation: 4, PFDevice: 0x4942, VFDevice: 0x4943,
		PFDriver: "4xxx", PFModule: "qat_4xxx", VFDriver: "4xxxvf", VFModule: "qat_4xxxvf", Conf: "4xxxvf",
		Firmware: []string{"qat_4xxx.bin", "qat_4xxx_mmp.bin"},
		MaxVFs:   16, VFOffset: 1, PFInTree: "5.19", RingPairs: gen4Rings,
	},
	{
		Name: "402xx", Generation: 4, PFDevice: 0x4944, VFDevice: 0x4945,
		PFDriver: "4xxx", PFModule: "qat_4xxx", VFDriver: "4xxxvf", VFModule: "qat_4xxxvf", Conf: "4xxxvf",
		Firmware: []string{"qat_402xx.bin", "qat_402xx_mmp.bin"},
		MaxVFs:   16, VFOffset: 1, PFInTree: "6.4", RingPairs: gen4Rings,
	},
	{
		Name: "420xx", Generation: 4, PFDevice: 0x4946, VFDevice: 0x4947,
		PFDriver: "420xx", PFModule: "qat_420xx", VFDriver: "420xxvf", VFModule: "qat_420xxvf", Conf: "420xxvf",
		Firmware: []string{"qat_420xx.bin", "qat_420xx_mmp.bin"},
		MaxVFs:   16, VFOffset: 1, PFInTree: "6.8", RingPairs: gen4Rings,
	},
	{
		Name: "6xxx", Generation: 6, PFDevice: 0x4948, VFDevice: 0x4949,
		PFDriver: "6xxx", PFModule: "qat_6xxx", VFDriver: "6xxxvf", VFModule: "qat_6xxxvf", Conf: "6xxxvf",
		Firmware: []string{"qat_6xxx.bin", "qat_6xxx_mmp.bin"},
		// 64 ring pairs, 4 a VF (Linux, adf_6xxx_hw_data.h).
		MaxVFs: 16, VFOffset: 1, PFInTree: "6.16", RingPairs: gen4Rings,
	},
}

var (
	byPFDevice = make(map[uint16]*Family)
	byVFDevice = make(map[uint16]*Family)
)

func init() {
	for i := range Families {
		f := &Families[i]
		byPFDevice[f.PFDevice], byVFDevice[f.VFDevice] = f, f
	}
}

// FamilyByName returns the family of that name, or nil.
func FamilyByName(name string) *Family {
	for i := range Families {
		if Families[i].Name == name {
			return &Families[i]
		}
	}
	return nil
}

// MarshalText makes the family appear in JSON and YAML as its name.
func (f *Family) MarshalText() ([]byte, error) { return []byte(f.Name), nil }

// UnmarshalText fills f with the family of that name. Families that were read
// back this way are equal to those of the table, not identical.
func (f *Family) UnmarshalText(name []byte) error {
	known := FamilyByName(string(name))
	if known == nil {
		return fmt.Errorf("QAT family %q: expected one of those that kata-qat knows, from %s to %s", name, Families[0].Name, Families[len(Families)-1].Name)
	}
	*f = *known
	return nil
}
