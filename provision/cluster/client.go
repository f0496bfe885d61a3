package cluster

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/kata-qat/kata-qat/internal/version"
)

// Access says how the API server is reached.
type Access struct {
	// Kubeconfig is a file; "" for what kubectl would use, and in a pod its
	// service account.
	Kubeconfig string
	// Context is one of the kubeconfig's; "" for its current one.
	Context string
}

// requestTimeout bounds one request: a server that does not answer is an error
// that can be seen, not a command that hangs.
const requestTimeout = 15 * time.Second

// Client writes to one cluster.
type Client struct {
	api    dynamic.Interface
	server string
	// Force takes over fields that another manager owns.
	Force bool
}

// Connect finds the API server's address and credentials. It sends nothing.
func Connect(a Access) (*Client, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = a.Kubeconfig
	cfg, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &clientcmd.ConfigOverrides{
		CurrentContext: a.Context, ClusterInfo: clientcmdapi.Cluster{},
	}).ClientConfig()
	if clientcmd.IsEmptyConfig(err) {
		return nil, errors.New("find the cluster: there is no kubeconfig, and this is no pod: name one with --kubeconfig")
	}
	if err != nil {
		return nil, fmt.Errorf("find the cluster: %w", err)
	}
	return newClient(cfg)
}

func newClient(cfg *rest.Config) (*Client, error) {
	cfg.Timeout = requestTimeout
	cfg.QPS = -1 // the server has its own flow control, and the commands are short
	cfg.UserAgent = "kata-qat/" + version.Version
	api, err := dynamic.NewForConfig(cfg)
	if err != nil {
		return nil, fmt.Errorf("find the cluster: %w", err)
	}
	return &Client{api: api, server: cfg.Host}, nil
}

func (c *Client) of(o Object) dynamic.ResourceInterface {
	r := c.api.Resource(o.Resource)
	if ns := o.GetNamespace(); ns != "" {
		return r.Namespace(ns)
	}
	return r
}

// live returns the object as it is, and nil if it is not there.
func (c *Client) live(ctx context.Context, o Object) (*Object, error) {
	u, err := c.of(o).Get(ctx, o.GetName(), metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, c.explain("read", o, err)
	}
	return &Object{Resource: o.Resource, Unstructured: u}, nil
}

// apply is server-side apply; a dry run says what would come of it.
func (c *Client) apply(ctx context.Context, o Object, dryRun bool) (*Object, error) {
	options := metav1.ApplyOptions{FieldManager: Manager, Force: c.Force}
	if dryRun {
		options.DryRun = []string{metav1.DryRunAll}
	}
	u, err := c.of(o).Apply(ctx, o.GetName(), o.Unstructured, options)
	if err != nil {
		return nil, c.explain("apply", o, err)
	}
	return &Object{Resource: o.Resource, Unstructured: u}, nil
}

// explain makes one line of what the API server, or the way to it, says, with
// what to do.
func (c *Client) explain(doing string, o Object, err error) error {
	var status apierrors.APIStatus
	var network *url.Error
	switch {
	case errors.Is(err, context.Canceled):
		return err
	case errors.As(err, &network):
		return fmt.Errorf("%s %s: the API server %s cannot be reached: %w: is it the right one (--kubeconfig, --context)?", doing, o, c.server, &unreached{network.Err})
	case !errors.As(err, &status):
		return fmt.Errorf("%s %s: %w", doing, o, err)
	case apierrors.IsUnauthorized(err):
		return fmt.Errorf("%s %s: the API server %s does not accept these credentials: expected those of an administrator, or of the service account of docs/kubernetes.md", doing, o, c.server)
	case apierrors.IsForbidden(err):
		return fmt.Errorf("%s %s: these credentials lack the right: %w: docs/kubernetes.md lists the rights that are needed", doing, o, err)
	case apierrors.IsConflict(err):
		if others := conflicts(status.Status()); others != "" {
			return fmt.Errorf("%s %s: %s: change it there, or take it over with --force", doing, o, others)
		}
		return fmt.Errorf("%s %s: it has changed in the meantime: run this again: %w", doing, o, err)
	case apierrors.IsInvalid(err) && strings.Contains(err.Error(), "immutable"):
		return fmt.Errorf("%s %s: %w: take it away first (--undo)", doing, o, err)
	}
	return fmt.Errorf("%s %s: %w", doing, o, err)
}

// conflicts says which fields belong to whom, "" if the conflict is another one.
func conflicts(s metav1.Status) string {
	if s.Details == nil {
		return ""
	}
	var all []string
	for _, cause := range s.Details.Causes {
		if cause.Type == metav1.CauseTypeFieldManagerConflict {
			manager := strings.TrimPrefix(cause.Message, "conflict with ")
			manager, _, _ = strings.Cut(manager, " using ")
			all = append(all, fmt.Sprintf("%s belongs to %s", cause.Field, manager))
		}
	}
	return strings.Join(all, ", ")
}

// unreachable tells whether a request came to no server at all.
func unreachable(err error) bool {
	var network *unreached
	return errors.As(err, &network) || errors.Is(err, context.Canceled)
}

// unreached is why a request came to no server, without its URL.
type unreached struct{ cause error }

func (u *unreached) Error() string { return u.cause.Error() }
func (u *unreached) Unwrap() error { return u.cause }
