package cluster

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kata-qat/kata-qat/internal/qat"
)

func wanted(handlers ...string) Options {
	return Options{Namespace: "kata-qat", Handlers: handlers, Memory: DefaultMemory, CPU: DefaultCPU}
}

func TestEachHandlerHasARuntimeClassOfItsName(t *testing.T) {
	objects, err := Objects(wanted("kata-qat", "kata-qat-gk"))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, o := range objects {
		if o.GetKind() == "RuntimeClass" {
			names = append(names, o.GetName()+" is "+o.Object["handler"].(string))
		}
	}
	if !slices.Equal(names, []string{"kata-qat is kata-qat", "kata-qat-gk is kata-qat-gk"}) {
		t.Errorf("the RuntimeClasses are %q", names)
	}
}

func TestWhatTheServerWouldRefuseIsRefusedBefore(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*Options)
		says   string
	}{
		"a namespace with a dot":     {func(o *Options) { o.Namespace = "a.b" }, `namespace "a.b"`},
		"no handler":                 {func(o *Options) { o.Handlers = nil }, "at least one"},
		"a handler in capitals":      {func(o *Options) { o.Handlers = []string{"Kata"} }, `"Kata"`},
		"a handler twice":            {func(o *Options) { o.Handlers = []string{"kata", "kata"} }, "twice"},
		"memory without a number":    {func(o *Options) { o.Memory = "much" }, `memory "much"`},
		"less than no time":          {func(o *Options) { o.CPU = "-1" }, `CPU "-1"`},
		"a selector that is no name": {func(o *Options) { o.NodeSelector = map[string]string{"a b": "c"} }, `"a b"`},
	} {
		o := wanted("kata-qat")
		c.change(&o)
		if _, err := Objects(o); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, expected an error with %s", name, err, c.says)
		}
	}
}

func TestLabelsNameFamiliesAndServicesOfTheVFs(t *testing.T) {
	vf := func(family string, services qat.Services) qat.VF {
		return qat.VF{Family: qat.FamilyByName(family), Services: services}
	}
	inv := &qat.Inventory{PFs: []qat.PF{
		{Family: qat.FamilyByName("4xxx"), VFs: []qat.VF{vf("4xxx", "sym;asym"), vf("4xxx", "dc")}},
		{Family: qat.FamilyByName("c62x"), VFs: []qat.VF{vf("c62x", "")}},
		{Family: qat.FamilyByName("420xx")}, // without VFs a PF is of no use to a pod
	}}
	want := map[string]string{
		"kata-qat.io/node": "true", "kata-qat.io/family.4xxx": "true", "kata-qat.io/family.c62x": "true",
		"kata-qat.io/service.cy": "true", "kata-qat.io/service.dc": "true", "kata-qat.io/service.generic": "true",
	}
	if diff := cmp.Diff(want, Labels(inv)); diff != "" {
		t.Error(diff)
	}
}
