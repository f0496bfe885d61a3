package main

import (
	"encoding/binary"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Requests and flags of <linux/vfio.h>.
const (
	vfioBase = ';'<<8 + 100

	getAPIVersion     = vfioBase + 0
	checkExtension    = vfioBase + 1
	setIOMMU          = vfioBase + 2
	groupGetStatus    = vfioBase + 3
	groupSetContainer = vfioBase + 4
	groupGetDeviceFD  = vfioBase + 6
	getRegionInfo     = vfioBase + 8
	setIRQs           = vfioBase + 10
	deviceReset       = vfioBase + 11
	iommuMapDMA       = vfioBase + 13

	type1v2                          = 3      // VFIO_TYPE1v2_IOMMU
	groupViable                      = 1 << 0 // VFIO_GROUP_FLAGS_VIABLE
	mapReadWrite                     = 1<<0 | 1<<1
	irqDataEventfd, irqActionTrigger = 1 << 2, 1 << 5

	regionBAR0, regionConfig = 0, 7
	irqMSIX                  = 2

	pciCommand = 0x4 // in configuration space
)

type groupStatus struct{ argsz, flags uint32 }

type dmaMap struct {
	argsz, flags      uint32
	vaddr, iova, size uint64
}

type regionInfo struct {
	argsz, flags, index, capOffset uint32
	size, offset                   uint64
}

type irqSet struct {
	argsz, flags, index, start, count uint32
	eventfd                           int32
}

// device is a function that is open through its IOMMU group.
type device struct {
	name                 string
	container, group, fd int
	interrupt            int // eventfd of MSI-X vector 0
	memory               []byte
	regions              map[uint32]regionInfo
}

// openDevice opens a function and maps memory for its DMA at iova.
func openDevice(group, name string) (*device, error) {
	d := &device{name: name, container: -1, group: -1, fd: -1, interrupt: -1, regions: map[uint32]regionInfo{}}
	if err := d.open(group); err != nil {
		d.close()
		return nil, err
	}
	return d, nil
}

func (d *device) open(group string) (err error) {
	if d.container, err = unix.Open("/dev/vfio/vfio", unix.O_RDWR|unix.O_CLOEXEC, 0); err != nil {
		return fmt.Errorf("open /dev/vfio/vfio: %w", err)
	}
	if v, err := ioctl(d.container, getAPIVersion, 0); err != nil || v != 0 {
		return fmt.Errorf("VFIO's version is %d, expected 0: %w", v, err)
	}
	if v, err := ioctl(d.container, checkExtension, type1v2); err != nil || v != 1 {
		return fmt.Errorf("VFIO has no type 1 IOMMU: %w", err)
	}
	if d.group, err = unix.Open("/dev/vfio/"+group, unix.O_RDWR|unix.O_CLOEXEC, 0); err != nil {
		return fmt.Errorf("open /dev/vfio/%s: %w", group, err)
	}
	status := groupStatus{argsz: uint32(unsafe.Sizeof(groupStatus{}))}
	if _, err := ioctl(d.group, groupGetStatus, uintptr(unsafe.Pointer(&status))); err != nil {
		return fmt.Errorf("status of group %s: %w", group, err)
	}
	if status.flags&groupViable == 0 {
		return fmt.Errorf("group %s is not viable: a device of it is bound to a driver other than VFIO's", group)
	}
	container := int32(d.container)
	if _, err := ioctl(d.group, groupSetContainer, uintptr(unsafe.Pointer(&container))); err != nil {
		return fmt.Errorf("put group %s into a container: %w", group, err)
	}
	if _, err := ioctl(d.container, setIOMMU, type1v2); err != nil {
		return fmt.Errorf("use the type 1 IOMMU: %w", err)
	}
	if err := d.mapMemory(); err != nil {
		return err
	}
	name := append([]byte(d.name), 0)
	if d.fd, err = ioctl(d.group, groupGetDeviceFD, uintptr(unsafe.Pointer(&name[0]))); err != nil {
		return fmt.Errorf("open the device: %w", err)
	}
	return nil
}

func (d *device) mapMemory() (err error) {
	const size = 1 << 16
	if d.memory, err = unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE); err != nil {
		return fmt.Errorf("allocate memory for DMA: %w", err)
	}
	m := dmaMap{flags: mapReadWrite, vaddr: uint64(uintptr(unsafe.Pointer(&d.memory[0]))), iova: iova, size: size}
	m.argsz = uint32(unsafe.Sizeof(m))
	if _, err := ioctl(d.container, iommuMapDMA, uintptr(unsafe.Pointer(&m))); err != nil {
		return fmt.Errorf("map memory for DMA: %w", err)
	}
	return nil
}

func (d *device) close() {
	for _, fd := range []int{d.interrupt, d.fd, d.group, d.container} {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
	if d.memory != nil {
		_ = unix.Munmap(d.memory)
	}
}

// reset does a function-level reset.
func (d *device) reset() error {
	_, err := ioctl(d.fd, deviceReset, 0)
	return err
}

// watchInterrupt has MSI-X vector 0 delivered to d.interrupt.
func (d *device) watchInterrupt() (err error) {
	if d.interrupt, err = unix.Eventfd(0, unix.EFD_CLOEXEC); err != nil {
		return err
	}
	s := irqSet{flags: irqDataEventfd | irqActionTrigger, index: irqMSIX, count: 1, eventfd: int32(d.interrupt)}
	s.argsz = uint32(unsafe.Sizeof(s))
	if _, err := ioctl(d.fd, setIRQs, uintptr(unsafe.Pointer(&s))); err != nil {
		return fmt.Errorf("enable MSI-X: %w", err)
	}
	return nil
}

// submit asks for one request from the address to the second page of d.memory.
func (d *device) submit(source uint64) error {
	for _, r := range []struct {
		reg   int64
		value uint64
	}{{regSource, source}, {regDest, iova + request}, {regLength, request}, {regDoorbell, 1}} {
		if err := d.setReg(r.reg, r.value); err != nil {
			return err
		}
	}
	return nil
}

func (d *device) region(index uint32) (regionInfo, error) {
	if r, ok := d.regions[index]; ok {
		return r, nil
	}
	r := regionInfo{index: index}
	r.argsz = uint32(unsafe.Sizeof(r))
	if _, err := ioctl(d.fd, getRegionInfo, uintptr(unsafe.Pointer(&r))); err != nil {
		return r, fmt.Errorf("region %d: %w", index, err)
	}
	d.regions[index] = r
	return r, nil
}

func (d *device) read(region uint32, offset int64, b []byte) error {
	r, err := d.region(region)
	if err != nil {
		return err
	}
	if n, err := unix.Pread(d.fd, b, int64(r.offset)+offset); err != nil || n != len(b) {
		return fmt.Errorf("read region %d at %#x: %d of %d bytes: %w", region, offset, n, len(b), err)
	}
	return nil
}

func (d *device) write(region uint32, offset int64, b []byte) error {
	r, err := d.region(region)
	if err != nil {
		return err
	}
	if n, err := unix.Pwrite(d.fd, b, int64(r.offset)+offset); err != nil || n != len(b) {
		return fmt.Errorf("write region %d at %#x: %d of %d bytes: %w", region, offset, n, len(b), err)
	}
	return nil
}

func (d *device) reg(offset int64) (uint64, error) {
	var b [8]byte
	err := d.read(regionBAR0, offset, b[:])
	return binary.LittleEndian.Uint64(b[:]), err
}

func (d *device) setReg(offset int64, v uint64) error {
	return d.write(regionBAR0, offset, binary.LittleEndian.AppendUint64(nil, v))
}

func (d *device) expectReg(offset int64, want uint64) error {
	got, err := d.reg(offset)
	if err == nil && got != want {
		err = fmt.Errorf("register %#x is %#x, expected %#x", offset, got, want)
	}
	return err
}

func ioctl(fd int, request, arg uintptr) (int, error) {
	r, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, arg)
	if errno != 0 {
		return -1, errno
	}
	return int(r), nil
}
