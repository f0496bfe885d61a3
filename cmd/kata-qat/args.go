package main

import (
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
)

// flagsFirst sorts a command line so that flags may stand anywhere, as people
// are used to: the flag package stops at the first argument that is none, and
// would take "-o" in "dump ID -o json" for a container. Global flags that stand
// after the command are moved before it. What is unknown stays for the parser
// to refuse.
func flagsFirst(app *cli.App, args []string) []string {
	if len(args) == 0 {
		return args
	}
	if last := len(args) - 1; args[last] == completionFlag { // which must stay the last
		return append(flagsFirst(app, args[:last]), completionFlag)
	}
	s := sortArgs(app, args)
	return slices.Concat(s.global, s.command, s.flags, s.positional)
}

// sortedArgs are the words of a command line by what they are.
type sortedArgs struct {
	path       []string // names of the command and of those that it is below
	global     []string // the program and the global flags
	command    []string // the path, with the flags of all but its last
	flags      []string // of the innermost command
	positional []string
}

func sortArgs(app *cli.App, args []string) sortedArgs {
	if len(args) == 0 {
		return sortedArgs{}
	}
	global := takesValue(app.Flags)
	s := sortedArgs{global: []string{args[0]}}
	known, commands, rest := global, app.Commands, args[1:]
	for len(rest) > 0 {
		word := rest[0]
		rest = rest[1:]
		if word == "--" {
			s.positional = append(append(s.positional, word), rest...)
			break
		}
		if len(word) < 2 || word[0] != '-' {
			if sub := named(commands, word); sub != nil && len(s.positional) == 0 {
				s.command = append(append(s.command, s.flags...), word)
				s.path = append(s.path, sub.Name)
				s.flags, known, commands = nil, takesValue(sub.Flags), sub.Subcommands
			} else {
				s.positional = append(s.positional, word)
			}
			continue
		}
		name, _, hasValue := strings.Cut(strings.TrimLeft(word, "-"), "=")
		value, local := known[name]
		to := &s.flags
		if _, ok := global[name]; ok && !local || len(s.command) == 0 {
			value, to = global[name], &s.global
		}
		*to = append(*to, word)
		if value && !hasValue && len(rest) > 0 {
			*to = append(*to, rest[0])
			rest = rest[1:]
		}
	}
	return s
}

// takesValue maps the names of flags to whether they take a value.
func takesValue(flags []cli.Flag) map[string]bool {
	known := make(map[string]bool)
	for _, f := range flags {
		doc, ok := f.(cli.DocGenerationFlag)
		for _, name := range f.Names() {
			known[name] = ok && doc.TakesValue()
		}
	}
	return known
}

func named(commands []*cli.Command, name string) *cli.Command {
	for _, c := range commands {
		if c.HasName(name) {
			return c
		}
	}
	return nil
}
