package allocation

import (
	"testing"

	"github.com/kata-qat/kata-qat/internal/qat"
)

func BenchmarkAssignFromSpec16(b *testing.B) {
	table := machine(b, crypto("0000:6b:00.0", 16))
	r := resolver(b, Options{}, table)
	var all []qat.Address
	for _, d := range table.Devices() {
		all = append(all, d.VF.Address)
	}
	p := pod("web")
	c := container(p, "app").with(table, all...)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := r.Assign(background, p, c); err != nil {
			b.Fatal(err)
		}
		r.ReleasePod(p.ID)
	}
}

func BenchmarkAssignNothing(b *testing.B) {
	r := resolver(b, Options{Standalone: true}, machine(b, crypto("0000:6b:00.0", 16)))
	p := pod("web")
	p.Annotations = map[string]string{"a": "1", "kubernetes.io/config.seen": "x", "io.katacontainers.config": "y"}
	c := container(p, "app")
	c.Devices = []SpecDevice{{"/dev/null", 1, 3}, {"/dev/zero", 1, 5}, {"/dev/full", 1, 7}, {"/dev/tty", 5, 0}, {"/dev/random", 1, 8}, {"/dev/urandom", 1, 9}}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := r.Assign(background, p, c); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkAssignNothingFromKubelet(b *testing.B) {
	k := startKubelet(b)
	k.grant("default/web", "other", "qat.intel.com/cy", "0000:6b:00.1")
	r := resolver(b, Options{KubeletSocket: k.socket}, machine(b, crypto("0000:6b:00.0", 16)))
	p := pod("web")
	c := container(p, "app")
	assign(b, r, p, c)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := r.Assign(background, p, c); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkAssignFromPool(b *testing.B) {
	r := resolver(b, Options{Standalone: true}, machine(b, crypto("0000:6b:00.0", 16), crypto("0000:70:00.0", 16), crypto("0000:75:00.0", 16), crypto("0000:7a:00.0", 16)))
	p := asking("web", "app: cy=16")
	c := container(p, "app")
	b.ReportAllocs()
	for b.Loop() {
		if _, err := r.Assign(background, p, c); err != nil {
			b.Fatal(err)
		}
		r.ReleasePod(p.ID)
	}
}
