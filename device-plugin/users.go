package deviceplugin

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"time"

	"github.com/kata-qat/kata-qat/internal/qat"
	"github.com/kata-qat/kata-qat/internal/vfio"
)

const (
	// usersSettle is how long it must be quiet before users are looked for: who
	// opens a group opens it more than once.
	usersSettle = 200 * time.Millisecond
	// usersAgain is how often they are looked for without any sign of one, for
	// those that open a node of their own making. It reads all of /proc.
	usersAgain = 5 * time.Minute
)

// followUsers keeps VFs from being offered that a process of the host has open
// which belongs to no pod, until the context ends. A pod's VM opens its VF, too:
// nothing is looked for when the VF is known to be a pod's.
func (p *Plugin) followUsers(ctx context.Context) {
	again := time.NewTicker(usersAgain)
	defer again.Stop()
	quiet := time.NewTimer(0) // and once now
	defer quiet.Stop()
	if _, err := os.Readlink(filepath.Join(p.o.Root, "proc/1/exe")); errors.Is(err, fs.ErrPermission) {
		p.log.WithError(err).Warn("it cannot be seen which VFs are in use on the host, by no pod: expected the capability CAP_SYS_PTRACE")
	}
	opens := p.watchOpens(ctx)
	for {
		select {
		case <-ctx.Done():
			return
		case o, ok := <-opens:
			if !ok {
				opens = nil
			} else if o.Lost || p.suspicious(o.Node) {
				quiet.Reset(usersSettle)
			}
			continue
		case <-quiet.C:
		case <-again.C:
		}
		if opens == nil {
			opens = p.watchOpens(ctx)
		}
		if err := p.findUsers(ctx); err != nil && ctx.Err() == nil {
			p.log.WithError(err).Warn("it is not known which VFs are in use on the host, by no pod")
		}
	}
}

// watchOpens returns nil when opens cannot be watched now.
func (p *Plugin) watchOpens(ctx context.Context) <-chan vfio.Opened {
	opens, err := vfio.Opens(ctx, p.o.Root)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		p.log.WithError(err).Warn("users of VFs that belong to no pod are noticed late")
	}
	return opens
}

// suspicious tells whether an open or close of a node can be that of somebody who
// is no pod.
func (p *Plugin) suspicious(node string) bool {
	p.mu.Lock()
	table, users := p.table, p.users
	p.mu.Unlock()
	for _, d := range table.ByNode(p.o.Root, node) {
		if _, used := users[d.VF.Address]; used || p.o.Held == nil || !p.o.Held(d.VF.Address) {
			return true
		}
	}
	return false
}

// findUsers looks for users that are no pods, and has the offer changed.
func (p *Plugin) findUsers(ctx context.Context) error {
	p.mu.Lock()
	table := p.table
	p.mu.Unlock()
	var vfs []*qat.VF
	for _, d := range table.Devices() {
		vfs = append(vfs, d.VF)
	}
	users, err := vfio.VisibleUsers(p.o.Root, vfs)
	if err != nil {
		return err
	}
	if p.o.Held != nil {
		maps.DeleteFunc(users, func(a qat.Address, _ vfio.User) bool { return p.o.Held(a) })
	}
	if len(users) > 0 && p.o.Claimed != nil {
		claimed, err := p.o.Claimed(ctx)
		if err != nil {
			return err // they may be pods: nothing is said of them
		}
		maps.DeleteFunc(users, func(a qat.Address, _ vfio.User) bool { return claimed[a] })
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if !maps.Equal(p.users, users) {
		p.users = users
		p.renew()
	}
	return nil
}
