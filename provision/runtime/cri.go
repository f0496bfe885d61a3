package runtime

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// poll is how often containerd is asked while it starts.
const poll = 100 * time.Millisecond

// criClient asks containerd over CRI. It connects anew for each question: between
// two of them there may be another containerd.
type criClient struct {
	socket string
	err    error
}

func (m *machine) cri(socket string) criClient {
	p, err := m.path(socket)
	return criClient{socket: p, err: err}
}

func (c criClient) ask(ctx context.Context, f func(context.Context, cri.RuntimeServiceClient) error) error {
	if c.err != nil {
		return c.err
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	conn, err := grpc.NewClient("unix://"+c.socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	return errors.Join(f(ctx, cri.NewRuntimeServiceClient(conn)), conn.Close())
}

// version is what containerd says that it is.
func (c criClient) version(ctx context.Context) (version string, err error) {
	err = c.ask(ctx, func(ctx context.Context, r cri.RuntimeServiceClient) error {
		v, err := r.Version(ctx, &cri.VersionRequest{})
		version = v.GetRuntimeVersion()
		return err
	})
	return version, err
}

// healthy returns an error that says what is wrong unless containerd serves pods
// of all these handlers.
func (c criClient) healthy(ctx context.Context, handlers []handler) error {
	return c.ask(ctx, func(ctx context.Context, r cri.RuntimeServiceClient) error {
		status, err := r.Status(ctx, &cri.StatusRequest{Verbose: true})
		if err != nil {
			return err
		}
		for _, condition := range status.GetStatus().GetConditions() {
			if condition.Type == cri.RuntimeReady && !condition.Status {
				return fmt.Errorf("the runtime is not ready: %s %s", condition.Reason, condition.Message)
			}
		}
		served, known := served(status)
		for _, h := range handlers {
			if known && !slices.Contains(served, h.name) {
				return fmt.Errorf("it does not serve the runtime handler %s, only %s", h.name, strings.Join(served, ", "))
			}
		}
		return nil
	})
}

// served are the runtime handlers that containerd knows: 2.0 and later say so, 1.7
// has them in what it says of its configuration.
func served(status *cri.StatusResponse) (names []string, known bool) {
	if all := status.GetRuntimeHandlers(); len(all) > 0 {
		for _, h := range all {
			names = append(names, h.GetName())
		}
		return names, true
	}
	var info struct {
		Containerd struct {
			Runtimes map[string]json.RawMessage `json:"runtimes"`
		} `json:"containerd"`
	}
	if err := json.Unmarshal([]byte(status.GetInfo()["config"]), &info); err != nil {
		return nil, false
	}
	return slices.Sorted(maps.Keys(info.Containerd.Runtimes)), len(info.Containerd.Runtimes) > 0
}

// wait returns when containerd is healthy, or with what was wrong last.
func (c criClient) wait(ctx context.Context, handlers []handler, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	tick := time.NewTicker(poll)
	defer tick.Stop()
	for {
		err := c.healthy(ctx, handlers)
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("containerd was not healthy within %v: %w", timeout, err)
		}
	}
}
