#!/usr/bin/env bash
# Gets what the tests of kernel-config need: Debian's kernel sources 6.1 and
# 6.12, of which only the part that configures a kernel is kept (some 25 MiB
# each, in build/kernel), and the tools that configuring takes. With nothing
# missing it calls no package manager and needs no root.
set -euo pipefail

PATH=$PATH:/usr/sbin:/sbin
cache=${KATA_QAT_KERNELS:-$(cd "$(dirname "$0")/../.." && pwd)/build/kernel}
releases=(6.1 6.12)

has() { command -v "$1" >/dev/null; }
has_c_compiler() { has gcc && echo '#include <stdlib.h>' | gcc -E - >/dev/null 2>&1; }

packages=()
for tool in make flex bison bc; do
	has "$tool" || packages+=("$tool")
done
has_c_compiler || packages+=(gcc libc6-dev)
has xz || packages+=(xz-utils)

sources=()
for release in "${releases[@]}"; do
	[ -f "$cache/linux-$release/.complete" ] || sources+=("$release")
done

if [ ${#packages[@]} -eq 0 ] && [ ${#sources[@]} -eq 0 ]; then
	exit 0
fi
if ! has apt-get; then
	echo "setup: missing: ${packages[*]} and the kernel sources ${sources[*]}: this machine has no apt-get: install the tools with its package manager and unpack the sources as $cache/linux-RELEASE with an empty file .complete in each" >&2
	exit 1
fi
export DEBIAN_FRONTEND=noninteractive

# A fresh machine has no package lists, an old one has some that are out of date.
updated=
with_lists() {
	"$@" && return
	[ -z "$updated" ] && [ "$(id -u)" -eq 0 ] || return 1
	echo "==> update the package lists"
	apt-get update --quiet </dev/null
	updated=yes
	"$@"
}

if [ ${#packages[@]} -gt 0 ]; then
	if [ "$(id -u)" -ne 0 ]; then
		echo "setup: missing packages: ${packages[*]}: run as root: apt-get install ${packages[*]}" >&2
		exit 1
	fi
	echo "==> install ${packages[*]}"
	with_lists apt-get install --yes --quiet --no-install-recommends -o DPkg::Lock::Timeout=300 "${packages[@]}" </dev/null
fi

# fetch downloads a source package, which is not installed, and keeps of the
# kernel what make needs for *config targets.
fetch() {
	local release=$1 work
	work=$(mktemp -d "$cache/.fetch-XXXXXX")
	# shellcheck disable=SC2064 # the directory as it is now
	trap "rm -rf '$work'" EXIT
	chmod 755 "$work"
	echo "==> get the source of Linux $release: some 150 MB"
	if ! (cd "$work" && with_lists apt-get download --quiet "linux-source-$release"); then
		echo "setup: no package linux-source-$release: it is in Debian 12 (6.12: with its security updates); elsewhere unpack the source as $cache/linux-$release with an empty file .complete in it" >&2
		return 1
	fi
	dpkg-deb -x "$work"/linux-source-*.deb "$work"
	mkdir "$work/tree"
	tar -C "$work/tree" --strip-components 1 --wildcards -xJf "$work/usr/src/linux-source-$release.tar.xz" \
		'*/Kconfig*' '*/Makefile*' '*/Kbuild*' '*/scripts/*' '*/arch/x86/configs/*' '*/arch/x86/*.sh'
	touch "$work/tree/.complete"
	rm -rf "$cache/linux-$release"
	mv "$work/tree" "$cache/linux-$release"
	rm -rf "$work"
	trap - EXIT
}

mkdir -p "$cache"
for release in "${sources[@]}"; do
	fetch "$release"
done
