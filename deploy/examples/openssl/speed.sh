#!/bin/sh
# RSA 2048, in software and then with QAT, started by qat-tls.sh. Asynchronous jobs
# keep the device busy; without them every signature waits for the one before.
set -eu
echo "== software"
openssl speed -elapsed -seconds "${SECONDS_EACH:-5}" rsa2048
if [ -n "${QAT_PROVIDER-}" ]; then
  set -- -provider default -provider qatprovider -propquery '?provider=qatprovider'
elif [ -n "${QAT_ENGINE-}" ]; then
  set -- -engine qatengine
else
  exit 0
fi
echo "== QAT: $*"
openssl speed "$@" -elapsed -seconds "${SECONDS_EACH:-5}" -async_jobs 72 rsa2048
