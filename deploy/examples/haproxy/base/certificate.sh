#!/bin/sh
# Writes /tls/tls.pem, which is certificate and key in one for HAProxy, and both
# alone: from the Secret at /secret if there is one, or else self-signed and made
# here. Such a key never leaves the pod, and goes with it.
set -eu
umask 077
if [ -s /secret/tls.key ]; then
  cp /secret/tls.crt /secret/tls.key /tls/
  echo "certificate: from the Secret"
else
  openssl req -x509 -newkey rsa:2048 -nodes -days 365 -subj "/CN=$NAME" -addext "subjectAltName=DNS:$NAME" \
    -keyout /tls/tls.key -out /tls/tls.crt 2>/dev/null
  echo "certificate: self-signed for $NAME"
fi
cat /tls/tls.crt /tls/tls.key >/tls/tls.pem
