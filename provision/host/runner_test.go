package host

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestADiskThatMayNotBeOpenedIsKnown(t *testing.T) {
	for name, tc := range map[string]struct {
		root   string
		err    error
		denied bool
	}{
		"by the cgroup of a container":    {"/", &os.PathError{Op: "open", Err: unix.EPERM}, true},
		"not when it can be":              {"/", nil, false},
		"not when it has no node":         {"/", &os.PathError{Op: "open", Err: unix.ENOENT}, false},
		"not of a file system on no disk": {"/proc", &os.PathError{Op: "open", Err: unix.EPERM}, false},
		"not of a root that is not there": {filepath.Join(t.TempDir(), "none"), &os.PathError{Op: "open", Err: unix.EPERM}, false},
	} {
		t.Run(name, func(t *testing.T) {
			var st unix.Stat_t
			if err := unix.Stat("/", &st); err != nil {
				t.Fatal(err)
			}
			if unix.Major(st.Dev) == 0 && tc.denied {
				t.Skip("this machine's root is on no disk")
			}
			asked := ""
			disk := deniedDisk(tc.root, func(device string) error { asked = device; return tc.err })
			if (disk != "") != tc.denied {
				t.Errorf("denied: %q", disk)
			}
			if tc.denied && asked != "/dev/block/"+disk {
				t.Errorf("asked for %s, of disk %s", asked, disk)
			}
		})
	}
}
