package kernelconfig

import (
	"fmt"
	"strings"

	"github.com/kata-qat/kata-qat/internal/lazyregexp"
)

// A condition of Kconfig is a term: an option, a comparison, or terms joined by
// && and ||, perhaps negated. Values are 0 (n), 1 (m) and 2 (y).
type term struct {
	text string
	op   string // "&&", "||", "!", "=" and its kin, or "" for an option
	args []term
}

// What a condition is made of. A $(macro) stands for a test of the compiler.
var tokenPattern = lazyregexp.New(`\$\((?:[^()]|\([^()]*\))*\)|"[^"]*"|'[^']*'|&&|\|\||!=|<=|>=|[=<>!()]|[A-Za-z0-9_.$-]+|#.*`)

// unmetBy returns what keeps a condition from being worth as much as is needed:
// each option with what it is, and where several would do, the whole
// alternative. A condition that it cannot read counts as met.
func unmetBy(condition string, need int, c *Config) []string {
	p := parser{tokens: tokenPattern.FindAllString(condition, -1)}
	t, ok := p.alternatives()
	if !ok {
		return nil
	}
	return t.unmet(need, c)
}

func tristate(value string) int {
	switch value {
	case "y":
		return 2
	case "m":
		return 1
	}
	return 0
}

func (t term) unmet(need int, c *Config) []string {
	if t.value(c) >= need {
		return nil
	}
	switch t.op {
	case "&&":
		var all []string
		for _, a := range t.args {
			all = append(all, a.unmet(need, c)...)
		}
		return all
	case "":
		switch value, _ := c.Value(t.text); value {
		case Off:
			return []string{t.text + ", which is off"}
		default:
			return []string{fmt.Sprintf("%s, which is %s", t.text, value)}
		}
	}
	return []string{t.String()}
}

func (t term) value(c *Config) int {
	switch t.op {
	case "&&":
		v := 2
		for _, a := range t.args {
			v = min(v, a.value(c))
		}
		return v
	case "||":
		v := 0
		for _, a := range t.args {
			v = max(v, a.value(c))
		}
		return v
	case "!":
		return 2 - t.args[0].value(c)
	case "=", "!=":
		if (t.args[0].literal(c) == t.args[1].literal(c)) == (t.op == "=") {
			return 2
		}
		return 0
	case "":
		switch {
		case strings.HasPrefix(t.text, "$"):
			return 2
		case t.text == "y" || t.text == "m" || t.text == "n":
			return tristate(t.text)
		}
		v, _ := c.Value(t.text)
		return tristate(v)
	}
	return 2 // an order of numbers: not looked into
}

// literal is what a comparison compares.
func (t term) literal(c *Config) string {
	if t.text == "y" || t.text == "m" || t.text == "n" || strings.ContainsAny(t.text, `"'`) {
		return strings.Trim(t.text, `"'`)
	}
	v, _ := c.Value(t.text)
	return strings.Trim(v, `"`)
}

func (t term) String() string {
	switch t.op {
	case "":
		return t.text
	case "!":
		return "!" + t.args[0].String()
	case "&&", "||":
		parts := make([]string, len(t.args))
		for i, a := range t.args {
			parts[i] = a.String()
		}
		return "(" + strings.Join(parts, " "+t.op+" ") + ")"
	}
	return t.args[0].String() + t.op + t.args[1].String()
}

type parser struct{ tokens []string }

func (p *parser) peek() string {
	if len(p.tokens) == 0 || strings.HasPrefix(p.tokens[0], "#") {
		return ""
	}
	return p.tokens[0]
}

func (p *parser) next() string {
	t := p.peek()
	if t != "" {
		p.tokens = p.tokens[1:]
	}
	return t
}

func (p *parser) alternatives() (term, bool) { return p.joined("||", p.conjunction) }
func (p *parser) conjunction() (term, bool)  { return p.joined("&&", p.factor) }

func (p *parser) joined(op string, part func() (term, bool)) (term, bool) {
	first, ok := part()
	t := term{op: op, args: []term{first}}
	for ok && p.peek() == op {
		p.next()
		var next term
		next, ok = part()
		t.args = append(t.args, next)
	}
	if len(t.args) == 1 {
		return first, ok
	}
	return t, ok
}

func (p *parser) factor() (term, bool) {
	switch token := p.next(); token {
	case "!":
		t, ok := p.factor()
		return term{op: "!", args: []term{t}}, ok
	case "(":
		t, ok := p.alternatives()
		return t, ok && p.next() == ")"
	case "", ")", "&&", "||", "=", "!=", "<", ">", "<=", ">=":
		return term{}, false
	default:
		t := term{text: token}
		switch op := p.peek(); op {
		case "=", "!=", "<", ">", "<=", ">=":
			p.next()
			right := p.next()
			return term{op: op, args: []term{t, {text: right}}}, right != ""
		}
		return t, true
	}
}
