//go:build bed

package examples

import (
	"strings"
	"testing"
)

func TestOpenSSLSpeedComparesSoftwareAndQAT(t *testing.T) {
	n := startNode(t)
	all := render(t, "openssl")
	p := start(t, n, all, "Job", "openssl-speed", map[string]string{"OPENSSL_MODULES": "/modules", "SECONDS_EACH": "1"})
	code, log := exitCode(t, p.containers["openssl"]), p.log("openssl")
	if code != 0 {
		t.Fatalf("it ended with %d:\n%s", code, log)
	}
	mustContain(t, "log", log, "QAT in use: OpenSSL provider qatprovider", "== software", "== QAT: -provider default -provider qatprovider -propquery ?provider=qatprovider")
	if got := strings.Count(log, "sign/s"); got != 2 {
		t.Errorf("it measured %d times:\n%s", got, log)
	}
}

// Without QAT the smoke test is no success.
func TestOpenSSLSpeedFailsWithoutQAT(t *testing.T) {
	n := startNode(t)
	p := start(t, n, render(t, "openssl"), "Job", "openssl-speed", nil)
	if code := exitCode(t, p.containers["openssl"]); code != 1 {
		t.Errorf("it ended with %d, expected 1", code)
	}
	mustContain(t, "log", p.log("openssl"), "not started, because QAT_TLS=required")
}

// DPDK finds no device behind a simulated node, but takes the command line, with the
// address that the environment names.
func TestCryptoPerfAsksForItsVF(t *testing.T) {
	n := startNode(t)
	p := start(t, n, render(t, "dpdk"), "Job", "dpdk-crypto-perf", nil)
	code, log := exitCode(t, p.containers["dpdk"]), p.log("dpdk")
	if code == 0 || strings.Contains(log, "running in software") || strings.Contains(log, "Invalid EAL arguments") {
		t.Errorf("it ended with %d:\n%s", code, log)
	}
	mustContain(t, "log", log, "Detected shared linkage of DPDK", "No crypto devices type crypto_qat available")
}

func TestCryptoPerfRunsInSoftwareWithoutAVF(t *testing.T) {
	n := startNode(t)
	all := render(t, "dpdk")
	for i := range all {
		for j := range all[i].Spec.Template.Spec.Containers {
			all[i].Spec.Template.Spec.Containers[j].Resources.Limits = nil
		}
	}
	p := start(t, n, all, "Job", "dpdk-crypto-perf", map[string]string{"TOTAL_OPS": "10000"})
	code, log := exitCode(t, p.containers["dpdk"]), p.log("dpdk")
	if code != 0 {
		t.Errorf("it ended with %d", code)
	}
	mustContain(t, "log", log, "running in software", "cryptodev type: crypto_openssl", "cipher algorithm: aes-cbc", "10000       10000")
}
