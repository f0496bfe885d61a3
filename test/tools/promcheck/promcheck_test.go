// Package promcheck checks the dashboard and the alert rules of deploy/ with the
// libraries of Prometheus and Grafana, in a module of its own: the product does
// not depend on either. What is exported it takes from the file that
// internal/metrics compares itself with.
package promcheck

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/grafana/grafana-foundation-sdk/go/cog/plugins"
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/promql/promqltest"
)

const root = "../../../"

var promQL = parser.NewParser(parser.Options{})

// metric is what is exported under a name: the names of its labels.
type metric map[string]bool

// exported are the daemon's metrics, and what Prometheus makes itself.
func exported(t *testing.T) map[string]metric {
	t.Helper()
	f, err := os.Open(filepath.Join(root, "internal/metrics/testdata/metrics.txt"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	p := expfmt.NewTextParser(model.UTF8Validation)
	families, err := p.TextToMetricFamilies(f)
	if err != nil {
		t.Fatal(err)
	}
	all := make(map[string]metric)
	add := func(name string, labels ...string) {
		m := metric{"instance": true, "job": true}
		for _, l := range labels {
			m[l] = true
		}
		all[name] = m
	}
	for name, family := range families {
		var names []string
		for _, m := range family.Metric {
			for _, l := range m.Label {
				names = append(names, l.GetName())
			}
		}
		if strings.HasSuffix(family.GetType().String(), "HISTOGRAM") {
			add(name+"_bucket", append(names, "le")...)
			add(name+"_count", names...)
			add(name+"_sum", names...)
			continue
		}
		add(name, names...)
	}
	for _, name := range []string{"up", "kata_qat_build_info", "process_resident_memory_bytes", "process_cpu_seconds_total"} {
		add(name)
	}
	return all
}

// check refuses a query that does not parse, or that is of something that is not
// exported.
func check(query string, known map[string]metric) error {
	expr, err := promQL.ParseExpr(query)
	if err != nil {
		return err
	}
	var errs error
	selectors := 0
	parser.Inspect(expr, func(n parser.Node, path []parser.Node) error {
		switch n := n.(type) {
		case *parser.VectorSelector:
			selectors++
			m, ok := known[n.Name]
			if !ok {
				errs = errors.Join(errs, fmt.Errorf("%s is not exported", n.Name))
				return nil
			}
			for _, l := range n.LabelMatchers {
				if l.Name != model.MetricNameLabel && !m[l.Name] {
					errs = errors.Join(errs, fmt.Errorf("%s has no label %s", n.Name, l.Name))
				}
			}
			// What is grouped by must be there to group by.
			for _, p := range path {
				if a, ok := p.(*parser.AggregateExpr); ok && !a.Without {
					for _, l := range a.Grouping {
						if !m[l] {
							errs = errors.Join(errs, fmt.Errorf("%s has no label %s to group by", n.Name, l))
						}
					}
				}
			}
		}
		return nil
	})
	if selectors == 0 {
		errs = errors.Join(errs, errors.New("it is of no metric"))
	}
	return errs
}

func TestTheCheckFindsWhatIsNotThere(t *testing.T) {
	known := exported(t)
	for query, want := range map[string]string{
		"kata_qat_vf":                           "is not exported",
		`kata_qat_vfs{nodename="a"}`:            "no label nodename",
		"sum by (pod) (kata_qat_vfs)":           "no label pod to group by",
		"sum(":                                  "parse error",
		"1 + 1":                                 "of no metric",
		`sum by (pf) (kata_qat_vfs{pf="a"})`:    "",
		"rate(kata_qat_refusals_total[5m]) > 0": "",
	} {
		err := check(query, known)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, expected %q", query, err, want)
		}
	}
}

// --- the dashboard

// board is of the schema that every Grafana imports; version 2 needs Grafana 12.
//
//lint:ignore SA1019 for that reason
type board = dashboard.Dashboard

func readDashboard(t *testing.T) (raw []byte, d board) {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(root, "deploy/grafana/kata-qat.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(raw, &d); err != nil {
		t.Fatal(err)
	}
	return raw, d
}

func TestTheDashboardIsOfGrafanasSchema(t *testing.T) {
	raw, d := readDashboard(t)
	plugins.RegisterDefaultPlugins() // so that panels and queries are read by the schema of their kind
	var strict board
	// The library returns an empty list of errors as an error.
	if err := strict.UnmarshalJSONStrict(raw); err != nil && err.Error() != "" {
		t.Errorf("%v", err)
	}
	if err := d.Validate(); err != nil {
		t.Errorf("%v", err)
	}
	if d.Uid == nil || *d.Uid == "" || d.Title == nil || *d.Title == "" {
		t.Error("the dashboard has no uid or no title")
	}
}

// variables of Grafana, and values that it would put there.
var variables = strings.NewReplacer("$__rate_interval", "5m", "$instance", ".*")

var variable = regexp.MustCompile(`\$\w+`)

func TestEveryPanelShowsWhatIsExported(t *testing.T) {
	_, d := readDashboard(t)
	known := exported(t)
	type box struct{ x, y, w, h uint32 }
	boxes := make(map[string]box)
	ids := make(map[uint32]string)
	queries := 0
	for _, p := range d.Panels {
		panel := p.Panel
		if panel == nil {
			continue // a row
		}
		title := *panel.Title
		if other, ok := ids[*panel.Id]; ok {
			t.Errorf("%q and %q have the same id", title, other)
		}
		ids[*panel.Id] = title
		b := box{panel.GridPos.X, panel.GridPos.Y, panel.GridPos.W, panel.GridPos.H}
		if b.x+b.w > 24 {
			t.Errorf("%q is wider than the dashboard", title)
		}
		for other, o := range boxes {
			if b.x < o.x+o.w && o.x < b.x+b.w && b.y < o.y+o.h && o.y < b.y+b.h {
				t.Errorf("%q lies over %q", title, other)
			}
		}
		boxes[title] = b
		for _, target := range panel.Targets {
			b, err := json.Marshal(target)
			if err != nil {
				t.Fatal(err)
			}
			var q struct{ Expr string }
			if err := json.Unmarshal(b, &q); err != nil {
				t.Fatal(err)
			}
			queries++
			query := variables.Replace(q.Expr)
			if v := variable.FindString(query); v != "" {
				t.Errorf("%q: no variable %s", title, v)
			}
			if err := check(query, known); err != nil {
				t.Errorf("%q: %s: %v", title, q.Expr, err)
			}
		}
		if len(panel.Targets) == 0 {
			t.Errorf("%q shows nothing", title)
		}
	}
	if queries < 15 {
		t.Errorf("only %d queries were found", queries)
	}
}

// --- the alerts

func readRules(t *testing.T) map[string]rulefmt.Rule {
	t.Helper()
	groups, errs := rulefmt.ParseFile(filepath.Join(root, "deploy/prometheus/rules.yaml"), false, model.UTF8Validation, promQL, slog.New(slog.DiscardHandler))
	if len(errs) > 0 {
		t.Fatal(errors.Join(errs...))
	}
	rules := make(map[string]rulefmt.Rule)
	for _, g := range groups.Groups {
		for _, r := range g.Rules {
			rules[r.Alert] = r
		}
	}
	return rules
}

func TestEveryAlertIsOfWhatIsExportedAndSaysWhatToDo(t *testing.T) {
	known := exported(t)
	doc, err := os.ReadFile(filepath.Join(root, "docs/observability.md"))
	if err != nil {
		t.Fatal(err)
	}
	for name, r := range readRules(t) {
		if err := check(r.Expr, known); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if !slices.Contains([]string{"critical", "warning", "info"}, r.Labels["severity"]) {
			t.Errorf("%s: severity %q", name, r.Labels["severity"])
		}
		for _, a := range []string{"summary", "description"} {
			if r.Annotations[a] == "" {
				t.Errorf("%s has no %s", name, a)
			}
		}
		if !strings.Contains(string(doc), "`"+name+"`") {
			t.Errorf("docs/observability.md says nothing of %s", name)
		}
	}
}

// node is a node on which all is well: two hours of it, one sample a minute.
var node = map[string]string{
	`up{job="monitoring/kata-qat",instance="n1"}`:                                                "1x120",
	`kata_qat_runtime_connected{instance="n1"}`:                                                  "1x120",
	`kata_qat_pf_health{instance="n1",pf="0000:6b:00.0",health="healthy"}`:                       "1x120",
	`kata_qat_pf_health{instance="n1",pf="0000:6b:00.0",health="dead"}`:                          "0x120",
	`kata_qat_pf_up{instance="n1",pf="0000:6b:00.0"}`:                                            "1x120",
	`kata_qat_pf_firmware_requests_total{instance="n1",pf="0000:6b:00.0"}`:                       "10+60x120",
	`kata_qat_pf_firmware_responses_total{instance="n1",pf="0000:6b:00.0"}`:                      "5+60x120",
	`kata_qat_vfs{instance="n1",pf="0000:6b:00.0",resource="qat.intel.com/cy",state="free"}`:     "14x120",
	`kata_qat_vfs{instance="n1",pf="0000:6b:00.0",resource="qat.intel.com/cy",state="held"}`:     "2x120",
	`kata_qat_vfs{instance="n1",pf="0000:6b:00.0",resource="qat.intel.com/cy",state="unusable"}`: "0x120",
	`kata_qat_refusals_total{instance="n1",target="container",reason="shortage"}`:                "7x120",
	`kata_qat_handler_seconds_bucket{instance="n1",handler="create_container",le="0.0001"}`:      "0+10x120",
	`kata_qat_handler_seconds_bucket{instance="n1",handler="create_container",le="2"}`:           "0+10x120",
	`kata_qat_handler_seconds_bucket{instance="n1",handler="create_container",le="+Inf"}`:        "0+10x120",
}

// firing are the alerts whose condition holds at the end.
func firing(t *testing.T, series map[string]string) []string {
	t.Helper()
	var load strings.Builder
	load.WriteString("load 1m\n")
	for name, values := range series {
		if !strings.Contains(values, "+") && !strings.Contains(values, "-") {
			values = strings.Replace(values, "x", "+0x", 1)
		}
		fmt.Fprintf(&load, "  %s %s\n", name, values)
	}
	storage := promqltest.LoadedStorage(t, load.String())
	engine := promqltest.NewTestEngine(t, false, 5*time.Minute, 1e6)
	var names []string
	for name, r := range readRules(t) {
		q, err := engine.NewInstantQuery(t.Context(), storage, nil, r.Expr, time.Unix(0, 0).Add(2*time.Hour))
		if err != nil {
			t.Fatal(err)
		}
		result := q.Exec(t.Context())
		v, err := result.Vector()
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if len(v) > 0 {
			names = append(names, name)
		}
		q.Close()
	}
	slices.Sort(names)
	return names
}

func TestEachAlertFiresWhenItShouldAndOnlyThen(t *testing.T) {
	if got := firing(t, node); len(got) > 0 {
		t.Errorf("on a node where all is well: %v", got)
	}
	rules := readRules(t)
	for name, change := range map[string]map[string]string{
		"KataQATDaemonDown":    {`up{job="monitoring/kata-qat",instance="n1"}`: "0x120"},
		"KataQATNotConnected":  {`kata_qat_runtime_connected{instance="n1"}`: "0x120"},
		"KataQATDeviceDead":    {`kata_qat_pf_health{instance="n1",pf="0000:6b:00.0",health="dead"}`: "1x120"},
		"KataQATDeviceDown":    {`kata_qat_pf_up{instance="n1",pf="0000:6b:00.0"}`: "0x120"},
		"KataQATFirmwareStuck": {`kata_qat_pf_firmware_responses_total{instance="n1",pf="0000:6b:00.0"}`: "5x120"},
		"KataQATVFsUnusable":   {`kata_qat_vfs{instance="n1",pf="0000:6b:00.0",resource="qat.intel.com/cy",state="unusable"}`: "3x120"},
		"KataQATRefusals":      {`kata_qat_refusals_total{instance="n1",target="container",reason="shortage"}`: "7+1x120"},
		"KataQATSlow":          {`kata_qat_handler_seconds_bucket{instance="n1",handler="create_container",le="0.0001"}`: "0x120"},
		"KataQATNoneFree":      {`kata_qat_vfs{instance="n1",pf="0000:6b:00.0",resource="qat.intel.com/cy",state="free"}`: "0x120"},
		"KataQATHeldButIdle": {
			`kata_qat_pf_firmware_requests_total{instance="n1",pf="0000:6b:00.0"}`:  "10x120",
			`kata_qat_pf_firmware_responses_total{instance="n1",pf="0000:6b:00.0"}`: "10x120",
		},
	} {
		t.Run(name, func(t *testing.T) {
			series := maps.Clone(node)
			maps.Copy(series, change)
			if len(series) != len(node) {
				t.Fatal("the change is of a series that is not there")
			}
			if got := firing(t, series); !slices.Equal(got, []string{name}) {
				t.Errorf("%v fire, expected only %s", got, name)
			}
		})
		delete(rules, name)
	}
	for name := range rules {
		t.Errorf("it is not tested when %s fires", name)
	}
}
