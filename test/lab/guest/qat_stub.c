// SPDX-License-Identifier: GPL-2.0
/*
 * Stands in for the QAT drivers on the functions of test/lab/qemu/qatemu.c, which have no QAT
 * registers. Built once for each driver (see Kbuild), with that driver's module and directory name.
 *
 * A PF's driver has what provisioning and monitoring meet: sriov_numvfs that enables all VFs or
 * none, qat/state, qat/cfg_services and qat/num_rps in sysfs, fw_counters and heartbeat in debugfs,
 * with the errors and the peculiarities of the real ones (Linux 6.12, drivers/crypto/intel/qat).
 * Counters are those of the emulated device, so they grow with the requests of its VFs. A VF's
 * driver only takes its device.
 */
#include <linux/atomic.h>
#include <linux/debugfs.h>
#include <linux/io.h>
#include <linux/iommu.h>
#include <linux/module.h>
#include <linux/pci.h>
#include <linux/seq_file.h>

#define ID(device) { PCI_VDEVICE(INTEL, device) }

/* test/lab's tables_test.go compares these with internal/qat. */
#if defined(STUB_qat_dh895xcc)
#define DRIVER "dh895xcc"
#define GENERATION 1
#define IDS ID(0x0435)
#elif defined(STUB_qat_c62x)
#define DRIVER "c6xx"
#define GENERATION 2
#define IDS ID(0x37c8)
#elif defined(STUB_qat_c3xxx)
#define DRIVER "c3xxx"
#define GENERATION 2
#define IDS ID(0x19e2)
#elif defined(STUB_qat_4xxx)
#define DRIVER "4xxx"
#define GENERATION 4
#define IDS ID(0x4940), ID(0x4942), ID(0x4944)
#elif defined(STUB_qat_420xx)
#define DRIVER "420xx"
#define GENERATION 4
#define IDS ID(0x4946)
#elif defined(STUB_qat_6xxx)
#define DRIVER "6xxx"
#define GENERATION 6
#define IDS ID(0x4948)
#elif defined(STUB_qat_dh895xccvf)
#define DRIVER "dh895xccvf"
#define IDS ID(0x0443)
#elif defined(STUB_qat_c62xvf)
#define DRIVER "c6xxvf"
#define IDS ID(0x37c9)
#elif defined(STUB_qat_c3xxxvf)
#define DRIVER "c3xxxvf"
#define IDS ID(0x19e3)
#elif defined(STUB_qat_4xxxvf)
#define DRIVER "4xxxvf"
#define IDS ID(0x4941), ID(0x4943), ID(0x4945)
#else
#error "build this through Kbuild, which names the driver to stand in for"
#endif

static const struct pci_device_id ids[] = { IDS, { } };
MODULE_DEVICE_TABLE(pci, ids);

#ifdef GENERATION	/* a PF's driver */

#define ENGINES 8
#define COUNTERS 0x80	/* in BAR 0, see qatemu.c */

struct stub {
	struct pci_dev *pdev;
	void __iomem *regs;
	struct dentry *dir;
	bool up;
	bool dead;		/* until the device is started again */
	char services[32];
	u32 queries_sent, queries_failed;
};

#if GENERATION >= 4	/* --- sysfs: adf_sysfs.c --- */

static ssize_t state_show(struct device *dev, struct device_attribute *attr, char *buf)
{
	struct stub *s = dev_get_drvdata(dev);

	return sysfs_emit(buf, "%s\n", s->up ? "up" : "down");
}

static ssize_t state_store(struct device *dev, struct device_attribute *attr, const char *buf, size_t n)
{
	struct stub *s = dev_get_drvdata(dev);

	if (sysfs_streq(buf, "up")) {
		if (!s->up)
			s->dead = false;
		s->up = true;
	} else if (sysfs_streq(buf, "down")) {
		/* The real driver counts its users; here every enabled VF is one. */
		if (pci_num_vf(s->pdev))
			return -EBUSY;
		s->up = false;
	} else {
		return -EINVAL;
	}
	return n;
}
static DEVICE_ATTR_RW(state);

static ssize_t cfg_services_show(struct device *dev, struct device_attribute *attr, char *buf)
{
	struct stub *s = dev_get_drvdata(dev);

	return sysfs_emit(buf, "%s\n", s->services);
}

static ssize_t cfg_services_store(struct device *dev, struct device_attribute *attr, const char *buf, size_t n)
{
	static const char * const known[] = {
		"sym;asym", "asym;sym", "dc", "dcc", "sym", "asym", "asym;dc", "dc;asym", "sym;dc", "dc;sym",
#if GENERATION >= 6
		"decomp", "sym;asym;dc", "sym;asym;decomp",
#endif
	};
	struct stub *s = dev_get_drvdata(dev);
	int i = sysfs_match_string(known, buf);

	if (i < 0)
		return i;
	if (s->up)
		return -EINVAL;
	strscpy(s->services, known[i], sizeof(s->services));
	return n;
}
static DEVICE_ATTR_RW(cfg_services);

static ssize_t num_rps_show(struct device *dev, struct device_attribute *attr, char *buf)
{
	return sysfs_emit(buf, "64\n");
}
static DEVICE_ATTR_RO(num_rps);

static struct attribute *qat_attrs[] = { &dev_attr_state.attr, &dev_attr_cfg_services.attr, &dev_attr_num_rps.attr, NULL };

static const struct attribute_group qat_group = { .name = "qat", .attrs = qat_attrs };
static const struct attribute_group *qat_groups[] = { &qat_group, NULL };
#else
#define qat_groups NULL
#endif

/* --- debugfs: adf_fw_counters.c, adf_heartbeat_dbgfs.c --- */

static int fw_counters_show(struct seq_file *f, void *v)
{
	struct stub *s = f->private;
	int i;

	seq_printf(f, "AE  %16s %16s\n", "Requests", "Responses");
	for (i = 0; i < ENGINES; i++) {
		u64 n = readq(s->regs + COUNTERS + 8 * i);

		seq_printf(f, "%2d: %16llu %16llu\n", i, n, n);
	}
	return 0;
}

static int fw_counters_open(struct inode *inode, struct file *f)
{
	struct stub *s = inode->i_private;

	return s->up ? single_open(f, fw_counters_show, s) : -EFAULT;
}

static const struct file_operations fw_counters_fops = {
	.owner = THIS_MODULE,
	.open = fw_counters_open,
	.read = seq_read,
	.llseek = seq_lseek,
	.release = single_release,
};

static ssize_t status_read(struct file *f, char __user *buf, size_t n, loff_t *pos)
{
	struct stub *s = f->private_data;
	const char *status = "0\n";

	if (*pos > 0)
		return 0;
	s->queries_sent++;
	if (!s->up || s->dead) {
		s->queries_failed++;
		status = "-1\n";
	}
	/* The real driver hands out the terminating NUL as well. */
	return simple_read_from_buffer(buf, n, pos, status, strlen(status) + 1);
}

static const struct file_operations status_fops = { .owner = THIS_MODULE, .open = simple_open, .read = status_read };

/* Any write makes the device dead, as the real file of kernels with error injection does (6.11). */
static ssize_t inject_error_write(struct file *f, const char __user *buf, size_t n, loff_t *pos)
{
	struct stub *s = f->private_data;

	s->dead = true;
	return n;
}

static const struct file_operations inject_error_fops = { .owner = THIS_MODULE, .open = simple_open, .write = inject_error_write };

static void debugfs_add(struct stub *s)
{
	struct dentry *heartbeat;
	char name[64];

	snprintf(name, sizeof(name), "qat_%s_%s", DRIVER, pci_name(s->pdev));
	s->dir = debugfs_create_dir(name, NULL);
	debugfs_create_file("fw_counters", 0400, s->dir, s, &fw_counters_fops);
	heartbeat = debugfs_create_dir("heartbeat", s->dir);
	debugfs_create_file("status", 0400, heartbeat, s, &status_fops);
	debugfs_create_u32("queries_sent", 0400, heartbeat, &s->queries_sent);
	debugfs_create_u32("queries_failed", 0400, heartbeat, &s->queries_failed);
	debugfs_create_file("inject_error", 0200, heartbeat, s, &inject_error_fops);
}

/* --- the device: adf_drv.c, adf_sriov.c --- */

static int probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	static atomic_t devices = ATOMIC_INIT(-1);
	struct stub *s = devm_kzalloc(&pdev->dev, sizeof(*s), GFP_KERNEL);
	int ret;

	if (!s)
		return -ENOMEM;
	ret = pcim_enable_device(pdev);
	if (ret)
		return ret;
	s->regs = pcim_iomap(pdev, 0, 0);
	if (!s->regs)
		return -ENOMEM;
	s->pdev = pdev;
	s->up = true;
	/* Every second device comes up for compression (adf_gen4_cfg_dev_init). */
	strscpy(s->services, atomic_inc_return(&devices) % 2 ? "dc" : "sym;asym", sizeof(s->services));
	pci_set_drvdata(pdev, s);
	debugfs_add(s);
	return 0;
}

static void remove(struct pci_dev *pdev)
{
	struct stub *s = pci_get_drvdata(pdev);

	pci_disable_sriov(pdev);
	debugfs_remove_recursive(s->dir);
}

/* The hardware shares its rings among all VFs, so the number asked for does not matter. Either way
 * the device is restarted, and is up afterwards. */
static int sriov_configure(struct pci_dev *pdev, int n)
{
	struct stub *s = pci_get_drvdata(pdev);
	int ret, total = pci_sriov_get_totalvfs(pdev);

	if (!n) {
		if (pci_vfs_assigned(pdev))
			return -EBUSY;
		pci_disable_sriov(pdev);
		s->up = true;
		return 0;
	}
	if (!device_iommu_mapped(&pdev->dev)) {
		pci_warn(pdev, "IOMMU should be enabled for SR-IOV to work correctly\n");
		return -EINVAL;
	}
	s->up = true;
	ret = pci_enable_sriov(pdev, total);
	return ret ? ret : total;
}

static struct pci_driver stub_driver = {
	.name = DRIVER,
	.id_table = ids,
	.probe = probe,
	.remove = remove,
	.sriov_configure = sriov_configure,
	.dev_groups = qat_groups,
};

#else	/* a VF's driver */

static int probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	return pcim_enable_device(pdev);
}

static struct pci_driver stub_driver = { .name = DRIVER, .id_table = ids, .probe = probe };

#endif

module_pci_driver(stub_driver);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("QAT driver stand-in for emulated functions");
