#!/usr/bin/env bash
# Gets HAProxy, nginx, openssl, DPDK and the libraries that they need from Debian 12, and
# unpacks them into build/examples/root: an image's root, and nothing of this machine.
# Nothing is installed: no server starts. Then builds the stand-ins for QAT_Engine's
# modules. A second run does nothing.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
dir=$(realpath -m "${KATA_QAT_EXAMPLES_DIR:-$here/../../build/examples}")
packages=(haproxy nginx openssl
  libc6 libcap2 libcrypt1 libgcc-s1 libgcrypt20 libgpg-error0 liblua5.3-0 liblz4-1 liblzma5 libopentracing1
  libopentracing-c-wrapper0 libpcre2-8-0 libssl3 libstdc++6 libsystemd0 libzstd1 zlib1g
  dpdk-dev libbsd0 libfdt1 libipsec-mb1 libmd0 libnuma1
  librte-bus-pci23 librte-bus-vdev23 librte-common-qat23 librte-compressdev23 librte-crypto-openssl23
  librte-crypto-scheduler23 librte-cryptodev23 librte-eal23 librte-hash23 librte-kvargs23 librte-mbuf23
  librte-mempool23 librte-mempool-ring23 librte-net23 librte-pci23 librte-rcu23 librte-reorder23 librte-ring23
  librte-security23 librte-telemetry23)

# The Go side computes the same digest and refuses what was made from other sources.
sources() { (cd "$here" && cat setup.sh standin/qatengine.c standin/qatprovider.c) | sha256sum | cut -d' ' -f1; }

if [ "$(cat "$dir/built" 2>/dev/null)" = "$(sources)" ]; then
	exit 0
fi
echo "==> unpack HAProxy and nginx of Debian into $dir"
rm -rf "$dir"
mkdir -p "$dir/debs" "$dir/root/usr/lib" "$dir/modules"
download() { (cd "$dir/debs" && apt-get download -qq -o APT::Sandbox::User=root "${packages[@]}"); }
# A fresh machine has no package lists, an old one has some that are out of date.
if ! download 2>/dev/null; then
	apt-get update -qq >&2
	download
fi
for deb in "$dir"/debs/*.deb; do
	dpkg -x "$deb" "$dir/root"
done
# Of DPDK's programs one is enough, and nobody links with its libraries.
find "$dir/root/usr/bin" -name 'dpdk-*' -not -name dpdk-test-crypto-perf -delete
rm -rf "$dir/root/usr/include" "$dir/root"/usr/lib/x86_64-linux-gnu/*.a "$dir/root/usr/lib/x86_64-linux-gnu/pkgconfig"
rm -r "$dir/debs" "$dir/root/usr/share" "$dir/root/usr/lib/x86_64-linux-gnu/gconv"
# Debian's directories are one since 2023, its packages are not.
for d in lib lib64 sbin; do
	if [ -d "$dir/root/$d" ]; then
		mkdir -p "$dir/root/usr/$d"
		cp -a "$dir/root/$d/." "$dir/root/usr/$d/"
		rm -r "${dir:?}/root/$d"
	fi
	ln -s "usr/$d" "$dir/root/$d"
done
for module in qatprovider qatengine; do
	gcc -O2 -Wall -Wextra -Werror -shared -fPIC -o "$dir/modules/$module.so" "$here/standin/$module.c"
done
sources >"$dir/built"
