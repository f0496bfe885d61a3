package kubeevents

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/kata-qat/kata-qat/internal/version"
)

// api writes events over plain HTTP. client-go's clientset would register
// every type of Kubernetes at the start of the program, for two requests.
type api struct {
	base   *url.URL
	client *http.Client
}

func newAPI(c *rest.Config) (*api, error) {
	c = rest.CopyConfig(c)
	c.UserAgent = "kata-qat/" + version.Version
	client, err := rest.HTTPClientFor(c)
	if err != nil {
		return nil, err
	}
	base, _, err := rest.DefaultServerUrlFor(c)
	if err != nil {
		return nil, err
	}
	return &api{base, client}, nil
}

func (a *api) path(namespace string, name ...string) string {
	return a.base.JoinPath(append([]string{"apis", "events.k8s.io", "v1", "namespaces", url.PathEscape(namespace), "events"}, name...)...).String()
}

func (a *api) create(ctx context.Context, e *event) error {
	_, err := a.send(ctx, http.MethodPost, a.path(e.Metadata.Namespace), "application/json", e)
	return err
}

// patch has an event count on; gone tells that there is none of that name.
func (a *api) patch(ctx context.Context, namespace, name string, s seriesOf) (gone bool, err error) {
	code, err := a.send(ctx, http.MethodPatch, a.path(namespace, url.PathEscape(name)), "application/merge-patch+json", map[string]any{"series": s})
	return code == http.StatusNotFound, err
}

func (a *api) send(ctx context.Context, method, target, contentType string, body any) (code int, err error) {
	b, err := json.Marshal(body)
	if err != nil {
		return 0, err
	}
	request, err := http.NewRequestWithContext(ctx, method, target, bytes.NewReader(b))
	if err != nil {
		return 0, err
	}
	request.Header.Set("Content-Type", contentType)
	request.Header.Set("Accept", "application/json")
	answer, err := a.client.Do(request)
	if err != nil {
		return 0, err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(io.LimitReader(answer.Body, 64<<10)) // to the end: the connection is used again
	if err != nil {
		return answer.StatusCode, err
	}
	if answer.StatusCode >= 300 {
		var status metav1.Status
		if json.Unmarshal(text, &status) != nil || status.Message == "" {
			status.Message = answer.Status
		}
		return answer.StatusCode, fmt.Errorf("the API server answered %d: %s", answer.StatusCode, status.Message)
	}
	return answer.StatusCode, nil
}
