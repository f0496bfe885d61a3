//go:build bed

// Package examples tests the reference set-ups of deploy/examples with what can be
// had of the real things: HAProxy, nginx and OpenSSL of Debian, in pods of a real
// containerd, with kata-qat's daemon and shim. Only the devices are simulated, and
// QAT_Engine's modules are stand-ins without algorithms.
package examples

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

const networkEnv = "KATA_QAT_EXAMPLES_NETWORK"

// The tests run in a network of their own: the pods of a bed have the host's, and
// the set-ups their fixed ports.
func TestMain(m *testing.M) {
	if os.Getenv(networkEnv) != "" {
		if err := loopbackUp(); err != nil {
			fmt.Fprintln(os.Stderr, "switch the loopback interface on:", err)
			os.Exit(1)
		}
		os.Exit(m.Run())
	}
	cmd := exec.Command(os.Args[0], os.Args[1:]...)
	cmd.Env = append(os.Environ(), networkEnv+"=own")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	err := cmd.Run()
	if exit := new(exec.ExitError); errors.As(err, &exit) {
		os.Exit(exit.ExitCode())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "run the tests in a network namespace (they need root):", err)
		os.Exit(1)
	}
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	request, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	request.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, request)
}

// program is a command that runs a program of debian, with its own libraries.
func program(t testing.TB, name string, args ...string) *exec.Cmd {
	t.Helper()
	root := filepath.Join(debian(t), "root")
	all := append([]string{"--library-path", root + "/usr/lib/x86_64-linux-gnu", filepath.Join(root, "usr", name)}, args...)
	cmd := exec.Command(root+"/lib64/ld-linux-x86-64.so.2", all...)
	cmd.Env = append(os.Environ(), "OPENSSL_CONF=/dev/null")
	return cmd
}
