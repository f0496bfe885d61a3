#!/bin/sh
# Writes the Secret web-tls as a manifest: as it is if it is there, or else with a
# self-signed certificate that is made here.
set -eu
umask 077
if [ -s /secret/tls.key ]; then
  cp /secret/tls.crt /secret/tls.key /work/
else
  openssl req -x509 -newkey rsa:2048 -nodes -days 365 -subj "/CN=$NAME" -addext "subjectAltName=DNS:$NAME" \
    -keyout /work/tls.key -out /work/tls.crt 2>/dev/null
fi
cat >/work/secret.yaml <<END
apiVersion: v1
kind: Secret
type: kubernetes.io/tls
metadata:
  name: web-tls
data:
  tls.crt: $(base64 -w 0 /work/tls.crt)
  tls.key: $(base64 -w 0 /work/tls.key)
END
