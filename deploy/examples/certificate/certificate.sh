#!/bin/sh
# Writes a certificate and its key to /tls, alone and in one file as HAProxy wants
# them: from the Secret at /secret if there is one, or else self-signed for NAME and
# made here. Such a key goes with the pod, unless SECRET names a Secret: then it is
# written as a manifest, too. RSA: Envoy's QAT provider takes no other.
set -eu
umask 077
cd /tls
if [ -s /secret/tls.key ]; then
  cp /secret/tls.crt /secret/tls.key .
  echo "certificate: from the Secret"
else
  openssl req -x509 -newkey rsa:2048 -nodes -days 365 -subj "/CN=$NAME" -addext "subjectAltName=DNS:$NAME" \
    -keyout tls.key -out tls.crt 2>/dev/null
  echo "certificate: self-signed for $NAME"
fi
cat tls.crt tls.key >tls.pem
[ -n "${SECRET-}" ] || exit 0
cat >secret.yaml <<END
apiVersion: v1
kind: Secret
type: kubernetes.io/tls
metadata:
  name: $SECRET
data:
  tls.crt: $(base64 -w 0 tls.crt)
  tls.key: $(base64 -w 0 tls.key)
END
