// Package docs knows the commands that the documentation tells people to type, and
// which test runs each of them. It runs none: a test asks for its lines, and does
// with them what the reader would.
package docs

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// Command is one that a reader is to type.
type Command struct {
	File string // from the module's root
	Text string // one line for sh, without a comment
	// Hardware says that the document marks it as one that no test can run: it needs
	// a QAT card, or an image from the internet.
	Hardware bool
	Span     bool // in a text, and not in a block
}

// Documents are all files that people read, from the module's root.
func Documents(root string) ([]string, error) {
	all := []string{"README.md"}
	for _, dir := range []string{"docs", "deploy"} {
		err := filepath.WalkDir(filepath.Join(root, dir), func(path string, e fs.DirEntry, err error) error {
			if err == nil && strings.HasSuffix(path, ".md") {
				path, err = filepath.Rel(root, path)
				all = append(all, path)
			}
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	return all, nil
}

// Commands are those of all documents.
func Commands(root string) ([]Command, error) {
	files, err := Documents(root)
	if err != nil {
		return nil, err
	}
	var all []Command
	for _, file := range files {
		b, err := os.ReadFile(filepath.Join(root, file))
		if err != nil {
			return nil, err
		}
		found, err := parse(string(b))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		for _, c := range found {
			c.File = file
			all = append(all, c)
		}
	}
	return all, nil
}

// The block of commands, and its one mark.
const (
	console = "console"
	mark    = "hardware"
)

var (
	span    = regexp.MustCompile("`([^`]+)`(<!-- " + mark + " -->)?")
	comment = regexp.MustCompile(`(^|\s+)#(\s.*)?$`)
	// A word that can be a program's, and what may stand before it.
	program = regexp.MustCompile(`^(?:[A-Z_]+=\S+ )*((?:scripts/)?[a-z][a-z-]*(?:\.sh)?)(?: |$)`)
)

// parse finds the commands of a document: all lines of ```console blocks, and what
// looks like one in indented blocks and in spans of two words or more.
func parse(document string) ([]Command, error) {
	var p reader
	for line := range strings.SplitSeq(document, "\n") {
		if info, ok := strings.CutPrefix(line, "```"); ok {
			p.endParagraph()
			if err := p.fence(info); err != nil {
				return nil, err
			}
			continue
		}
		switch indented := strings.HasPrefix(line, "    ") && len(p.paragraph) == 0; {
		case p.block != "":
			if language, rest, _ := strings.Cut(p.block, " "); language == console {
				p.add(line, rest == mark)
			}
		case indented && program.MatchString(strings.TrimSpace(line)) || p.continued:
			if text := strings.TrimSpace(line); p.continued || isCommand(text) {
				p.add(text, false)
			}
		case indented:
		case strings.TrimSpace(line) == "":
			p.endParagraph()
		case strings.HasPrefix(line, "|"): // a row of a table
			p.endParagraph()
			p.paragraph = append(p.paragraph, strings.ReplaceAll(line, `\|`, "|"))
			p.endParagraph()
		default:
			p.paragraph = append(p.paragraph, line)
		}
	}
	p.endParagraph()
	if p.block != "" {
		return nil, fmt.Errorf("a block of code is not closed")
	}
	return p.found, nil
}

type reader struct {
	found     []Command
	block     string   // the fenced one that the line is in
	paragraph []string // its lines so far
	continued bool     // the last command goes on in this line
}

func (p *reader) fence(info string) error {
	if p.block != "" {
		p.block = ""
		return nil
	}
	p.block = info
	if info == "" {
		p.block = "text"
	}
	if known := []string{console, console + " " + mark, "text", "toml", "yaml"}; !slices.Contains(known, p.block) {
		return fmt.Errorf("a block is called %q, expected one of %q", info, known)
	}
	return nil
}

func (p *reader) add(line string, hardware bool) {
	text := strings.TrimSpace(comment.ReplaceAllString(line, ""))
	if text == "" {
		return
	}
	text, goesOn := strings.CutSuffix(text, `\`)
	if last := len(p.found) - 1; p.continued {
		p.found[last].Text += text
	} else {
		p.found = append(p.found, Command{Text: text, Hardware: hardware})
	}
	p.continued = goesOn
}

func (p *reader) endParagraph() {
	for _, m := range span.FindAllStringSubmatch(strings.Join(p.paragraph, "\n"), -1) {
		text := strings.Join(strings.Fields(m[1]), " ")
		// The text goes on to speak of our commands without our name.
		if first, _, _ := strings.Cut(text, " "); first == "provision" || first == "dump" {
			text = "kata-qat " + text
		}
		if strings.Contains(text, " ") && isCommand(text) {
			p.found = append(p.found, Command{Text: text, Hardware: m[2] != "", Span: true})
		}
	}
	p.paragraph = nil
}

// isCommand tells whether a text begins with the name of a program, and is not an
// assignment: key = "value".
func isCommand(text string) bool {
	m := program.FindStringSubmatchIndex(text)
	if m == nil || slices.Contains(noCommands, text) {
		return false
	}
	return !strings.HasPrefix(strings.TrimSpace(text[m[3]:]), "=")
}

// noCommands look like commands and are not there to be typed.
var noCommands = []string{
	"initialized QAT private key provider", // Envoy says it
	"openssl speed",                        // the name of a test
	"openssl -engine",                      // the like of
}

// Program is the name of the program that a command starts.
func (c Command) Program() string {
	if m := program.FindStringSubmatch(c.Text); m != nil {
		return m[1]
	}
	return ""
}
