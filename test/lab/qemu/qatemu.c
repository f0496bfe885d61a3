// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * QAT-shaped PCI Express functions with SR-IOV for an unmodified QEMU 10.0.
 *
 *   gcc -O2 -shared -fPIC -o qatemu.so qatemu.c
 *   LD_PRELOAD=./qatemu.so qemu-system-x86_64 ... -device pcie-root-port,id=rp0 -device qat-4xxx,bus=rp0
 *
 * Distributions build QEMU with its internal symbols exported, for its own loadable modules, so a
 * preloaded object can register device types. Nothing of QEMU's headers is needed: the structs
 * below mirror those of QEMU 10.0 (include/qom/object.h, include/hw/qdev-core.h,
 * include/hw/pci/pci_device.h, include/exec/memory.h), and check_layout compares them with a device
 * of QEMU's own before they are used.
 *
 * What is real: the ids, the SR-IOV capability and its VFs, function-level reset, MSI-X, ARI, and
 * DMA through the guest's IOMMU. What is not: the registers of QAT hardware, so no QAT driver runs.
 *
 * BAR 0, first page, 64-bit little-endian registers. A reset of the function clears them, but for
 * what a PF has of its VFs' messages:
 *
 *   0x00-0x3f  scratch, holds what is written
 *   0x40       source address of a request
 *   0x48       destination address
 *   0x50       length in bytes, at most 4096
 *   0x58       doorbell: copies source to destination, every byte ^ 0x5a, then raises MSI-X vector 0
 *   0x60       status of the last request: bit 63 for done, otherwise QEMU's MemTxResult of the
 *              access that failed, or all ones for a bad length
 *   0x68       message from a VF to its PF, as the real VF2PF registers carry them
 *   0x80-0xbf  on the PF, read-only: requests that its VFs and itself have made, one counter for
 *              each of 8 engines; VF n uses engine n % 8
 *   0x800      on the PF, read-only: the last message of each VF, 8 bytes for each. What a VM told
 *              its VF can be read here when the VM is gone, and VFIO has reset the VF
 *
 * The second page holds the MSI-X table.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* QEMU's types, opaque where nothing of them is read here. */
typedef struct Object Object;
typedef struct PCIDevice PCIDevice;
typedef struct DeviceState DeviceState;
typedef struct MemoryRegion MemoryRegion;
typedef struct AddressSpace AddressSpace;
typedef struct Error Error;

typedef struct {
    const char *type;
} InterfaceInfo;

typedef struct {
    const char *name, *parent;
    size_t instance_size, instance_align;
    void (*instance_init)(Object *);
    void (*instance_post_init)(Object *);
    void (*instance_finalize)(Object *);
    bool abstract;
    size_t class_size;
    void (*class_init)(void *klass, void *data);
    void (*class_base_init)(void *klass, void *data);
    void *class_data;
    InterfaceInfo *interfaces;
} TypeInfo;

typedef struct {
    void *type, *interfaces;
    const char *object_cast_cache[4], *class_cast_cache[4];
    void *unparent, *properties;
} ObjectClass;

typedef struct {
    ObjectClass parent_class;
    unsigned long categories[1];
    const char *fw_name, *desc;
    const void *props;
    uint16_t props_count;
    bool user_creatable, hotpluggable;
    void *legacy_reset, *realize, *unrealize, *sync_config;
    const void *vmsd;
    const char *bus_type;
} DeviceClass;

typedef struct {
    DeviceClass parent_class;
    void (*realize)(PCIDevice *, Error **);
    void (*exit)(PCIDevice *);
    uint32_t (*config_read)(PCIDevice *, uint32_t, int);
    void (*config_write)(PCIDevice *, uint32_t, uint32_t, int);
    uint16_t vendor_id, device_id;
    uint8_t revision;
    uint16_t class_id, subsystem_vendor_id, subsystem_id;
    const char *romfile;
} PCIDeviceClass;

typedef struct {
    uint64_t (*read)(void *, uint64_t, unsigned);
    void (*write)(void *, uint64_t, uint64_t, unsigned);
    void *read_with_attrs, *write_with_attrs;
    int endianness;
    struct {
        unsigned min, max;
        bool unaligned;
        void *accepts;
    } valid;
    struct {
        unsigned min, max;
        bool unaligned;
    } impl;
} MemoryRegionOps;

enum {
    MODULE_INIT_QOM = 3,
    DEVICE_CATEGORY_MISC = 7,
    DEVICE_LITTLE_ENDIAN = 2,
    PCI_BASE_ADDRESS_MEM_TYPE_64 = 0x4,
};

#define MEMTXATTRS_UNSPECIFIED (1ULL << 32)

/* What is used of QEMU; the dynamic linker finds it in the executable. */
extern void register_module_init(void (*fn)(void), int type);
extern void *type_register_static(const TypeInfo *);
extern void *object_class_by_name(const char *);
extern void device_class_set_legacy_reset(void *klass, void (*)(DeviceState *));
extern void memory_region_init(MemoryRegion *, Object *, const char *, uint64_t size);
extern void memory_region_init_io(MemoryRegion *, Object *, const MemoryRegionOps *, void *opaque, const char *, uint64_t size);
extern void memory_region_add_subregion(MemoryRegion *, uint64_t offset, MemoryRegion *);
extern AddressSpace *pci_device_iommu_address_space(PCIDevice *);
extern uint32_t address_space_rw(AddressSpace *, uint64_t addr, uint64_t attrs, void *buf, uint64_t len, bool is_write);
extern void pci_register_bar(PCIDevice *, int, uint8_t type, MemoryRegion *);
extern void pci_default_write_config(PCIDevice *, uint32_t, uint32_t, int);
extern int msix_init(PCIDevice *, unsigned short nentries, MemoryRegion *table, uint8_t table_bar, unsigned table_offset,
                     MemoryRegion *pba, uint8_t pba_bar, unsigned pba_offset, uint8_t cap, Error **);
extern void msix_uninit(PCIDevice *, MemoryRegion *table, MemoryRegion *pba);
extern void msix_vector_use(PCIDevice *, unsigned);
extern void msix_notify(PCIDevice *, unsigned);
extern int pcie_endpoint_cap_init(PCIDevice *, uint8_t offset);
extern void pcie_cap_exit(PCIDevice *);
extern void pcie_cap_flr_init(PCIDevice *);
extern void pcie_cap_flr_write_config(PCIDevice *, uint32_t, uint32_t, int);
extern void pcie_ari_init(PCIDevice *, uint16_t offset);
extern bool pcie_sriov_pf_init(PCIDevice *, uint16_t offset, const char *vfname, uint16_t vf_dev_id, uint16_t init_vfs,
                               uint16_t total_vfs, uint16_t vf_offset, uint16_t vf_stride, Error **);
extern void pcie_sriov_pf_exit(PCIDevice *);
extern void pcie_sriov_pf_init_vf_bar(PCIDevice *, int, uint8_t type, uint64_t size);
extern void pcie_sriov_vf_register_bar(PCIDevice *, int, MemoryRegion *);
extern void pcie_sriov_pf_reset(PCIDevice *);
extern PCIDevice *pcie_sriov_get_pf(PCIDevice *vf);
extern uint16_t pcie_sriov_vf_number(PCIDevice *vf);

/* A family of devices: test/lab's tables_test.go compares these lines with internal/qat. The number
 * of VFs of the 6xxx is an assumption. */
static struct model {
    const char *name, *vfname;
    uint16_t pf, vf;   /* device ids */
    uint16_t vfs;      /* VFs of a PF */
    uint16_t offset;   /* routing id of the first VF relative to the PF's */
} models[] = {
    { "qat-dh895xcc", "qat-dh895xcc-vf", 0x0435, 0x0443,  32, 8 },
    { "qat-c62x",     "qat-c62x-vf",     0x37c8, 0x37c9,  16, 8 },
    { "qat-c3xxx",    "qat-c3xxx-vf",    0x19e2, 0x19e3,  16, 8 },
    { "qat-d15xx",    "qat-d15xx-vf",    0x6f54, 0x6f55,  16, 8 },
    { "qat-c4xxx",    "qat-c4xxx-vf",    0x18a0, 0x18a1, 128, 8 },
    { "qat-200xx",    "qat-200xx-vf",    0x18ee, 0x18ef,  16, 8 },
    { "qat-4xxx",     "qat-4xxx-vf",     0x4940, 0x4941,  16, 1 },
    { "qat-401xx",    "qat-401xx-vf",    0x4942, 0x4943,  16, 1 },
    { "qat-402xx",    "qat-402xx-vf",    0x4944, 0x4945,  16, 1 },
    { "qat-420xx",    "qat-420xx-vf",    0x4946, 0x4947,  16, 1 },
    { "qat-6xxx",     "qat-6xxx-vf",     0x4948, 0x4949,  16, 1 },
};
#define MODELS (sizeof models / sizeof *models)

enum { BAR_SIZE = 0x2000, REGS_SIZE = 0x1000, MSIX_TABLE = 0x1000, MSIX_PBA = 0x1800, VECTORS = 4 };
enum { CAP_MSIX = 0x70, CAP_EXPRESS = 0xa0, EXT_ARI = 0x100, EXT_SRIOV = 0x160 };
enum { SRC = 0x40, DST = 0x48, LEN = 0x50, DOORBELL = 0x58, STATUS = 0x60, MESSAGE = 0x68, COUNTERS = 0x80, ENGINES = 8, REGS_END = 0xc0 };
enum { MESSAGES = 0x800, MAX_VFS = 128, MESSAGES_END = MESSAGES + 8 * MAX_VFS };

/* The state of one function. It is kept apart from QEMU's PCIDevice, whose size is not known here;
 * that of a MemoryRegion is not either (272 bytes in 10.0), hence the room. */
struct function {
    struct function *next;
    PCIDevice *device;
    bool is_vf;
    uint8_t regs[REGS_END], messages[8 * MAX_VFS];
    _Alignas(64) char bar[1024], io[1024];
};
static struct function *functions;

static struct function *function_of(PCIDevice *d)
{
    for (struct function *f = functions; f; f = f->next) {
        if (f->device == d) {
            return f;
        }
    }
    return NULL;
}

static struct function *add_function(PCIDevice *d, bool is_vf)
{
    struct function *f = aligned_alloc(64, (sizeof *f + 63) & ~63UL);

    if (!f) {
        abort();
    }
    memset(f, 0, sizeof *f);
    f->device = d;
    f->is_vf = is_vf;
    f->next = functions;
    functions = f;
    return f;
}

static uint64_t reg(struct function *f, unsigned offset)
{
    uint64_t v;

    memcpy(&v, f->regs + offset, sizeof v);
    return v;
}

static void set_reg(struct function *f, unsigned offset, uint64_t v)
{
    memcpy(f->regs + offset, &v, sizeof v);
}

/* count adds a request to the PF's counters, which is where a driver reads them. */
static void count(struct function *f)
{
    struct function *pf = f->is_vf ? function_of(pcie_sriov_get_pf(f->device)) : f;
    unsigned engine = f->is_vf ? pcie_sriov_vf_number(f->device) % ENGINES : 0;

    if (pf) {
        set_reg(pf, COUNTERS + 8 * engine, reg(pf, COUNTERS + 8 * engine) + 1);
    }
}

static void doorbell(struct function *f)
{
    AddressSpace *as = pci_device_iommu_address_space(f->device);
    uint64_t n = reg(f, LEN);
    uint8_t buf[4096];
    uint32_t err;

    if (n > sizeof buf) {
        set_reg(f, STATUS, ~0ULL);
        return;
    }
    err = address_space_rw(as, reg(f, SRC), MEMTXATTRS_UNSPECIFIED, buf, n, false);
    if (!err) {
        for (uint64_t i = 0; i < n; i++) {
            buf[i] ^= 0x5a;
        }
        err = address_space_rw(as, reg(f, DST), MEMTXATTRS_UNSPECIFIED, buf, n, true);
    }
    set_reg(f, STATUS, err ? err : 1ULL << 63);
    count(f);
    msix_notify(f->device, 0);
}

/* tell keeps a part of a VF's message where its PF finds it. */
static void tell(struct function *f, unsigned offset, const void *part, unsigned size)
{
    struct function *pf = f->is_vf ? function_of(pcie_sriov_get_pf(f->device)) : NULL;

    if (pf) {
        memcpy(pf->messages + 8 * pcie_sriov_vf_number(f->device) + offset, part, size);
    }
}

static uint64_t regs_read(void *opaque, uint64_t addr, unsigned size)
{
    struct function *f = opaque;
    uint64_t v = 0;

    if (addr + size <= REGS_END) {
        memcpy(&v, f->regs + addr, size);
    } else if (addr >= MESSAGES && addr + size <= MESSAGES_END) {
        memcpy(&v, f->messages + addr - MESSAGES, size);
    }
    return v;
}

static void regs_write(void *opaque, uint64_t addr, uint64_t v, unsigned size)
{
    struct function *f = opaque;

    if (addr + size <= COUNTERS) {
        memcpy(f->regs + addr, &v, size);
    }
    if (addr >= MESSAGE && addr + size <= MESSAGE + 8) {
        tell(f, addr - MESSAGE, &v, size);
    }
    if (addr == DOORBELL) {
        doorbell(f);
    }
}

static const MemoryRegionOps regs_ops = {
    .read = regs_read,
    .write = regs_write,
    .endianness = DEVICE_LITTLE_ENDIAN,
    .valid = { .min = 1, .max = 8 },
    .impl = { .min = 1, .max = 8 },
};

static struct model *model_of(PCIDevice *d)
{
    /* An object begins with the pointer to its class. */
    uint16_t id = (*(PCIDeviceClass **)d)->device_id;

    for (unsigned i = 0; i < MODELS; i++) {
        if (models[i].pf == id || models[i].vf == id) {
            return &models[i];
        }
    }
    abort();
}

/* realize makes what PF and VF have in common; false when *errp says why not. */
static bool realize(struct function *f, const char *name, Error **errp)
{
    PCIDevice *d = f->device;
    MemoryRegion *bar = (MemoryRegion *)f->bar, *io = (MemoryRegion *)f->io;

    memory_region_init(bar, (Object *)d, name, BAR_SIZE);
    memory_region_init_io(io, (Object *)d, &regs_ops, f, name, REGS_SIZE);
    memory_region_add_subregion(bar, 0, io);
    if (f->is_vf) {
        pcie_sriov_vf_register_bar(d, 0, bar);
    } else {
        pci_register_bar(d, 0, PCI_BASE_ADDRESS_MEM_TYPE_64, bar);
    }
    if (msix_init(d, VECTORS, bar, 0, MSIX_TABLE, bar, 0, MSIX_PBA, CAP_MSIX, errp) < 0) {
        return false;
    }
    for (int i = 0; i < VECTORS; i++) {
        msix_vector_use(d, i);
    }
    if (pcie_endpoint_cap_init(d, CAP_EXPRESS) < 0) {
        abort();
    }
    pcie_cap_flr_init(d);
    pcie_ari_init(d, EXT_ARI);
    return true;
}

static void unrealize(PCIDevice *d)
{
    struct function *f = function_of(d);

    pcie_cap_exit(d);
    msix_uninit(d, (MemoryRegion *)f->bar, (MemoryRegion *)f->bar);
    /* The memory regions outlive this call: QEMU finalizes them with the object. Only the lookup ends. */
    f->device = NULL;
}

static void pf_realize(PCIDevice *d, Error **errp)
{
    struct model *m = model_of(d);

    if (!realize(add_function(d, false), m->name, errp)) {
        return;
    }
    if (!pcie_sriov_pf_init(d, EXT_SRIOV, m->vfname, m->vf, m->vfs, m->vfs, m->offset, 1, errp)) {
        return;
    }
    pcie_sriov_pf_init_vf_bar(d, 0, PCI_BASE_ADDRESS_MEM_TYPE_64, BAR_SIZE);
}

static void pf_exit(PCIDevice *d)
{
    pcie_sriov_pf_exit(d);
    unrealize(d);
}

static void vf_realize(PCIDevice *d, Error **errp)
{
    realize(add_function(d, true), model_of(d)->vfname, errp);
}

static void clear(DeviceState *d)
{
    struct function *f = function_of((PCIDevice *)d);

    if (f) {
        memset(f->regs, 0, sizeof f->regs);
    }
}

static void pf_reset(DeviceState *d)
{
    clear(d);
    pcie_sriov_pf_reset((PCIDevice *)d);
}

static void config_write(PCIDevice *d, uint32_t addr, uint32_t v, int len)
{
    pci_default_write_config(d, addr, v, len); /* in 10.0 this also enables and disables VFs */
    pcie_cap_flr_write_config(d, addr, v, len);
}

/* check_layout compares the structs above with QEMU's educational device, whose values are fixed.
 * Classes are initialized when they are first used, by when every type is registered. */
static void check_layout(void)
{
    PCIDeviceClass *edu = object_class_by_name("edu");

    if (edu && edu->vendor_id == 0x1234 && edu->device_id == 0x11e8 && edu->revision == 0x10 && edu->class_id == 0xff &&
        edu->parent_class.user_creatable && !strcmp(edu->parent_class.bus_type, "PCI")) {
        return;
    }
    fputs("qatemu: the classes of this QEMU are laid out otherwise than those of 10.0: expected QEMU 10.0\n", stderr);
    _Exit(97);
}

static void class_init(PCIDeviceClass *c, struct model *m, bool is_vf)
{
    check_layout();
    c->vendor_id = 0x8086;
    c->device_id = is_vf ? m->vf : m->pf;
    c->class_id = 0x0b40; /* co-processor */
    c->revision = 0x40;
    c->realize = is_vf ? vf_realize : pf_realize;
    c->exit = is_vf ? unrealize : pf_exit;
    c->config_write = config_write;
    c->parent_class.desc = "QAT-shaped function for tests";
    c->parent_class.categories[0] |= 1UL << DEVICE_CATEGORY_MISC;
    c->parent_class.user_creatable = !is_vf;
    device_class_set_legacy_reset(c, is_vf ? clear : pf_reset);
}

static void pf_class_init(void *klass, void *data)
{
    class_init(klass, data, false);
}

static void vf_class_init(void *klass, void *data)
{
    class_init(klass, data, true);
}

static void register_types(void)
{
    static InterfaceInfo express[] = { { "pci-express-device" }, { NULL } };

    for (unsigned i = 0; i < MODELS; i++) {
        TypeInfo pf = { .name = models[i].name, .parent = "pci-device", .class_init = pf_class_init, .class_data = &models[i], .interfaces = express };
        TypeInfo vf = { .name = models[i].vfname, .parent = "pci-device", .class_init = vf_class_init, .class_data = &models[i], .interfaces = express };

        type_register_static(&vf);
        type_register_static(&pf);
    }
}

__attribute__((constructor)) static void init(void)
{
    register_module_init(register_types, MODULE_INIT_QOM);
}
