#!/usr/bin/env bash
# Makes the machines of the driver tests, as root, after test/lab/setup.sh: in
# build/driver a Debian 12 with a compiler, DKMS, and the lab's kernel with its
# headers, and a Debian 13. Both have apt's real package lists and, downloaded but
# not installed, the packages that the tests install: those need no network then.
# Some 200 MB the first time; a second run does nothing.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
dir=$(realpath -m "${KATA_QAT_DRIVER_DIR:-$here/../../build/driver}")
lab=$(realpath -m "${KATA_QAT_LAB_DIR:-$here/../../build/lab}")
release=$(<"$lab/release")
stamp=$( (cat "$here/setup.sh"; echo "$release") | sha256sum | cut -d' ' -f1)

[ "$(cat "$dir/built" 2>/dev/null || true)" = "$stamp" ] && exit 0
if [ "$(id -u)" -ne 0 ]; then
	echo "setup: nothing is set up in $dir: run this as root" >&2
	exit 1
fi

# The mirror in use here, when apt has its lists.
# shellcheck disable=SC2016 # apt's own syntax
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' 'Codename: bookworm' 2>/dev/null | head -1 || true)
mirror=${mirror:-http://deb.debian.org/debian}

# make_root SUITE INSTALLED DOWNLOADED
make_root() {
	local suite=$1 installed=$2 downloaded=$3 log=$dir/$1.log
	echo "==> make the root of a Debian $suite in $dir"
	rm -rf "${dir:?}/$suite"
	# shellcheck disable=SC2016 # mmdebstrap sets the variable for the hook
	if ! mmdebstrap --quiet --mode=root --variant=minbase --include="$installed" --components=main,non-free-firmware \
		--aptopt='APT::Install-Recommends "false"' --aptopt='APT::Sandbox::User "root"' \
		--dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/doc/*' \
		--skip=cleanup/apt \
		--customize-hook='rm -f "$1"/var/cache/apt/archives/*.deb' \
		--customize-hook='APT_CONFIG=$MMDEBSTRAP_APT_CONFIG apt-get install -qqy --download-only '"$downloaded" \
		"$suite" "$dir/$suite" "$mirror" >"$log" 2>&1; then
		tail -20 "$log" >&2
		echo "setup: mmdebstrap failed" >&2
		exit 1
	fi
	chroot "$dir/$suite" apt-cache policy >/dev/null # makes its caches
}

# add_kernel gives a root the lab's kernel as its packages would, without the
# stand-ins of drivers, and has it be the one that runs.
add_kernel() {
	local root=$1
	cp -a "$lab/root/usr/src" "$root/usr/"
	cp -a "$lab/root/usr/lib/." "$root/usr/lib/"
	mkdir -p "$root/usr/lib/modules"
	cp -a "$lab/root/lib/modules/$release" "$root/usr/lib/modules/"
	rm -r "$root/usr/lib/modules/$release/extra"
	sed -i 's#^include .*/usr/src/#include /usr/src/#' "$root/usr/src/linux-headers-$release/Makefile"
	chroot "$root" depmod "$release"
	# A release installs for the kernel that uname names.
	printf '#!/bin/sh\n[ "$*" = -r ] && exec echo %s\nexec /usr/bin/uname "$@"\n' "$release" >"$root/usr/local/bin/uname"
	chmod 755 "$root/usr/local/bin/uname"
}

mkdir -p "$dir"
rm -f "$dir/built"
make_root bookworm make,gcc,libc6-dev,libelf1,kmod,dkms firmware-misc-nonfree
add_kernel "$dir/bookworm"
make_root trixie kmod firmware-intel-misc
echo "$stamp" >"$dir/built"
