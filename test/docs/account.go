package docs

// entry says which documented commands a test runs.
type entry struct {
	test  string // by its directory and name, or suite
	file  string // the document that has them; "" for whichever
	lines []string
}

// suite runs what is itself a call of the tests.
const suite = "make test"

const bootstrap = "test/lab.TestANodeIsBootstrappedAcrossARebootAndPutBack"

// account has every command of the documentation that is not marked as one for
// hardware. What it says of documents and tests is checked by the tests of this
// package, and that a test really asks for its lines by For.
var account = []entry{
	{"cmd/kata-qat.TestDocumentedCommandsThatReadRun", "", []string{
		"kata-qat COMMAND --help",
		"kata-qat counters",
		"kata-qat counters --engines",
		"kata-qat counters --watch",
		"kata-qat devices",
		"kata-qat doctor",
		"kata-qat doctor --problems",
		"kata-qat dump",
		"kata-qat dump --all",
		"kata-qat dump --diff NAMESPACE/POD",
		"kata-qat dump --diff default/ingress",
		"kata-qat kernel-config",
		"kata-qat kernel-config check --for guest --profile guest-kernel --family c62x",
		"kata-qat kernel-config list",
		"kata-qat provision",
		"kata-qat provision cluster --print",
		"kata-qat topology -f node-1.svg",
		"kata-qat verify",
	}},

	// A machine with systemd and VFs.
	{bootstrap, "", []string{
		"scripts/bootstrap-node.sh --dry-run",
		"scripts/bootstrap-node.sh",
		"scripts/bootstrap-node.sh --uninstall",
		`kata-qat provision host --services "sym;asym"`,
		"kata-qat doctor",
		"kata-qat devices",
		"kata-qat provision guest",
		"kata-qat provision guest --base FILE",
		"kata-qat provision guest --verify",
		"kata-qat provision host",
		"kata-qat provision node",
		"kata-qat provision runtime",
		"kata-qat provision runtime --dry-run",
		"kata-qat provision runtime --print",
		"kata-qat provision runtime --undo",
		"chmod 0755 /run/kata-qat",
		"containerd config dump",
		"dmesg | grep -i -e dmar -e iommu",
		"journalctl -u kata-qat",
		"modprobe -r MODULE",
		"systemctl enable --now kata-qat",
		"systemctl reload kata-qat",
		"systemctl restart kata-qat",
		"udevadm trigger --subsystem-match=vfio",
	}},
	{"test/lab.TestDoctorFindsWhatARealMachineLacksAndNothingOnceItIsProvisioned", "", []string{
		"kata-qat devices --watch",
		`kata-qat devices --watch -o json | jq -c 'select(.event == "changed")'`,
		"kata-qat provision host",
	}},
	{"test/lab.TestProvisioningIsCompleteRepeatableAndUndone", "", []string{
		"kata-qat provision host --undo",
	}},
	{"test/lab.TestVerifyTellsAPodsWorkFromItsNeighbours", "", []string{
		"kata-qat counters",
		"kata-qat nri-plugin",
		"kata-qat verify default/ingress",
		"kata-qat verify default/ingress --for 10s",
	}},

	// A cluster without nodes, and one whose node is simulated.
	{"test/docs.TestTheClusterIsToldAndForgets", "", []string{
		"kata-qat provision cluster --dry-run",
		"kata-qat provision cluster",
		"kata-qat provision cluster --node-labels",
		"kata-qat provision cluster --node-labels --every 1m",
		"kata-qat provision cluster --undo",
		"kubectl apply --server-side -f deploy/manifests/kata-qat.yaml",
		"kubectl apply --server-side -f deploy/manifests/uninstall.yaml",
		"kubectl -n kata-qat wait --for=condition=complete job/kata-qat-uninstall --timeout=5m",
		"kubectl delete -f deploy/manifests/uninstall.yaml -f deploy/manifests/kata-qat.yaml",
		"helm uninstall kata-qat --namespace kata-qat --no-hooks",
	}},
	{"internal/kubeevents.TestTheRealServerTakesEventsAndTheirSeries", "", []string{
		"kubectl get events --field-selector reason=QATDeviceHeld",
	}},
	{"test/e2e/chart.TestChart", "", []string{
		"ctr -n k8s.io images import build/image/kata-qat.tar",
		"helm install kata-qat deploy/helm/kata-qat --namespace kata-qat --create-namespace",
		"helm upgrade kata-qat deploy/helm/kata-qat --namespace kata-qat",
		"helm upgrade kata-qat deploy/helm/kata-qat --namespace kata-qat --reset-then-reuse-values --set uninstall.host=true",
		"helm uninstall kata-qat --namespace kata-qat",
		"kubectl -n kata-qat exec ds/kata-qat -c labels -- kata-qat devices",
		"kubectl -n kata-qat exec ds/kata-qat -c labels -- kata-qat doctor",
		"kubectl -n kata-qat rollout restart ds/kata-qat",
		"kubectl describe node NODE | grep qat.intel.com",
		"kubectl describe pod POD",
	}},

	// The reference set-ups.
	{"test/examples.TestCryptoPerfRunsInACluster", "deploy/examples/dpdk/README.md", []string{
		"kubectl apply -k .",
		"kubectl wait --for=condition=complete --timeout=2m job/dpdk-crypto-perf",
		"kubectl logs job/dpdk-crypto-perf",
	}},
	{"test/examples.TestEnvoyRunsInACluster", "deploy/examples/envoy/README.md", []string{
		"kubectl apply -k qat",
		"kubectl logs deployment/envoy | grep -i qat",
		"kubectl port-forward service/envoy 8443:443",
		"curl -k --connect-to web.example:443:127.0.0.1:8443 https://web.example/",
	}},
	{"test/examples.TestHAProxyRunsInACluster", "deploy/examples/haproxy/README.md", []string{
		"kubectl apply -k software",
		"kubectl logs deployment/haproxy | grep qat-tls",
		"kubectl port-forward service/haproxy 8443:443",
		"curl -k --connect-to web.example:443:127.0.0.1:8443 https://web.example/",
	}},
	{"test/examples.TestOpenSSLSpeedRunsInACluster", "deploy/examples/openssl/README.md", []string{
		"kubectl apply -k .",
		"kubectl wait --for=condition=complete --timeout=2m job/openssl-speed",
		"kubectl logs job/openssl-speed",
	}},
	{"test/examples.TestOpenSSLSpeedRunsInACluster", "docs/tutorial.md", []string{
		"kubectl apply -k deploy/examples/openssl",
		"kubectl logs -f job/openssl-speed",
	}},
	{"test/examples.TestTheIngressControllerServes", "deploy/examples/haproxy-ingress/README.md", []string{
		"kubectl apply -k qat",
		"kubectl apply -n haproxy-qat -k demo",
		"curl -k --connect-to web.example:443:$ADDRESS:443 https://web.example/",
	}},
	{"test/examples.TestTheIngressControllerServes", "docs/tutorial.md", []string{
		"kubectl apply -k .",
		"kubectl apply -f ingress.yaml",
		"kata-qat verify haproxy-qat/POD",
	}},
	{"test/examples.TestTheIngressControllerServes", "", []string{
		"kubectl -n haproxy-qat logs deployment/haproxy-ingress -c haproxy | grep qat-tls",
	}},

	// What is typed in this repository.
	{"test/docs.TestMakeMakes", "", []string{
		"make",
		"make bench",
		"make build tools kube-tools",
		"make demo",
		"make help",
		"make image",
	}},
	{"test/docs.TestBenchmarksRun", "", []string{
		"go run ./test/bench -only create",
		"go run ./test/bench -only footprint",
		"go run ./test/bench -only kube",
		"go test -bench Allocat ./device-plugin",
		"go test -bench Assign ./internal/allocation",
		"go test -bench CreateContainer16VFs -benchmem ./nri-plugin",
		"go test -bench Discover ./internal/qat",
		"go test -bench Injected ./internal/metrics",
		"go test -bench Make ./internal/verity",
		"go test -bench OfNoInterest ./nri-plugin",
	}},
	{"test/driver.TestAVendorsReleaseIsBuiltAndItsModuleDrivesTheCard", "docs/drivers.md", []string{
		`kata-qat provision host --driver-archive /root/QAT20.L.tar.gz --driver-sha256 "$DIGEST"`,
	}},
	{"test/driver.TestDebiansFirmwareIsInstalledWhereItIsLookedFor", "", []string{
		"kata-qat provision host --driver packages --dry-run",
		"kata-qat provision host --driver packages",
	}},
	{suite, "", []string{
		"make chain-test",
		"make chart-test",
		"make driver-test",
		"make e2e",
		"make test",
		"KATA_QAT_BENCH_ROUNDS=5 go test -v -tags lab -run TakesLittleMore ./test/lab",
		"go test -tags bed -v -run TestNewDaemon ./test/e2e",
		"go test -v -tags lab -run MadeInSeconds ./test/lab",
	}},
}
