#!/bin/bash
# Prepare the QEMU lab on Debian 12, as root: install QEMU 10.0 and a C compiler, unpack a Debian
# kernel with its headers, build the device emulation, the drivers' stand-ins and what runs in VMs of
# the guest, and make the disk of a Debian 12 with systemd, udev and GRUB.
#
#   test/lab/setup.sh            into build/lab
#   KATA_QAT_LAB_DIR=/var/cache/lab test/lab/setup.sh
#   KATA_QAT_LAB_KERNEL=6.12.117+deb12 test/lab/setup.sh     that kernel, not the newest 6.12
#
# The kernel is unpacked into the lab's directory and never installed: the boot set-up of this
# machine stays as it is, and so do its apt sources. A second run does nothing.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
lab=$(realpath -m "${KATA_QAT_LAB_DIR:-$here/../../build/lab}")
series=6.12 # with vfio, intel-iommu and the module interfaces that the stand-ins are written for

say() { echo "lab: $*" >&2; }
die() { say "$*"; exit 1; }

# The Go side computes the same digest and refuses a lab that was built from other sources.
sources() { (cd "$here" && cat setup.sh qemu/qatemu.c guest/Kbuild guest/qat_stub.c payload/payload.c) | sha256sum | cut -d' ' -f1; }

# mirror: the one in use here, when apt has its lists.
mirror() {
  local uri
  # shellcheck disable=SC2016 # apt's own syntax
  uri=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' 'Codename: bookworm' 2>/dev/null | head -1 || true)
  echo "${uri:-http://deb.debian.org/debian}"
}

# with_backports APT-COMMAND...: run with the backports suite as an additional source, which no file
# of this machine names afterwards. sourcelist stands for /etc/apt/sources.list, so that is kept.
with_backports() {
  local list=$lab/apt.list
  cat /etc/apt/sources.list >"$list" 2>/dev/null || : >"$list"
  if ! grep -rqs bookworm-backports /etc/apt/sources.list /etc/apt/sources.list.d; then
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $(mirror) bookworm-backports main" >>"$list"
  fi
  local command=$1; shift
  "$command" -o Dir::Etc::sourcelist="$list" "$@"
}

install_tools() {
  local missing=() p
  for p in gcc gcc-12 libc6-dev make xz-utils zstd busybox-static libelf1 ca-certificates mmdebstrap kmod e2fsprogs; do
    dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null | grep -qx installed || missing+=("$p")
  done
  if ! qemu-system-x86_64 --version 2>/dev/null | grep -q 'version 10\.0\.'; then
    # -t would take every dependency from backports; the suffix takes this one and what it insists on.
    missing+=(qemu-system-x86/bookworm-backports qemu-system-common/bookworm-backports qemu-system-data/bookworm-backports seabios/bookworm-backports)
  fi
  ((${#missing[@]})) || return 0
  [ "$(id -u)" = 0 ] || die "packages are missing (${missing[*]}): run this as root"
  say "installing ${missing[*]}"
  update
  DEBIAN_FRONTEND=noninteractive with_backports apt-get install -qqy --no-install-recommends "${missing[@]}" >"$lab/apt.log" 2>&1 ||
    { tail -20 "$lab/apt.log" >&2; die "apt-get install failed"; }
  qemu-system-x86_64 --version | grep -q 'version 10\.0\.' || die "QEMU is $(qemu-system-x86_64 --version | head -1), expected 10.0, which the device emulation is written for"
}

updated=
update() { [ -n "$updated" ] || with_backports apt-get update -qq >&2; updated=1; }

# newest_kernel: the newest kernel of the series for which image and headers can both be had.
newest_kernel() {
  local v
  for v in $(with_backports apt-cache pkgnames linux-image-$series. | sed -nE 's/^linux-image-([0-9.]+\+deb12)-cloud-amd64$/\1/p' | sort -rV); do
    with_backports apt-cache show "linux-headers-$v-cloud-amd64" >/dev/null 2>&1 && { echo "$v"; return; }
  done
  die "no kernel $series with headers in the sources of apt: expected one in bookworm-backports or bookworm-security"
}

unpack_kernel() {
  [ -e "$lab/release" ] && [[ -z ${KATA_QAT_LAB_KERNEL:-} || $(<"$lab/release") == "${KATA_QAT_LAB_KERNEL:-}-cloud-amd64" ]] && return
  update
  local v release root=$lab/root
  v=${KATA_QAT_LAB_KERNEL:-$(newest_kernel)} release=$v-cloud-amd64
  say "unpacking Linux $release"
  rm -rf "$root" "$lab/debs" "$lab/release" "$lab/built"
  mkdir -p "$root" "$lab/debs"
  (cd "$lab/debs" && with_backports apt-get download -qq -o APT::Sandbox::User=root \
    "linux-image-$release" "linux-headers-$release" "linux-headers-$v-common" "linux-kbuild-$v")
  for deb in "$lab"/debs/*.deb; do dpkg -x "$deb" "$root"; done
  rm -r "$lab/debs"
  # The headers include the common ones by absolute path. Without vmlinux kbuild skips BTF, which would need pahole.
  sed -i "s#^include /usr/src/#include $root/usr/src/#" "$root/usr/src/linux-headers-$release/Makefile"
  rm -f "$root/usr/src/linux-headers-$release/vmlinux"
  find "$root/lib/modules/$release" -name '*.ko.xz' -print0 | xargs -0 -n 64 -P "$(nproc)" xz -d
  extract_vmlinux "$root/boot/vmlinuz-$release" >"$lab/vmlinux" || die "no ELF image in $root/boot/vmlinuz-$release: expected one compressed with zstd"
  echo "$release" >"$lab/release"
}

# extract_vmlinux BZIMAGE: QEMU starts an ELF kernel directly (PVH), which under emulation saves the
# second or two that the kernel takes to decompress itself.
extract_vmlinux() {
  local offset
  while read -r offset; do
    # zstd complains of what follows the stream.
    tail -c +$((offset + 1)) "$1" | zstd -dcq 2>/dev/null >"$lab/vmlinux.tmp" || true
    [ "$(head -c4 "$lab/vmlinux.tmp" | tail -c3)" = ELF ] && { cat "$lab/vmlinux.tmp"; rm "$lab/vmlinux.tmp"; return; }
  done < <(LC_ALL=C grep -aobP '\x28\xb5\x2f\xfd' "$1" | cut -d: -f1)
  rm -f "$lab/vmlinux.tmp"
  return 1
}

build() {
  local release extra
  release=$(<"$lab/release") extra=$lab/root/lib/modules/$release/extra
  say "building the device emulation and the drivers' stand-ins for Linux $release"
  gcc -O2 -Wall -Wextra -Werror -shared -fPIC -o "$lab/qatemu.so" "$here/qemu/qatemu.c"
  # Nothing of a C library; loaded where the first MiB ends. No SSE, which nobody has switched on.
  gcc -m32 -march=i686 -O2 -Wall -Wextra -Werror -ffreestanding -fno-pic -fno-stack-protector -fno-asynchronous-unwind-tables \
    -nostdlib -static -Wl,--build-id=none,--no-warn-rwx-segments,-N,-Ttext=0x100000 -o "$lab/payload.elf" "$here/payload/payload.c"
  rm -rf "$lab/module" "$extra"
  mkdir -p "$lab/module" "$extra"
  cp "$here"/guest/{Kbuild,qat_stub.c} "$lab/module/"
  make -s -C "$lab/root/usr/src/linux-headers-$release" M="$lab/module" modules >"$lab/module.log" 2>&1 ||
    { cat "$lab/module.log" >&2; die "the kernel modules do not build"; }
  strip --strip-debug "$lab"/module/*.ko
  cp "$lab"/module/*.ko "$extra/"
  busybox depmod -b "$lab/root" "$release"
}

# make_system: a disk without partitions. What only takes time at its start is masked.
make_system() {
  local release root=$lab/system
  release=$(<"$lab/release")
  say "making the disk of a Debian 12 with systemd"
  rm -rf "$root" "$lab/system.ext4"
  mmdebstrap --quiet --variant=minbase --include=systemd-sysv,udev,dbus,kmod,grub2-common \
    --aptopt='APT::Install-Recommends "false"' --aptopt='APT::Sandbox::User "root"' \
    --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/doc/*' \
    bookworm "$root" "$(mirror)" >"$lab/system.log" 2>&1 || { tail -20 "$lab/system.log" >&2; die "mmdebstrap failed"; }
  rm -rf "$root"/var/cache/apt/*.bin "$root"/var/lib/apt/lists/*
  cp "$lab/root/boot/vmlinuz-$release" "$root/boot/"
  mkdir -p "$root/usr/lib/modules"
  cp -a "$lab/root/lib/modules/$release" "$root/usr/lib/modules/"
  rm -f "$root/usr/lib/modules/$release"/{build,source}
  depmod -b "$root" "$release"
  # What the package grub-pc would make.
  mkdir -p "$root/boot/grub"
  printf '%s\n' GRUB_DEFAULT=0 GRUB_TIMEOUT=5 GRUB_DISTRIBUTOR=Debian 'GRUB_CMDLINE_LINUX_DEFAULT="quiet"' 'GRUB_CMDLINE_LINUX=""' >"$root/etc/default/grub"
  : >"$root/etc/fstab"
  echo lab >"$root/etc/hostname"
  echo 5e1f0000000000000000000000001ab0 >"$root/etc/machine-id"
  local u
  for u in apt-daily.timer apt-daily-upgrade.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer dpkg-db-backup.timer \
    getty@tty1.service serial-getty@ttyS0.service systemd-logind.service systemd-random-seed.service systemd-update-utmp.service \
    systemd-update-utmp-runlevel.service systemd-pstore.service systemd-journal-flush.service getty.target; do
    ln -sf /dev/null "$root/etc/systemd/system/$u"
  done
  mke2fs -q -t ext4 -O ^has_journal -E lazy_itable_init=1 -d "$root" "$lab/system.tmp" 1200M
  rm -rf "$root"
  mv "$lab/system.tmp" "$lab/system.ext4"
}

mkdir -p "$lab"
[ "$(cat "$lab/built" 2>/dev/null)" = "$(sources)" ] && [[ -z ${KATA_QAT_LAB_KERNEL:-} || $(<"$lab/release") == "$KATA_QAT_LAB_KERNEL-cloud-amd64" ]] && exit 0
install_tools
unpack_kernel
build
make_system
sources >"$lab/built"
say "ready in $lab"
