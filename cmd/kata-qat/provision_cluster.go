//go:build !entry

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/urfave/cli/v2"
	"sigs.k8s.io/yaml"

	"github.com/kata-qat/kata-qat/internal/config"
	"github.com/kata-qat/kata-qat/internal/doctor"
	"github.com/kata-qat/kata-qat/internal/output"
	"github.com/kata-qat/kata-qat/internal/qat"
	"github.com/kata-qat/kata-qat/provision/cluster"
	"github.com/kata-qat/kata-qat/provision/plan"
	runtimesetup "github.com/kata-qat/kata-qat/provision/runtime"
)

func provisionClusterCommand() *cli.Command {
	return &cli.Command{
		Name:  "cluster",
		Usage: "what the cluster must know: RuntimeClasses, the node daemon's rights, labels on nodes",
		Description: `Applies to the API server a RuntimeClass for each runtime handler, and the node
daemon's namespace, service account and rights. The Helm chart has all that in it;
this is for clusters without Helm. The server itself keeps which fields are ours
(server-side apply, field manager "` + cluster.Manager + `"): a field that somebody else owns is
an error that names the owner, and --undo takes away only what is ours.

With --node-labels it labels one node instead: ` + cluster.NodeLabel + `, the families of its
devices and their services, if doctor finds nothing that fails there, and otherwise
takes these labels off. With --every it goes on doing so.

Credentials are those that kubectl would use; in a pod, those of its service account.

Examples:
   kata-qat provision cluster --print
   kata-qat provision cluster --dry-run
   kata-qat provision cluster --handler kata-qat --handler kata-qat-gk
   kata-qat provision cluster --node-labels --every 1m
   kata-qat provision cluster --undo            # and the labels of all nodes

Exit codes: 0 all is as it should be; 1 it failed; 2 with --dry-run: something
would be changed.`,
		Flags: []cli.Flag{
			dryRunFlag(),
			&cli.BoolFlag{Name: "print", Usage: "write the objects as YAML to stdout, and ask no server"},
			&cli.BoolFlag{Name: "undo", Usage: "take away what is ours"},
			&cli.StringFlag{Name: "kubeconfig", Usage: "kubeconfig `FILE` (default: what kubectl would use)"},
			&cli.StringFlag{Name: "context", Usage: "`CONTEXT` of the kubeconfig"},
			&cli.BoolFlag{Name: "force", Usage: "take over fields that somebody else owns"},
			&cli.StringFlag{Name: "namespace", Usage: "`NAMESPACE` of the node daemon", Value: cluster.DefaultNamespace},
			&cli.StringSliceFlag{Name: "handler", Usage: "runtime `HANDLER` to make a RuntimeClass for (again for more)", DefaultText: runtimesetup.DefaultHandler},
			&cli.StringFlag{Name: "overhead-memory", Usage: "`MEMORY` that a VM costs beside its containers", Value: cluster.DefaultMemory},
			&cli.StringFlag{Name: "overhead-cpu", Usage: "`CPU` time likewise", Value: cluster.DefaultCPU},
			&cli.StringSliceFlag{Name: "node-selector", Usage: "`LABEL=VALUE` of the nodes that can run such pods (again for more)", DefaultText: cluster.NodeLabel + "=true"},
			&cli.BoolFlag{Name: "node-labels", Usage: "label this machine's node, and nothing else"},
			&cli.StringFlag{Name: "node", Usage: "`NAME` of this machine's node (default: its host name)", EnvVars: []string{"NODE_NAME"}},
			&cli.BoolFlag{Name: "all-nodes", Usage: "with --node-labels --undo: take the labels off all nodes"},
			&cli.StringFlag{Name: "wait-for", Usage: "wait before until this `DAEMONSET` of the namespace is ready on all its nodes"},
			&cli.DurationFlag{Name: "every", Usage: "with --node-labels: do so again after each such `TIME`, until it is told to stop"},
			outputFlag(),
		},
		Action: provisionCluster,
	}
}

func provisionCluster(c *cli.Context) error {
	run, err := parseRun(c, "print")
	if err != nil {
		return err
	}
	if err := clusterUsage(c); err != nil {
		return usage(err)
	}
	objects, err := clusterObjects(c, run.config)
	if err != nil {
		return usage(err)
	}
	if c.Bool("print") {
		return writeObjects(c.App.Writer, run.format, objects)
	}
	client, err := cluster.Connect(cluster.Access{Kubeconfig: c.String("kubeconfig"), Context: c.String("context")})
	if err != nil {
		return err
	}
	client.Force = c.Bool("force")
	if c.IsSet("wait-for") {
		if err := client.WaitReady(c.Context, c.String("namespace"), c.String("wait-for")); err != nil {
			return err
		}
	}
	if c.IsSet("every") {
		return keepLabelled(c, client)
	}
	out, err := clusterRun(c, run, client, objects)
	if run.format == output.Table && err == nil && run.undo && !out.Changed {
		fmt.Fprintln(c.App.Writer, "Nothing to undo: nothing there is ours.")
		return nil
	}
	if werr := run.write(c, out, err); werr != nil {
		return errors.Join(err, werr)
	}
	return provisionExit(run, out, err)
}

// clusterRun does what is to be done once.
func clusterRun(c *cli.Context, run *provisionRun, client *cluster.Client, objects []cluster.Object) (*plan.Outcome, error) {
	switch {
	case c.Bool("node-labels") && c.Bool("all-nodes"):
		return client.UnlabelNodes(c.Context)
	case c.Bool("node-labels"):
		return labelNode(c.Context, c, client)
	case run.undo:
		return undoCluster(c.Context, client, objects)
	case run.dryRun:
		return client.Plan(c.Context, objects)
	}
	return client.Apply(c.Context, objects)
}

// clusterUsage refuses flags that do not go together.
func clusterUsage(c *cli.Context) error {
	labels := c.Bool("node-labels")
	switch {
	case labels && c.Bool("print"):
		return errors.New("--print is for objects, not for --node-labels: see --dry-run")
	case c.Bool("all-nodes") && (!labels || !c.Bool("undo") || c.IsSet("every")):
		return errors.New("--all-nodes is for --node-labels --undo: only the node itself knows what it is to be labelled with")
	case c.IsSet("every") && (!labels || c.Bool("dry-run")):
		return errors.New("--every is for --node-labels, and not for a dry run")
	case c.IsSet("every") && c.Duration("every") < time.Second:
		return fmt.Errorf("--every %v: expected at least 1s", c.Duration("every"))
	}
	return nil
}

func clusterObjects(c *cli.Context, cfg *config.Config) ([]cluster.Object, error) {
	o := cluster.Options{
		Namespace: c.String("namespace"), Handlers: c.StringSlice("handler"),
		Memory: c.String("overhead-memory"), CPU: c.String("overhead-cpu"),
		NodeSelector: map[string]string{cluster.NodeLabel: "true"},
	}
	if len(o.Handlers) == 0 {
		o.Handlers = []string{runtimesetup.DefaultHandler}
	}
	for _, h := range o.Handlers {
		if _, ok := cfg.ProfileOf(h); !ok {
			return nil, fmt.Errorf("runtime handler %q is none of handlers (%q) in %s: the daemon would give its pods no device: add it there", h, cfg.Handlers, config.Path)
		}
	}
	if c.IsSet("node-selector") {
		var err error
		if o.NodeSelector, err = cluster.ParseSelector(c.StringSlice("node-selector")); err != nil {
			return nil, err
		}
	}
	return cluster.Objects(o)
}

// writeObjects writes objects as kubectl takes them.
func writeObjects(w io.Writer, format output.Format, objects []cluster.Object) error {
	var items []any
	for _, o := range objects {
		items = append(items, o.Object)
	}
	if format == output.JSON {
		return output.Data(w, format, map[string]any{"apiVersion": "v1", "kind": "List", "items": items})
	}
	for _, item := range items {
		b, err := yaml.Marshal(item)
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintf(w, "---\n%s", b); err != nil {
			return err
		}
	}
	return nil
}

func undoCluster(ctx context.Context, client *cluster.Client, objects []cluster.Object) (*plan.Outcome, error) {
	out, err := client.UnlabelNodes(ctx)
	if err != nil {
		return out, err
	}
	rest, err := client.Undo(ctx, objects)
	for _, r := range rest.Steps {
		out.Add(r)
	}
	return out, err
}

// labelNode labels this machine's node once.
func labelNode(ctx context.Context, c *cli.Context, client *cluster.Client) (*plan.Outcome, error) {
	node, err := nodeName(c)
	if err != nil {
		return &plan.Outcome{Steps: []plan.Result{}}, err
	}
	var labels map[string]string
	var reason string
	if !c.Bool("undo") {
		if labels, reason, err = nodeLabels(c); err != nil {
			return &plan.Outcome{Steps: []plan.Result{}}, err
		}
	}
	label := client.LabelNode
	if c.Bool("dry-run") {
		label = client.PlanNode
	}
	out, err := label(ctx, node, labels)
	if reason != "" && len(out.Steps) > 0 {
		out.Steps[0].Notes = append(out.Steps[0].Notes, reason)
	}
	return out, err
}

// nodeLabels are the labels that the node is to have now; when it is to have
// none, the reason.
func nodeLabels(c *cli.Context) (labels map[string]string, reason string, _ error) {
	if reason := unfit(examine(c)); reason != "" {
		return nil, reason, nil
	}
	inv, err := qat.Discover(c.String("host-root"))
	if err != nil {
		return nil, "", err
	}
	return cluster.Labels(inv), "", nil
}

// unfit says why pods had better not come to a node, "" if they may. What could
// merely be better is no reason.
func unfit(r *doctor.Report) string {
	var failing []string
	for _, c := range r.Checks {
		if c.State == doctor.Fail {
			failing = append(failing, c.Check)
		}
	}
	if len(failing) == 0 {
		return ""
	}
	return "no label while doctor finds fault with " + strings.Join(failing, ", ") + ": see kata-qat doctor"
}

func nodeName(c *cli.Context) (string, error) {
	if name := c.String("node"); name != "" {
		return name, nil
	}
	// As kubelet does.
	name, err := os.Hostname()
	if err != nil {
		return "", fmt.Errorf("find this machine's node: %w: name it with --node", err)
	}
	return strings.ToLower(strings.TrimSpace(name)), nil
}

// keepLabelled labels the node again and again. What cannot be done now is tried
// again the next time: the API server may be away longer than this process.
func keepLabelled(c *cli.Context, client *cluster.Client) error {
	ctx := c.Context
	tick := time.NewTicker(c.Duration("every"))
	defer tick.Stop()
	said := ""
	for {
		out, err := labelNode(ctx, c, client)
		state := "labelled"
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			state = oneLine(err)
		case len(out.Steps) > 0 && len(out.Steps[0].Notes) > 0:
			state = strings.Join(out.Steps[0].Notes, "; ")
		}
		if state != said || err == nil && out.Changed {
			logrus.WithField("changed", out.Changed).Info(state)
			said = state
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}
