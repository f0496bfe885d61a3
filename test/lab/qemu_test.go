package lab

import (
	"strings"
	"testing"
)

func TestQEMUGetsWhatTheConfigurationAsks(t *testing.T) {
	for _, tc := range []struct {
		name     string
		cfg      Config
		has, not []string
	}{
		{
			name: "a device behind a port with ACS",
			cfg:  Config{PFs: []PF{{Family: "4xxx", ACS: true}}, IOMMU: true},
			has:  []string{"-device pcie-root-port,id=port0,chassis=1,slot=1 -device qat-4xxx,bus=port0", "-device intel-iommu,", "intel_iommu=on", "kernel-irqchip=split"},
			not:  []string{"-numa", "disable-acs"},
		},
		{
			name: "neither IOMMU nor ACS",
			cfg:  Config{PFs: []PF{{Family: "c62x"}}},
			has:  []string{"slot=1,disable-acs=on -device qat-c62x"},
			not:  []string{"intel-iommu", "intel_iommu"},
		},
		{
			name: "a node that a device names",
			cfg:  Config{PFs: []PF{{Family: "4xxx", NUMA: 1, ACS: true}}, Memory: 1001},
			has: []string{"size=501M -numa node,nodeid=0,memdev=ram0,cpus=0 ", "size=500M -numa node,nodeid=1,memdev=ram1,cpus=1 ",
				"pxb-pcie,id=node1,bus=pcie.0,bus_nr=64,numa_node=1", "slot=1,bus=node1"},
		},
		{
			name: "virtual machines in the guest",
			cfg:  Config{Nested: true},
			has:  []string{"-cpu max,+svm", "-smp 1"},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tc.cfg.Run = []string{"true"}
			if err := tc.cfg.complete(); err != nil {
				t.Fatal(err)
			}
			got := strings.Join(qemuArgs(tc.cfg, "vmlinux", "initrd"), " ")
			for _, s := range tc.has {
				if !strings.Contains(got, s) {
					t.Errorf("no %q in %s", s, got)
				}
			}
			for _, s := range tc.not {
				if strings.Contains(got, s) {
					t.Errorf("%q in %s", s, got)
				}
			}
		})
	}
}

func TestConfigurationsThatCannotWorkAreRefused(t *testing.T) {
	for name, cfg := range map[string]Config{
		"nothing to run":    {},
		"two things to run": {Run: []string{"true"}, Script: "true"},
		"unknown family":    {Run: []string{"true"}, PFs: []PF{{Family: "c6xx"}}},
		"nested on 2 CPUs":  {Run: []string{"true"}, Nested: true, CPUs: 2},
	} {
		if err := cfg.complete(); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

func TestReportTellsHowTheCommandEnded(t *testing.T) {
	const started, line = `{"kind":"started","uptime":3000000000,"text":"6.12"}` + "\n", `{"kind":"output","text":"a"}` + "\n"
	for _, tc := range []struct {
		name, report string
		code         int
		err          string
	}{
		{"exit status", started + line + `{"kind":"exited","code":3}` + "\n", 3, ""},
		{"no last word", started + line, 0, errWentDown.Error()},
		{"failure", started + line + `{"kind":"failed","text":"modprobe x: exit status 1"}` + "\n", 0, "modprobe x"},
		{"cut short", started + line + `{"kind":"exi`, 0, errWentDown.Error()},
		{"noise", started + line + "xyz\n", 0, "invalid character"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var res Result
			var log strings.Builder
			err := follow(strings.NewReader(tc.report), &res, &log)
			if tc.err == "" && err != nil || tc.err != "" && (err == nil || !strings.Contains(err.Error(), tc.err)) {
				t.Errorf("error %v, expected %q", err, tc.err)
			}
			if res.ExitCode != tc.code || res.Boot.Seconds() != 3 || res.Kernel != "6.12" || log.String() != "a\n" {
				t.Errorf("result %+v with log %q", res, log.String())
			}
		})
	}
}

func TestALabThatIsNotSetUpSaysHowToSetItUp(t *testing.T) {
	err := checkBuilt(".", t.TempDir())
	if err == nil || !strings.Contains(err.Error(), "run test/lab/setup.sh") {
		t.Errorf("error %v, expected one that says how to set up the lab", err)
	}
}

func TestALostTimerIsNoticedWhereverTheConsoleIsCut(t *testing.T) {
	line := "[   37.3] rcu: rcu_preempt kthread timer wakeup didn't happen for 5251 jiffies!\n"
	for cut := range line {
		stuck := false
		c := console{stuck: func() { stuck = true }}
		for _, part := range []string{"[   12.9] DMAR: fault\n", line[:cut], line[cut:]} {
			if _, err := c.Write([]byte(part)); err != nil {
				t.Fatal(err)
			}
		}
		if !stuck {
			t.Fatalf("not noticed when cut after %q", line[:cut])
		}
	}
	c := console{stuck: func() { t.Error("a guest is stuck that says nothing of it") }}
	if _, err := c.Write([]byte("[   12.9] DMAR: fault\n")); err != nil {
		t.Fatal(err)
	}
}
