package topology

import (
	"fmt"
	"strings"
)

// hues tell pods apart; a pod has its number besides. Each has a fill and an edge
// for light and for dark surroundings.
var hues = []struct{ fill, edge, darkFill, darkEdge string }{
	{"#dbeafe", "#3b82f6", "#1e3a5f", "#60a5fa"}, // blue
	{"#ffedd5", "#f97316", "#5a3312", "#fb923c"}, // orange
	{"#ede9fe", "#8b5cf6", "#3b2a66", "#a78bfa"}, // violet
	{"#ccfbf1", "#14b8a6", "#134e4a", "#2dd4bf"}, // teal
	{"#fce7f3", "#ec4899", "#5b1d40", "#f472b6"}, // pink
	{"#ecfccb", "#84cc16", "#36480f", "#a3e635"}, // lime
	{"#e0f2fe", "#0ea5e9", "#0c4a6e", "#38bdf8"}, // sky
	{"#fef9c3", "#ca8a04", "#54430a", "#facc15"}, // yellow
}

// style is the picture's style sheet. It uses no CSS variables: programs that
// make other pictures of an SVG do not know them.
func style() string {
	var b strings.Builder
	light, dark := &b, new(strings.Builder)
	b.WriteString(`
text { font-family: system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; font-size: 12px; }
.mono { font-family: ui-monospace, SFMono-Regular, Menlo, "DejaVu Sans Mono", monospace; }
.title { font-size: 20px; font-weight: 600; }
.head { font-size: 14px; font-weight: 600; }
.pf { font-size: 14px; font-weight: 600; }
.small { font-size: 10.5px; }
.num { font-size: 10px; font-weight: 700; }
.trouble { fill: none; stroke-width: 2; }
.shared { fill: none; stroke-width: 1.5; stroke-dasharray: 4 3; }
`)
	both := func(selector, property, l, d string) {
		fmt.Fprintf(light, "%s { %s: %s; }\n", selector, property, l)
		fmt.Fprintf(dark, "  %s { %s: %s; }\n", selector, property, d)
	}
	both(".page", "fill", "#ffffff", "#0f1419")
	both("text", "fill", "#1f2933", "#e4e9ef")
	both(".muted", "fill", "#5b6875", "#9aa7b5")
	both(".panel", "fill", "#f4f6f8", "#182029")
	both(".panel", "stroke", "#d5dbe1", "#2d3945")
	both(".card", "fill", "#ffffff", "#0f1419")
	both(".card", "stroke", "#d5dbe1", "#2d3945")
	both(".free", "fill", "#ffffff", "#131a21")
	both(".free", "stroke", "#b9c3cd", "#3f4d5b")
	both(".unusable", "fill", "#fef2f2", "#3a1a1c")
	both(".unusable", "stroke", "#dc2626", "#f87171")
	both(".trouble", "stroke", "#dc2626", "#f87171")
	both(".bad", "fill", "#b91c1c", "#fca5a5")
	both(".warn", "fill", "#a15c07", "#fbbf24")
	both(".shared", "stroke", "#a15c07", "#fbbf24")
	both(".ok-dot", "fill", "#16a34a", "#4ade80")
	both(".bad-dot", "fill", "#dc2626", "#f87171")
	both(".unknown-dot", "fill", "#94a3b8", "#64748b")
	both(".num", "fill", "#ffffff", "#0f1419")
	for i, h := range hues {
		both(fmt.Sprintf(".p%d", i), "fill", h.fill, h.darkFill)
		both(fmt.Sprintf(".p%d", i), "stroke", h.edge, h.darkEdge)
		both(fmt.Sprintf(".b%d", i), "fill", h.edge, h.darkEdge)
	}
	fmt.Fprintf(&b, "@media (prefers-color-scheme: dark) {\n%s}\n", dark)
	return b.String()
}
