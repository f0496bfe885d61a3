#!/usr/bin/env bash
# Installs the Debian or Ubuntu packages that the tests need and that this
# machine lacks. With nothing missing it calls no package manager and needs no
# root. Go itself has to be there already.
set -euo pipefail

PATH=$PATH:/usr/sbin:/sbin

has() { command -v "$1" >/dev/null; }

# busybox is the only file of a test image, so it must need no dynamic linker:
# ldd fails on a static program.
has_static_busybox() { has busybox && ! ldd "$(command -v busybox)" >/dev/null 2>&1; }

# The race detector needs a C compiler with the C library's headers.
has_c_compiler() { has gcc && echo '#include <stdlib.h>' | gcc -E - >/dev/null 2>&1; }

if ! has go; then
	echo "setup: go is missing: install Go 1.26 (https://go.dev/dl) and add it to PATH, for example /usr/local/go/bin" >&2
	exit 1
fi

missing=()
has runc || missing+=(runc)
has_static_busybox || missing+=(busybox-static)
has_c_compiler || missing+=(gcc libc6-dev)
has shellcheck || missing+=(shellcheck)
# Documented commands have them.
has curl || missing+=(curl)
has jq || missing+=(jq)
# Guests are made from initrds and images of every kind; one has kmod in it.
has xz || missing+=(xz-utils)
has zstd || missing+=(zstd)
has kmod || missing+=(kmod)
has mkfs.ext4 || missing+=(e2fsprogs)
# An image of Kata's may be protected by dm-verity.
has veritysetup || missing+=(cryptsetup-bin)
# Pods of the Kubernetes bed have a network.
has ip || missing+=(iproute2)
[ -x /usr/lib/cni/bridge ] || missing+=(containernetworking-plugins)
if [ ${#missing[@]} -eq 0 ]; then
	exit 0
fi

if [ "$(id -u)" -ne 0 ]; then
	echo "setup: missing packages: ${missing[*]}: run as root: apt-get install ${missing[*]}" >&2
	exit 1
fi
if ! has apt-get; then
	echo "setup: missing: ${missing[*]} (Debian's names): this machine has no apt-get: install them with its package manager" >&2
	exit 1
fi

export DEBIAN_FRONTEND=noninteractive
install() { apt-get install --yes --quiet --no-install-recommends "${missing[@]}" </dev/null; }

echo "==> install ${missing[*]}"
# A fresh machine has no package lists, an old one has some that are out of date.
if ! install; then
	echo "==> update the package lists"
	apt-get update --quiet </dev/null
	install
fi
