package main

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kata-qat/kata-qat/test/lab/report"
)

// serviceArg has init be the service that runs the command.
const serviceArg = "service"

// sysroot is where the disk is mounted until it is the root.
const sysroot = "/sysroot"

// unit starts init again. It is below /run, which systemd takes over from an
// initrd, so that nothing of it stays on the disk. Of type exec: the command may
// wait until the boot is complete, and this must not be part of that.
const unit = `[Unit]
Description=The command of the lab

[Service]
Type=exec
ExecStart=` + report.SystemDirectory + `/init ` + serviceArg + `
StandardOutput=journal+console
`

// handOver makes the disk the root and becomes its init.
func handOver(orders report.Orders) error {
	for _, m := range []mount{{"proc", "/proc", plain, ""}, {"devtmpfs", "/dev", unix.MS_NOSUID, "mode=0755"}} {
		if err := m.mount(); err != nil {
			return err
		}
	}
	for _, m := range []string{"virtio_pci", "virtio_blk", "ext4"} {
		if err := runQuietly("/bin/busybox", "modprobe", m); err != nil {
			return err
		}
	}
	if err := awaitDevice(orders.Disk); err != nil {
		return err
	}
	if err := os.MkdirAll(sysroot, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(orders.Disk, sysroot, "ext4", 0, ""); err != nil {
		return fmt.Errorf("mount %s: %w", orders.Disk, err)
	}
	if _, err := os.Stat(report.DiskFiles); err == nil {
		if err := runQuietly("/bin/busybox", "cp", "-a", report.DiskFiles+"/.", sysroot); err != nil {
			return err
		}
	}
	if err := (mount{"tmpfs", sysroot + "/run", unix.MS_NOSUID | unix.MS_NODEV, "mode=0755"}).mount(); err != nil {
		return err
	}
	if err := installService(); err != nil {
		return err
	}
	if err := unix.Unmount("/proc", 0); err != nil {
		return err
	}
	if err := unix.Mount("/dev", sysroot+"/dev", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move /dev: %w", err)
	}
	argv := []string{"switch_root", sysroot, "/sbin/init"}
	return fmt.Errorf("start %s: %w", argv[2], unix.Exec("/bin/busybox", argv, []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}))
}

// installService puts the orders, the script and this program into /run, with
// the unit that starts it.
func installService() error {
	dir := sysroot + report.SystemDirectory
	units := sysroot + "/run/systemd/system"
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := runQuietly("/bin/busybox", "cp", "-a", "/init", report.Directory+"/"+report.OrdersFile, report.Directory+"/script", dir); err != nil {
		return err
	}
	wants := units + "/multi-user.target.wants"
	if err := os.MkdirAll(wants, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(units+"/lab.service", []byte(unit), 0o644); err != nil {
		return err
	}
	return os.Symlink("../lab.service", wants+"/lab.service")
}

// awaitDevice waits for a device to appear.
func awaitDevice(name string) error {
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if info, err := os.Stat(name); err == nil && info.Mode()&fs.ModeDevice != 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s does not appear: expected the guest's disk", name)
		}
	}
}

// serveSystem is the service: it runs the command, and has the machine rebooted,
// which is the end of QEMU.
func serveSystem() error {
	err := serve(report.SystemDirectory, func(o report.Orders) error {
		for _, m := range o.Modules {
			if err := runQuietly("modprobe", strings.Fields(m)...); err != nil {
				return err
			}
		}
		return nil
	})
	if rerr := runQuietly("systemctl", "--no-block", "reboot"); rerr != nil && err == nil {
		err = rerr
	}
	return err
}

func runQuietly(name string, args ...string) error {
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", filepath.Base(name), strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}
