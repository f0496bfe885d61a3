package nriplugin

import (
	"context"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/ttrpc"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/kata-qat/kata-qat/internal/edits"
	"github.com/kata-qat/kata-qat/internal/qat/qattest"
)

// seen is what of a request the plugin looks at.
func seen(r *api.ValidateContainerAdjustmentRequest) *api.ValidateContainerAdjustmentRequest {
	s := new(api.ValidateContainerAdjustmentRequest)
	if p := r.GetPod(); p != nil {
		s.Pod = &api.PodSandbox{Id: p.Id, Name: p.Name, Uid: p.Uid, Namespace: p.Namespace, Annotations: p.Annotations, RuntimeHandler: p.RuntimeHandler}
	}
	if c := r.GetContainer(); c != nil {
		s.Container = &api.Container{Id: c.Id, PodSandboxId: c.PodSandboxId, Name: c.Name, Env: ours(c.Env), Mounts: destinations(c.Mounts), Rlimits: c.Rlimits}
		if c.Linux != nil {
			s.Container.Linux = &api.LinuxContainer{Devices: c.Linux.Devices}
		}
		if c.User != nil {
			s.Container.User = &api.User{Uid: c.User.Uid, Gid: c.User.Gid}
		}
	}
	if a := r.GetAdjust(); a != nil {
		s.Adjust = &api.ContainerAdjustment{Mounts: destinations(a.Mounts), Rlimits: a.Rlimits}
		if a.Linux != nil {
			s.Adjust.Linux = &api.LinuxContainerAdjustment{Devices: a.Linux.Devices}
		}
	}
	proto.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(mustMarshal(s), s) // fields of a newer version are nobody's
	return s
}

func destinations(ms []*api.Mount) []*api.Mount {
	var out []*api.Mount
	for _, m := range ms {
		if strings.HasSuffix(m.GetDestination(), ".conf") {
			out = append(out, &api.Mount{Destination: m.GetDestination()})
		}
	}
	return out
}

func ours(env []string) []string {
	return slices.DeleteFunc(slices.Clone(env), func(kv string) bool { return !strings.HasPrefix(kv, "PCIDEVICE_") })
}

func mustMarshal(m proto.Message) []byte {
	b, err := proto.Marshal(m)
	if err != nil {
		panic(err)
	}
	return b
}

// everyHandler is a plugin to which each pod is one of ours.
func everyHandler() *Plugin {
	return New(Options{Profile: func(string) (edits.Profile, bool) { return edits.ProfileVFIO, true }})
}

func decoded(t *testing.T, raw []byte) (*api.ValidateContainerAdjustmentRequest, error) {
	t.Helper()
	got := new(api.ValidateContainerAdjustmentRequest)
	_, err := everyHandler().read(raw, &got.Pod, &got.Container, &got.Adjust)
	return got, err
}

func request(p *Plugin, n int) *api.ValidateContainerAdjustmentRequest {
	pod := sandbox(n, "cy=2")
	pod.Labels, pod.Pid = map[string]string{"app": "tls"}, 4711
	ctr := withNodes(p, container(pod, "c1"), 2)
	ctr.Args, ctr.Labels, ctr.Hooks = []string{"/bin/app"}, map[string]string{"a": "b"}, &api.Hooks{Prestart: []*api.Hook{{Path: "/bin/true"}}}
	ctr.Rlimits = []*api.POSIXRlimit{{Type: "RLIMIT_MEMLOCK", Soft: 1, Hard: 1 << 63}}
	ctr.Linux.Devices[0].FileMode, ctr.Linux.Devices[0].Uid, ctr.Linux.Devices[0].Gid = api.FileMode(0o640), api.UInt32(uint32(0)), api.UInt32(uint32(1<<31))
	ctr.Env, ctr.Mounts = append(ctr.Env, "PCIDEVICE_X=1"), append(ctr.Mounts, &api.Mount{Source: "/a", Destination: "/etc/z.conf"})
	ctr.Linux.Namespaces = []*api.LinuxNamespace{{Type: "pid"}}
	a := &api.ContainerAdjustment{}
	a.AddDevice(&api.LinuxDevice{Path: "/dev/vfio/100", Type: "c", Major: 511, Minor: -1, FileMode: api.FileMode(0o660)})
	a.RemoveDevice("/dev/null")
	a.AddMount(&api.Mount{Source: "/run/x", Destination: "/etc/4xxxvf_dev0.conf", Type: "bind", Options: []string{"ro"}})
	a.RemoveMount("/etc/y.conf")
	a.AddEnv("A", "B")
	a.AddRlimit("RLIMIT_MEMLOCK", 2, 1)
	return &api.ValidateContainerAdjustmentRequest{
		Pod: pod, Container: ctr, Adjust: a,
		Owners:  &api.OwningPlugins{Owners: map[string]*api.FieldOwners{"c1": {Simple: map[int32]string{1: "10-kata-qat"}}}},
		Plugins: []*api.PluginInstance{{Name: "kata-qat", Index: "10"}},
	}
}

func TestARequestIsReadAsNRIReadsIt(t *testing.T) {
	req := request(newPlugin(t, qattest.Many(1)), 1)
	got, err := decoded(t, mustMarshal(req))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(seen(req), got, protocmp.Transform()); diff != "" {
		t.Errorf("(-NRI's +ours):\n%s", diff)
	}
	if got.GetContainer().GetLinux().GetDevices()[0].GetGid().GetValue() != 1<<31 || got.GetAdjust().GetMounts()[1].GetDestination() != "-/etc/y.conf" {
		t.Errorf("the request proves too little: %v", got)
	}
}

func FuzzRequest(f *testing.F) {
	p := newPlugin(f, qattest.Many(1))
	f.Add(mustMarshal(request(p, 1)))
	f.Add(mustMarshal(&api.CreateContainerRequest{Pod: sandbox(1, ""), Container: container(sandbox(1, ""), "c")}))
	f.Add([]byte{0x12, 2, 0x5a, 0, 0x12, 4, 0x5a, 2, 0x12, 0}) // a container in two pieces
	f.Fuzz(func(t *testing.T, raw []byte) {
		want := new(api.ValidateContainerAdjustmentRequest)
		got, err := decoded(t, raw)
		if proto.Unmarshal(raw, want) != nil {
			return // what NRI refuses never comes here
		}
		if err != nil {
			t.Fatalf("NRI reads this: %v", err)
		}
		if diff := cmp.Diff(seen(want), got, protocmp.Transform()); diff != "" {
			t.Errorf("(-NRI's +ours):\n%s", diff)
		}
	})
}

// call sends a request through the interceptor as ttrpc does.
func call[T any](t testing.TB, p *Plugin, method string, req proto.Message) (T, bool) {
	t.Helper()
	passedOn := false
	raw := mustMarshal(req)
	resp, err := p.intercept(t.Context(), func(m any) error { return proto.Unmarshal(raw, m.(proto.Message)) },
		&ttrpc.UnaryServerInfo{FullMethod: method}, func(context.Context, func(any) error) (any, error) { passedOn = true; return *new(T), nil })
	if err != nil {
		t.Fatal(err)
	}
	return resp.(T), passedOn
}

func create(t testing.TB, p *Plugin, pod *api.PodSandbox, ctr *api.Container) (*api.CreateContainerResponse, bool) {
	t.Helper()
	encoded, passedOn := call[*emptypb.Empty](t, p, createMethod, &api.CreateContainerRequest{Pod: pod, Container: ctr})
	resp := new(api.CreateContainerResponse)
	if err := proto.Unmarshal(mustMarshal(encoded), resp); err != nil {
		t.Fatal(err)
	}
	return resp, passedOn
}

// What the runtime reads is what the plugin decided, whatever the container has.
func TestAnAnswerIsWrittenWhole(t *testing.T) {
	for name, change := range map[string]func(*api.Container){
		"a user's container": func(*api.Container) {},
		"root's":             func(c *api.Container) { c.User = nil },
		"with a limit": func(c *api.Container) {
			c.Rlimits = []*api.POSIXRlimit{{Type: "RLIMIT_MEMLOCK", Soft: 1, Hard: 1 << 63}}
		},
		"with long names": func(c *api.Container) { c.Linux.Devices[3].Path = "/dev/" + strings.Repeat("long", 200) },
	} {
		t.Run(name, func(t *testing.T) {
			p := newPlugin(t, qattest.Many(1))
			pod := sandbox(1, "")
			ctr := withNodes(p, container(pod, "c1"), 3)
			change(ctr)
			want, _, err := p.CreateContainer(t.Context(), pod, ctr)
			if err != nil {
				t.Fatal(err)
			}
			got, _ := create(t, p, pod, ctr)
			if diff := cmp.Diff(want, got.GetAdjust(), protocmp.Transform()); diff != "" || len(want.GetLinux().GetDevices()) < 3 {
				t.Errorf("%d devices (-decided +written):\n%s", len(want.GetLinux().GetDevices()), diff)
			}
		})
	}
}

func TestRequestsThatAPodWaitsForAreAnswered(t *testing.T) {
	p := newPlugin(t, qattest.Many(1))
	pod := sandbox(1, "cy=2")
	ctr := container(pod, "c1")
	made, passedOn := create(t, p, pod, ctr)
	if passedOn || len(made.GetAdjust().GetLinux().GetDevices()) != 3 {
		t.Fatalf("passed on: %v; adjustment %v, expected two groups and the control node", passedOn, made.GetAdjust())
	}
	for name, tc := range map[string]struct {
		adjust *api.ContainerAdjustment
		reject bool
	}{
		"as it was asked for": {made.GetAdjust(), false},
		"without anything":    {nil, true},
	} {
		verdict, passedOn := call[*api.ValidateContainerAdjustmentResponse](t, p, validateMethod, &api.ValidateContainerAdjustmentRequest{Pod: pod, Container: ctr, Adjust: tc.adjust})
		if passedOn || verdict.GetReject() != tc.reject || (verdict.GetReason() != "") != tc.reject {
			t.Errorf("%s: passed on: %v; verdict %v, expected reject %v", name, passedOn, verdict, tc.reject)
		}
	}
	other := sandbox(2, "cy=2")
	other.RuntimeHandler = "runc"
	if made, _ := create(t, p, other, container(other, "c2")); made.GetAdjust() != nil {
		t.Errorf("a pod of no interest got %v", made)
	}
	if _, passedOn := call[*api.StateChangeEvent](t, p, "/nri.pkg.api.v1alpha1.Plugin/StateChange", &api.StateChangeEvent{}); !passedOn {
		t.Error("an event that is the stub's was not passed on")
	}
}

func BenchmarkRequest(b *testing.B) {
	p := newPlugin(b, qattest.Many(1))
	raw := mustMarshal(request(p, 1))
	b.Run("by hand", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			var r api.ValidateContainerAdjustmentRequest
			if _, err := p.read(raw, &r.Pod, &r.Container, &r.Adjust); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("by NRI", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if err := proto.Unmarshal(raw, new(api.ValidateContainerAdjustmentRequest)); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkAnswer2VFs(b *testing.B) {
	p := newPlugin(b, qattest.Many(1))
	pod := sandbox(1, "cy=2")
	raw := mustMarshal(&api.CreateContainerRequest{Pod: pod, Container: container(pod, "c1")})
	info := &ttrpc.UnaryServerInfo{FullMethod: createMethod}
	unmarshal := func(m any) error { return proto.Unmarshal(raw, m.(proto.Message)) }
	b.ReportAllocs()
	for b.Loop() {
		resp, err := p.intercept(b.Context(), unmarshal, info, nil)
		if err != nil {
			b.Fatal(err)
		}
		mustMarshal(resp.(proto.Message))
	}
}
