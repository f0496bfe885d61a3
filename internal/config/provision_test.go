package config_test

import (
	"strings"
	"testing"

	"github.com/kata-qat/kata-qat/internal/config"
	"github.com/kata-qat/kata-qat/internal/qat"
)

func TestOfTheRulesForAPFTheFirstThatMatchesCounts(t *testing.T) {
	c, err := config.Parse("test", []byte(`
[[provision.pf]]
match = { address = "0000:6B:00.0" }
services = "dc"
[[provision.pf]]
match = { family = "c62x" }
exclude = true
[[provision.pf]]
match = { family = "4xxx", numa = 1 }
vfs = 0
driver = "qat_vfio_pci"
auto_reset = true
`))
	if err != nil {
		t.Fatal(err)
	}
	pf := func(address qat.Address, family string, numa int) *qat.PF {
		return &qat.PF{Address: address, Family: qat.FamilyByName(family), NUMANode: numa}
	}
	if r := c.Provision.RuleFor(pf("0000:6b:00.0", "4xxx", 1)); r == nil || r.Services != "dc" || r.VFs != nil {
		t.Errorf("by address: %+v", r)
	}
	if r := c.Provision.RuleFor(pf("0000:70:00.0", "4xxx", 1)); r == nil || r.VFs == nil || *r.VFs != 0 || r.Driver != "qat_vfio_pci" || r.AutoReset == nil || !*r.AutoReset {
		t.Errorf("by family and node: %+v", r)
	}
	for _, left := range []*qat.PF{pf("0000:3d:00.0", "c62x", 1), pf("0000:71:00.0", "4xxx", 0), pf("0000:72:00.0", "420xx", 1)} {
		if r := c.Provision.RuleFor(left); r != nil {
			t.Errorf("%s is not left alone: %+v", left.Address, r)
		}
	}
	if r := config.Default().Provision.RuleFor(pf("0000:6b:00.0", "4xxx", 0)); r == nil || *r != (config.PFRule{}) {
		t.Errorf("without rules: %+v, want an empty one", r)
	}
}

func TestWhatCannotBeProvisionedIsRefused(t *testing.T) {
	const digest = `sha256 = "0000000000000000000000000000000000000000000000000000000000000000"`
	for text, want := range map[string]string{
		"[[provision.pf]]\nmatch = { address = \"6b:00.0\" }":                                          "provision.pf, rule 1: match.address",
		"[[provision.pf]]\nmatch = { family = \"5xxx\" }":                                              `match.family "5xxx": expected a family of QAT devices`,
		"[[provision.pf]]\nmatch = { family = \"4xxx\" }\nservices = \"dcc;sym\"":                      "dcc cannot be combined",
		"[[provision.pf]]\nservices = \"nonsense\"":                                                    "\"nonsense\" is no service",
		"[[provision.pf]]\nvfs = -1":                                                                   "vfs -1",
		"[[provision.pf]]\n[[provision.pf]]\ndriver = \"igb\"":                                         `provision.pf, rule 2: driver "igb": expected vfio-pci or qat_vfio_pci`,
		"[[provision.pf]]\nvf = 1":                                                                     `unknown key "provision.pf.vf"`,
		"[provision]\nnode_group = \"a b\"":                                                            `provision.node_group "a b"`,
		"[provision.driver]\nsource = \"internet\"":                                                    `source "internet"`,
		"[provision.driver]\nsource = \"archive\"\narchive = \"https://example.com/a.tgz\"\n" + digest: "expected the absolute path of a local archive",
		"[provision.driver]\nsource = \"archive\"\narchive = \"/a.tgz\"":                               "sha256: expected",
		"[provision.driver]\narchive = \"/a.tgz\"":                                                     `for source = "archive"`,
		"[provision.driver]\nsource = \"packages\"\npackages = [\"-y\"]":                               `packages: "-y" is no name`,
	} {
		if _, err := config.Parse("test", []byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s\nerror %v, want one with %q", text, err, want)
		}
	}
}
