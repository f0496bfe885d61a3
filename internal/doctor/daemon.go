package doctor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	podresources "k8s.io/kubelet/pkg/apis/podresources/v1"

	"github.com/kata-qat/kata-qat/internal/api"
	nodev1 "github.com/kata-qat/kata-qat/internal/api/v1"
	"github.com/kata-qat/kata-qat/internal/edits"
	"github.com/kata-qat/kata-qat/internal/qat"
	"github.com/kata-qat/kata-qat/internal/version"
)

// checkStandalone finds a kubelet beside a daemon that gives devices by
// annotation: two would hand out the same VFs, and the daemon does not start.
func checkStandalone(_ context.Context, p *patient) finding {
	socket := p.Config.Kubelet.PodResources
	if !p.Config.Standalone {
		return ok(Evidence{Path: p.ConfigFile, Value: "standalone = false"})
	}
	if socket == "" {
		return ok(Evidence{Path: p.ConfigFile, Value: "standalone = true, and no kubelet is configured"})
	}
	if _, err := p.stat(socket); errors.Is(err, fs.ErrNotExist) {
		return ok(Evidence{Path: socket, Value: "not there, as standalone = true needs it"})
	}
	return fail("standalone = true, beside a kubelet, whose scheduler hands devices out", "set standalone = false in "+p.ConfigFile+", then "+restartDaemon,
		Evidence{Path: socket, Value: "there", Want: "not there"})
}

// checkRunDir sees that nobody but root can put a socket or a configuration file
// where the shim and the runtime look for the daemon's.
func checkRunDir(_ context.Context, p *patient) finding {
	dir := p.Config.RunDir
	info, err := p.stat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fail("the daemon has not been started", "systemctl enable --now kata-qat", Evidence{Path: dir, Value: "not there", Want: "a directory of root's"})
	case err != nil:
		return unknown(dir, err)
	}
	uid := info.Sys().(*syscall.Stat_t).Uid
	e := Evidence{Path: dir, Value: fmt.Sprintf("mode %04o, uid %d", info.Mode().Perm(), uid)}
	if !info.IsDir() || uid != 0 || info.Mode().Perm()&0o022 != 0 {
		e.Want = "a directory that only root may write to"
		return fail("others could put a socket there that the shim trusts", fmt.Sprintf("chown root:root %s && chmod 0755 %[1]s", dir), e)
	}
	return ok(e)
}

func checkDaemon(ctx context.Context, p *patient) finding {
	socket := filepath.Join(p.Config.RunDir, api.SocketName)
	if p.failed("run-dir") {
		return skip("see run-dir")
	}
	file, err := p.path(socket)
	if err != nil {
		return unknown(socket, err)
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	c, err := api.Dial(ctx, file)
	if err == nil {
		defer c.Close()
		if p.health, err = c.Health(ctx, &nodev1.HealthRequest{Client: api.Self()}); err != nil {
			p.health, err = nil, c.Explain("ask for its health", err, patience)
		}
	}
	if err != nil {
		return fail("no pod with devices can start", restartDaemon+"; journalctl -u kata-qat -n 20", Evidence{Path: socket, Value: err.Error(), Want: "an answer"})
	}
	return ok(Evidence{Path: socket, Value: fmt.Sprintf("version %s, revision %d", p.health.GetDaemon().GetVersion(), p.health.GetDaemon().GetRevision())})
}

func checkDaemonVersion(_ context.Context, p *patient) finding {
	if p.health == nil {
		return skip("see daemon")
	}
	d := p.health.GetDaemon()
	e := Evidence{Path: "Health", Value: fmt.Sprintf("version %s, revision %d", d.GetVersion(), d.GetRevision()), Want: fmt.Sprintf("version %s, revision %d", version.Version, api.Revision)}
	switch {
	case api.CheckDaemon(d) != nil:
		return fail("the daemon is too old for this program and for the shim", restartDaemon+"  # after installing the same version of both", e)
	case d.GetVersion() != version.Version:
		return warn("the daemon is of another version than this program", restartDaemon, e)
	}
	e.Want = ""
	return ok(e)
}

// checkKubelet asks kubelet for what it can allocate, which costs it least.
func checkKubelet(ctx context.Context, p *patient) finding {
	socket := p.Config.Kubelet.PodResources
	if p.Config.Standalone || socket == "" {
		return skip("kubelet is not asked who holds what")
	}
	file, err := p.path(socket)
	if err != nil {
		return unknown(socket, err)
	}
	if _, err := p.stat(socket); err != nil {
		return fail("pods' devices cannot be learnt from kubelet", "systemctl restart kubelet  # without a kubelet: set standalone = true in "+p.ConfigFile,
			Evidence{Path: socket, Value: err.Error(), Want: "kubelet's PodResources socket"})
	}
	p.allocatable, err = askKubelet(ctx, file)
	if err != nil {
		return fail("kubelet does not answer", "systemctl restart kubelet; journalctl -u kubelet -n 20", Evidence{Path: socket, Value: err.Error(), Want: "an answer"})
	}
	return ok(Evidence{Path: socket, Value: "answers"})
}

// askKubelet returns what kubelet can allocate; nil from one that does not tell.
func askKubelet(ctx context.Context, socket string) (*podresources.AllocatableResourcesResponse, error) {
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDisableServiceConfig())
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	answer, err := podresources.NewPodResourcesListerClient(conn).GetAllocatableResources(ctx, &podresources.AllocatableResourcesRequest{})
	switch status.Code(err) {
	case codes.OK:
		return answer, nil
	case codes.Unimplemented: // it was off before Kubernetes 1.23
		return nil, nil
	}
	return nil, errors.New(status.Convert(err).Message())
}

// checkOffered compares the VFs that are ready with those that kubelet can give
// to pods. Of VFs that share a group one stands for all.
func checkOffered(_ context.Context, p *patient) finding {
	if p.states["kubelet"] != OK {
		return skip("see kubelet")
	}
	if p.allocatable == nil {
		return skip("kubelet does not tell what it can allocate")
	}
	offered, groups := make(map[string]bool), make(map[*qat.Group]bool)
	for _, d := range p.allocatable.GetDevices() {
		if strings.HasPrefix(d.GetResourceName(), p.Config.Kubelet.Domain+"/") {
			for _, id := range d.GetDeviceIds() {
				offered[id] = true
			}
		}
	}
	for _, d := range p.table.Devices() {
		if offered[string(d.VF.Address)] {
			groups[d.VF.Group] = true
		}
	}
	ready := 0
	var lacking []Evidence
	for _, d := range p.table.Devices() {
		if d.Err != nil {
			continue
		}
		ready++
		if !groups[d.VF.Group] {
			lacking = append(lacking, Evidence{Path: p.Config.Kubelet.PodResources, Value: "does not have " + string(d.VF.Address), Want: p.Config.Kubelet.Domain + "/" + d.VF.Services.ResourceName()})
		}
	}
	seen := Evidence{Path: p.Config.Kubelet.PodResources, Value: fmt.Sprintf("%d devices of %s", len(offered), p.Config.Kubelet.Domain), Want: fmt.Sprint(ready)}
	switch {
	case len(lacking) == 0:
		seen.Want = ""
		return ok(seen)
	case len(offered) > 0:
		return warn("pods cannot get some VFs that are ready", "journalctl -u kata-qat -n 20  # it says which are in use on the host; or look at Intel's plugin", lacking...)
	case p.Config.DevicePlugin.Enable:
		return warn("pods that ask for VFs stay Pending", restartDaemon+"; journalctl -u kata-qat -n 20", seen)
	}
	// A DRA driver's devices are not in this list.
	const registry = "/var/lib/kubelet/plugins_registry"
	sockets, _ := p.list(registry)
	for _, s := range sockets {
		if strings.HasPrefix(s, p.Config.Kubelet.Domain) && strings.HasSuffix(s, "-reg.sock") {
			return ok(Evidence{Path: registry, Value: "the DRA driver's " + s})
		}
	}
	return warn("no device plugin offers the VFs: pods that ask for them stay Pending", "set enable = true in [device_plugin] of "+p.ConfigFile+", then "+restartDaemon, seen)
}

// checkCDI compares the files with the VFs that can be handed out. A VF that is
// there but cannot be is another check's matter.
func checkCDI(_ context.Context, p *patient) finding {
	dir := p.Config.CDI.Dir
	switch {
	case dir == "":
		return skip("cdi.dir is empty: no files are written")
	case len(p.table.Devices()) == 0:
		return skip("there are no VFs")
	case p.states["daemon"] != OK:
		return skip("the daemon writes them: see daemon")
	}
	var vfs []edits.VF
	exists := make(map[string]bool)
	for _, d := range p.table.Devices() {
		exists[string(d.VF.Address)] = true
		if d.Err == nil {
			vfs = append(vfs, edits.VF{Address: d.VF.Address, Resource: p.Config.Kubelet.Domain + "/" + d.VF.Services.ResourceName(), Group: d.Node})
		}
	}
	var seen, wrong []Evidence
	for _, s := range edits.CDISpecs(vfs, p.table.Control) {
		file := filepath.Join(dir, strings.ReplaceAll(s.Kind, "/", "-")+".json")
		e, good := p.compareCDI(file, s.Kind, names(s.Devices, func(i int) string { return s.Devices[i].Name }), exists)
		if good {
			seen = append(seen, e)
		} else {
			wrong = append(wrong, e)
		}
	}
	if len(wrong) > 0 {
		return fail("a runtime that resolves CDI names does not find these VFs", "systemctl reload kata-qat", wrong...)
	}
	return ok(seen...)
}

func names[T any](of []T, name func(int) string) []string {
	all := make([]string, len(of))
	for i := range of {
		all[i] = name(i)
	}
	return all
}

// compareCDI compares one file with the devices that it should have.
func (p *patient) compareCDI(file, kind string, want []string, exists map[string]bool) (Evidence, bool) {
	e := Evidence{Path: file, Want: fmt.Sprintf("%d devices of kind %s", len(want), kind)}
	b, err := p.read(file)
	if err != nil {
		e.Value = err.Error()
		return e, false
	}
	var spec struct {
		Kind    string `json:"kind"`
		Devices []struct {
			Name string `json:"name"`
		} `json:"devices"`
	}
	if err := json.Unmarshal(b, &spec); err != nil {
		e.Value = err.Error()
		return e, false
	}
	has := names(spec.Devices, func(i int) string { return spec.Devices[i].Name })
	for _, name := range want {
		if !slices.Contains(has, name) || spec.Kind != kind {
			e.Value = fmt.Sprintf("%d devices of kind %s, without %s", len(has), spec.Kind, name)
			return e, false
		}
	}
	for _, name := range has {
		if !exists[name] {
			e.Value = name + ", which is no VF of this machine"
			return e, false
		}
	}
	e.Value, e.Want = fmt.Sprintf("%d devices", len(has)), ""
	return e, true
}
