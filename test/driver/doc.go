// Package driver tests where a machine's drivers come from, with nothing in the
// place of anything but the machine's sysfs: a release with a vendor's layout is
// built by the real tools against the lab kernel's headers, by DKMS, too, and its
// module is loaded in a guest of the lab; Debian's packages are installed by apt.
// The machines are roots that setup.sh made, each changed in a layer above.
package driver
