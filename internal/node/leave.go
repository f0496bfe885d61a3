package node

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"

	"github.com/kata-qat/kata-qat/internal/api"
	"github.com/kata-qat/kata-qat/internal/config"
)

// leaveMark is the file in the run directory that tells the daemon to take what
// it wrote for others away when it is stopped.
const leaveMark = "leave"

// Leave takes away what the daemon of a host has written for pods and runtimes:
// the configuration files in its run directory and the CDI specs. A daemon that
// runs does it when it is stopped, because until then it would write them again.
// A container that has a file mounted keeps it.
func Leave(root string, c *config.Config) error {
	run, err := hostPath(root, c.RunDir)
	if err != nil {
		return err
	}
	if conn, err := net.Dial("unix", filepath.Join(run, api.SocketName)); err == nil {
		conn.Close()
		if err := os.WriteFile(filepath.Join(run, leaveMark), nil, 0o600); err != nil {
			return fmt.Errorf("tell the daemon to remove its files when it stops: %w", err)
		}
		return nil
	}
	return removeFiles(root, run, c)
}

// leaveIfTold is what the daemon does at its end.
func leaveIfTold(o Options) error {
	if _, err := os.Lstat(filepath.Join(o.Config.RunDir, leaveMark)); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return removeFiles(o.Root, o.Config.RunDir, o.Config)
}

// forgetLeaving is what it does at its start: it is wanted again.
func forgetLeaving(o Options) error {
	if err := os.Remove(filepath.Join(o.Config.RunDir, leaveMark)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func removeFiles(root, run string, c *config.Config) error {
	errs := []error{os.RemoveAll(filepath.Join(run, confDir)), ignoreMissing(os.Remove(filepath.Join(run, leaveMark)))}
	if c.CDI.Dir != "" {
		dir, err := hostPath(root, c.CDI.Dir)
		errs = append(errs, err)
		specs, err := os.ReadDir(dir)
		errs = append(errs, ignoreMissing(err))
		for _, s := range specs {
			if ourSpec(s.Name(), c.Kubelet.Domain) {
				errs = append(errs, ignoreMissing(os.Remove(filepath.Join(dir, s.Name()))))
			}
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove the daemon's files: %w", err)
	}
	return nil
}

// ourSpec tells whether a file of the CDI directory has a name that we give.
func ourSpec(name, domain string) bool {
	return strings.HasPrefix(name, domain+"-") && filepath.Ext(name) == ".json"
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
