// Command init is the first process of the lab's guest. It makes the initrd a
// root that container runtimes can work from, loads modules, runs one command,
// reports its output and exit status on the second serial port, and switches
// the guest off. In a guest that runs from a disk it hands over to the init that
// is there, which starts it again, as a service, for the command.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kata-qat/kata-qat/test/lab/report"
)

func main() {
	err := begin()
	if err != nil {
		fmt.Fprintln(os.Stderr, "init:", err)
	}
	if os.Getpid() != 1 {
		if err != nil {
			os.Exit(1)
		}
		return
	}
	unix.Sync()
	err = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	fmt.Fprintln(os.Stderr, "init: switch off:", err)
}

// begin finds out what part this process has.
func begin() error {
	switch pid := os.Getpid(); {
	case pid != 1 && len(os.Args) == 2 && os.Args[1] == serviceArg:
		return serveSystem()
	case pid != 1:
		return errors.New("this is the init of a lab guest: expected to be process 1")
	}
	orders, err := readOrders(report.Directory)
	if err == nil && orders.Disk != "" {
		return handOver(orders)
	}
	if err := leaveRootfs(); err != nil {
		return err
	}
	if err := mountAll(); err != nil {
		return err
	}
	return serve(report.Directory, func(o report.Orders) error { return prepare(o.Modules) })
}

// serve obeys the orders; an error that it returns has been reported if that is
// possible.
func serve(dir string, prepare func(report.Orders) error) error {
	port, err := openPort(report.Port)
	if err != nil {
		return err
	}
	defer port.Close()
	r := reporter{json.NewEncoder(port)}
	code, err := obey(r, dir, prepare)
	if err != nil {
		return errors.Join(err, r.send(report.Event{Kind: report.Failed, Text: err.Error()}))
	}
	return r.send(report.Event{Kind: report.Exited, Code: code})
}

func readOrders(dir string) (orders report.Orders, err error) {
	data, err := os.ReadFile(filepath.Join(dir, report.OrdersFile))
	if err == nil {
		err = json.Unmarshal(data, &orders)
	}
	if err != nil {
		return orders, fmt.Errorf("read orders: %w", err)
	}
	return orders, nil
}

func obey(r reporter, dir string, prepare func(report.Orders) error) (int, error) {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return 0, fmt.Errorf("read the kernel's release: %w", err)
	}
	if err := r.send(report.Event{Kind: report.Started, Text: unix.ByteSliceToString(uts.Release[:])}); err != nil {
		return 0, err
	}
	orders, err := readOrders(dir)
	if err != nil {
		return 0, err
	}
	if err := os.Setenv("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"); err != nil {
		return 0, err
	}
	if err := prepare(orders); err != nil {
		return 0, err
	}
	return run(orders.Run, orders.Env, r)
}

// reporter writes events to the serial port.
type reporter struct{ enc *json.Encoder }

func (r reporter) send(e report.Event) error {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err == nil {
		e.Uptime = time.Duration(t.Nano())
	}
	if err := r.enc.Encode(e); err != nil {
		return fmt.Errorf("report %s: %w", e.Kind, err)
	}
	return nil
}

// openPort opens a serial port and keeps the terminal layer from changing what
// passes.
func openPort(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, fmt.Errorf("open the port for reports: %w", err)
	}
	t, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	if err == nil {
		t.Oflag &^= unix.OPOST
		t.Lflag &^= unix.ECHO | unix.ICANON | unix.ISIG
		err = unix.IoctlSetTermios(int(f.Fd()), unix.TCSETS, t)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("make %s a plain line: %w", path, err)
	}
	return f, nil
}

// prepare brings up what a command expects of a machine.
func prepare(modules []string) error {
	if err := os.WriteFile("/proc/sys/kernel/hostname", []byte("lab"), 0o644); err != nil {
		return fmt.Errorf("set the host name: %w", err)
	}
	commands := [][]string{
		{"/bin/busybox", "--install", "-s", "/bin"},
		{"/bin/busybox", "ip", "link", "set", "lo", "up"},
	}
	for _, m := range modules {
		commands = append(commands, append([]string{"/bin/busybox", "modprobe"}, strings.Fields(m)...))
	}
	for _, c := range commands {
		if out, err := exec.Command(c[0], c[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", strings.Join(c[1:], " "), err, strings.TrimSpace(string(out)))
		}
	}
	return nil
}

// run starts the command, reports its output line by line, and returns its exit
// status as a shell would, 128 and the signal's number for one that a signal
// ended. It also buries the orphans that the kernel hands to process 1.
func run(argv, env []string, r reporter) (int, error) {
	path, err := exec.LookPath(argv[0])
	if err != nil {
		return 0, fmt.Errorf("run %s: %w", argv[0], err)
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		return 0, fmt.Errorf("run %s: %w", argv[0], err)
	}
	defer null.Close()
	rd, wr, err := os.Pipe()
	if err != nil {
		return 0, fmt.Errorf("run %s: %w", argv[0], err)
	}
	defer rd.Close()
	// Not os/exec: its Wait and the loop below would take each other's children.
	pid, err := syscall.ForkExec(path, argv, &syscall.ProcAttr{
		Dir:   "/root",
		Env:   append(os.Environ(), append([]string{"HOME=/root"}, env...)...),
		Files: []uintptr{null.Fd(), wr.Fd(), wr.Fd()},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	wr.Close()
	if err != nil {
		return 0, fmt.Errorf("run %s: %w", argv[0], err)
	}
	copied := make(chan error, 1)
	go func() { copied <- copyLines(rd, r) }()
	code, err := await(pid)
	if err != nil {
		return 0, fmt.Errorf("run %s: %w", argv[0], err)
	}
	// A daemon that the command left behind may hold the pipe open; what was
	// written before the command ended is there already.
	if err := rd.SetReadDeadline(time.Now().Add(200 * time.Millisecond)); err != nil {
		return 0, fmt.Errorf("run %s: %w", argv[0], err)
	}
	return code, <-copied
}

func await(pid int) (int, error) {
	for {
		var ws unix.WaitStatus
		got, err := unix.Wait4(-1, &ws, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR) || err == nil && got != pid:
			continue
		case err != nil:
			return 0, fmt.Errorf("wait: %w", err)
		case ws.Signaled():
			return 128 + int(ws.Signal()), nil
		}
		return ws.ExitStatus(), nil
	}
}

func copyLines(rd io.Reader, r reporter) error {
	b := bufio.NewReader(rd)
	for {
		line, err := b.ReadString('\n')
		if line != "" {
			if err := r.send(report.Event{Kind: report.Output, Text: strings.TrimSuffix(line, "\n")}); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) || errors.Is(err, os.ErrDeadlineExceeded) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read the command's output: %w", err)
		}
	}
}
