package qat

// PFsChanged reads what PFs say of themselves that the kernel announces no change
// of, their state, services and heartbeat, and tells whether it is other than in
// the inventory. It is much cheaper than Discover.
func PFsChanged(root string, inv *Inventory) bool {
	if len(inv.PFs) == 0 {
		return false
	}
	sys, err := openSysfs(root)
	if err != nil {
		return true
	}
	defer sys.close()
	unreadable := make(map[string]bool)
	for _, p := range inv.Problems {
		unreadable[p.Address] = true
	}
	r := new(reader)
	for i := range inv.PFs {
		pf := &inv.PFs[i]
		changed, err := changed(r, sys, pf)
		if changed && err == nil || (err != nil) != unreadable[string(pf.Address)] {
			return true
		}
	}
	return false
}

func changed(r *reader, sys sysfs, pf *PF) (bool, error) {
	d, err := sys.devices.open(string(pf.Address))
	if err != nil {
		return true, err
	}
	defer d.close()
	state, err := readState(r, d)
	if err != nil {
		return true, err
	}
	services, err := readServices(r, d)
	if err != nil {
		return true, err
	}
	health, err := readHealth(r, sys.debug, pf)
	if err != nil {
		return true, err
	}
	return state != pf.State || services != pf.Services || health != pf.Health, nil
}
