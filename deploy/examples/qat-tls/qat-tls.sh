#!/bin/sh
# Starts a TLS server, with QAT if that can be used here, and says in one line
# which it is:
#
#   qat-tls.sh COMMAND [ARGUMENT]...
#
# QAT_TLS=auto      hardware if it can be used, software if not (the default)
# QAT_TLS=required  hardware, or the container ends
# QAT_TLS=off       software
#
# COMMAND finds QAT_PROVIDER (OpenSSL 3) or QAT_ENGINE in its environment, or
# neither. A server told to use a module that cannot be loaded does not start; one
# whose engine finds no device serves in software and says nothing, and with the
# provider no signature succeeds (QAT_Engine 1.9.0, OpenSSL 3.0). So both are tried
# here first, by making a certificate: that takes an RSA signature.
set -eu

say() { echo "qat-tls: $*" >&2; }

# software REASON: what there is to do without hardware.
software() {
  if [ "$mode" = required ]; then
    say "QAT not usable ($1): not started, because QAT_TLS=required"
    exit 1
  fi
  say "QAT not usable ($1): serving TLS in software"
}

# device: the first device of this container, a VFIO group or what a driver of the
# guest's kernel made. /dev/vfio/vfio is there for every group.
device() {
  for node in /dev/vfio/* /dev/qat_*; do
    if [ -c "$node" ] && [ "$node" != /dev/vfio/vfio ]; then
      echo "$node"
      return
    fi
  done
}

sign() { openssl req -x509 -newkey rsa:2048 -nodes -keyout /dev/null -out /dev/null -subj /CN=qat-tls -days 1 "$@"; }
with_provider() { sign -provider default -provider qatprovider -propquery '?provider=qatprovider'; }
# After "Invalid engine" openssl goes on in software, and succeeds.
with_engine() { openssl engine -t qatengine && sign -engine qatengine; }

# try FUNCTION: why it does not work, or nothing.
try() {
  code=0
  said=$("$1" 2>&1) || code=$?
  # QAT_Engine prints this (e_qat.c, bind_qat).
  if echo "$said" | grep -q 'device not available\|\[ unavailable \]'; then
    echo "finds no device it can use; of locked memory it may have $(sed -n 's/^Max locked memory *\([^ ]*\).*/\1/p' /proc/self/limits) bytes, and a VF takes 16 MiB"
  elif [ "$code" != 0 ]; then
    # What the dynamic linker said, or else OpenSSL's first error.
    {
      echo "$said" | sed -n 's/.*filename([^)]*): //p'
      echo "$said" | sed -n 's/.*error:[0-9A-F]*://p'
      echo "$said"
    } | head -n 1
  fi
}

mode=${QAT_TLS:-auto}
unset QAT_PROVIDER QAT_ENGINE
[ $# -gt 0 ] || { say "no command: usage: qat-tls.sh COMMAND [ARGUMENT]..."; exit 2; }
case $mode in
off)
  say "QAT_TLS=off: serving TLS in software"
  exec "$@"
  ;;
auto | required) ;;
*)
  say "QAT_TLS=$mode: expected auto, required or off"
  exit 2
  ;;
esac

if [ -z "$(device)" ]; then
  software "no device: neither a VFIO group nor /dev/qat_* is in this container; does it ask for qat.intel.com/...?"
elif ! command -v openssl >/dev/null; then
  software "the image has no openssl to try it with"
elif no_provider=$(try with_provider) && [ -z "$no_provider" ]; then
  say "QAT in use: OpenSSL provider qatprovider, $(device)"
  export QAT_PROVIDER=qatprovider
elif no_engine=$(try with_engine) && [ -z "$no_engine" ]; then
  say "QAT in use: OpenSSL engine qatengine, $(device)"
  export QAT_ENGINE=qatengine
else
  software "provider: $no_provider; engine: $no_engine"
fi
exec "$@"
