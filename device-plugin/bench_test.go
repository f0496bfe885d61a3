package deviceplugin

import (
	"fmt"
	"testing"

	"github.com/kata-qat/kata-qat/internal/placement"
	"github.com/kata-qat/kata-qat/internal/qat"
	"github.com/kata-qat/kata-qat/internal/vfio"
)

// large is what a node with 64 PFs on two NUMA nodes offers: 1,024 VFs.
func large() (*snapshot, []string) {
	inv := &qat.Inventory{PFs: make([]qat.PF, 64)}
	for i := range inv.PFs {
		pf := &inv.PFs[i]
		*pf = qat.PF{Address: qat.Address(fmt.Sprintf("0000:%02x:00.0", i)), Family: qat.FamilyByName("4xxx"), NUMANode: i / 32, State: qat.StateUp, Services: "sym;asym"}
		for j := range 16 {
			a := qat.Address(fmt.Sprintf("0000:%02x:%02x.%d", i, (j+1)/8, (j+1)%8))
			pf.VFs = append(pf.VFs, qat.VF{
				Address: a, PF: pf.Address, Index: j, Family: pf.Family, Driver: "vfio-pci", NUMANode: pf.NUMANode, Services: pf.Services,
				Group: &qat.Group{ID: 100 + 16*i + j, Members: []qat.GroupMember{{Address: string(a), Driver: "vfio-pci"}}},
			})
		}
	}
	s := offer(vfio.Load("/nonexistent", inv, vfio.Options{}), qat.ResourceDomain, nil, func(string) bool { return true })
	var ids []string
	for id, d := range s.resources["cy"].devices {
		d.err = nil // there is no node for it on this machine
		s.resources["cy"].ready[string(d.VF.PF)]++
		ids = append(ids, id)
	}
	return s, ids
}

func BenchmarkPreferredAllocation(b *testing.B) {
	s, ids := large()
	for _, policy := range []placement.Policy{placement.Balanced, placement.Packed} {
		for _, n := range []int{1, 16} {
			b.Run(fmt.Sprintf("%s/%dOf%d", policy, n, len(ids)), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					if got, err := s.prefer(policy, "cy", ids, nil, n, nil); err != nil || len(got) != n {
						b.Fatal(got, err)
					}
				}
			})
		}
	}
}

func BenchmarkAllocate(b *testing.B) {
	s, ids := large()
	for _, n := range []int{1, 16} {
		b.Run(fmt.Sprintf("%dOf%d", n, len(ids)), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := s.allocate("cy", ids[:n]); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
