package containers

import (
	"context"
	"fmt"
	"strings"

	version "github.com/containerd/containerd/api/services/version/v1"
	"google.golang.org/protobuf/types/known/emptypb"
)

// Version asks containerd for its version, which is returned without the "v"
// before it: "2.4.2".
func (c *Client) Version(ctx context.Context) (string, error) {
	answer, err := version.NewVersionClient(c.conn).Version(ctx, &emptypb.Empty{})
	if err != nil {
		return "", fmt.Errorf("ask containerd at %s for its version: %w", c.address, c.cause(err))
	}
	return strings.TrimPrefix(answer.GetVersion(), "v"), nil
}
