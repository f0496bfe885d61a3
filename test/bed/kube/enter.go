package kube

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// stageEnv tells the three runs of a program that is a bed apart: the one that a
// user started, the init of the bed's namespaces, and the one inside.
const stageEnv = "KATA_QAT_KUBE_BED"

const (
	stageInit   = "init"
	stageInside = "inside"
)

// Main runs a program in namespaces of its own (network, mounts, processes, IPC,
// cgroups), where Start makes a Kubernetes node, and returns its exit code:
//
//	func TestMain(m *testing.M) { os.Exit(kube.Main(m.Run)) }
//
// It starts the program again with the same arguments and calls run in there.
// All that runs inside dies with the process that called Main, however that dies;
// all that was mounted or written below /etc, /opt, /run, /usr/local and /var is
// gone then. /tmp, the working directory and the rest are the machine's.
func Main(run func() int) int {
	var code int
	var err error
	switch os.Getenv(stageEnv) {
	case stageInside:
		return run()
	case stageInit:
		code, err = initialize()
	default:
		code, err = outside()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "start a Kubernetes bed:", err)
		return 1
	}
	return code
}

// outside starts the init of the namespaces and waits for it.
func outside() (code int, err error) {
	if os.Geteuid() != 0 {
		return 0, errors.New("it needs root: run as root or with sudo")
	}
	groups, err := newCgroups()
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, groups.remove()) }()
	// The kernel sends the signal when the thread dies that started the child.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), stageEnv+"="+stageInit, cgroupEnv+"="+groups.name)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
		Pdeathsig:  syscall.SIGKILL,
	}
	err = cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode(), nil
	}
	return 0, err
}

// initialize is process 1 of the namespaces: it makes them a machine, starts the
// program inside, and buries what has lost its parent.
func initialize() (int, error) {
	// Namespaces and mounts are of this thread, and the child is forked from it.
	runtime.LockOSThread()
	if err := os.Setenv("PATH", sbinDir+":"+binDir+":"+os.Getenv("PATH")+":/usr/sbin:/sbin"); err != nil {
		return 0, err
	}
	if err := makeMachine(os.Getenv(cgroupEnv)); err != nil {
		return 0, err
	}
	if err := os.Setenv(stageEnv, stageInside); err != nil {
		return 0, err
	}
	child, err := syscall.ForkExec("/proc/self/exe", os.Args, &syscall.ProcAttr{Env: os.Environ(), Files: []uintptr{0, 1, 2}})
	if err != nil {
		return 0, fmt.Errorf("start the program in the bed: %w", err)
	}
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, syscall.EINTR):
		case err != nil:
			return 0, fmt.Errorf("wait for the program in the bed: %w", err)
		case pid == child && status.Signaled():
			return 128 + int(status.Signal()), keepLogs()
		case pid == child:
			return status.ExitStatus(), keepLogs()
		}
	}
}

// LogsEnv names a directory in which the logs of the bed's services are kept,
// for who looks for the cause of something. It must not be there yet.
const LogsEnv = "KATA_QAT_KUBE_LOGS"

func keepLogs() error {
	dir := os.Getenv(LogsEnv)
	if dir == "" {
		return nil
	}
	return os.CopyFS(dir, os.DirFS(logDir))
}

// Entered tells whether Main started this process, so that a program can leave
// out what it has done already.
func Entered() bool { return os.Getenv(stageEnv) != "" }

// Inside tells whether the process runs in the namespaces that Main makes.
func Inside() bool { return os.Getenv(stageEnv) == stageInside }
