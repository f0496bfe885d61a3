#!/bin/sh
# AES-128-CBC through DPDK: on the VFs of this container, or in software if it has
# none. The Kata agent makes the addresses in PCIDEVICE_* those of the guest.
set -eu
devices=$(env | sed -n 's/^PCIDEVICE_QAT_INTEL_COM_[A-Z_]*=//p' | tr ',\n' '  ')
type=crypto_qat
set --
for address in $devices; do
  set -- "$@" -a "$address"
done
if [ $# -eq 0 ]; then
  echo "crypto-perf: no PCIDEVICE_QAT_INTEL_COM_*: running in software" >&2
  type=crypto_openssl
  set -- --no-pci --vdev crypto_openssl
fi
# One core for the control thread, one for the work. No huge pages: a Kata VM has
# none by default, and behind an IOMMU the device needs none.
exec dpdk-test-crypto-perf -l 0-1 --no-huge --no-shconf -m 256 --no-telemetry --iova-mode va "$@" -- \
  --devtype "$type" --ptest throughput --optype cipher-only --cipher-algo aes-cbc --cipher-op encrypt \
  --cipher-key-sz 16 --cipher-iv-sz 16 --total-ops "${TOTAL_OPS:-10000000}" --burst-sz 32 --buffer-sz 64,1024,4096
