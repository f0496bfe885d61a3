package main

import (
	"bytes"
	"encoding"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"

	"github.com/kata-qat/kata-qat/internal/config"
)

// completeSchema returns a schema of values with what config.toml may have in it.
func completeSchema(file string) ([]byte, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var s map[string]any
	if err := json.Unmarshal(b, &s); err != nil {
		return nil, fmt.Errorf("read %s: %w", file, err)
	}
	properties, ok := s["properties"].(map[string]any)
	if !ok {
		return nil, fmt.Errorf("read %s: it has no properties", file)
	}
	c := typeSchema(reflect.TypeFor[config.Config]())
	c["description"] = "Anything of [config.toml](configuration.md), over what the chart writes."
	properties["config"] = c
	var out bytes.Buffer
	e := json.NewEncoder(&out)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	err = e.Encode(s)
	return out.Bytes(), err
}

// typeSchema is the schema of a type of the configuration.
func typeSchema(t reflect.Type) map[string]any {
	if t.Kind() == reflect.Pointer {
		return typeSchema(t.Elem())
	}
	if reflect.PointerTo(t).Implements(reflect.TypeFor[encoding.TextUnmarshaler]()) {
		return map[string]any{"type": "string"}
	}
	switch t.Kind() {
	case reflect.Bool:
		return map[string]any{"type": "boolean"}
	case reflect.String:
		return map[string]any{"type": "string"}
	case reflect.Slice:
		return map[string]any{"type": "array", "items": typeSchema(t.Elem())}
	case reflect.Map:
		return map[string]any{"type": "object", "additionalProperties": typeSchema(t.Elem())}
	case reflect.Struct:
		properties := make(map[string]any)
		addFields(t, properties)
		return map[string]any{"type": "object", "additionalProperties": false, "properties": properties}
	}
	return map[string]any{"type": "integer"}
}

func addFields(t reflect.Type, into map[string]any) {
	for f := range fields(t) {
		if f.Anonymous {
			addFields(f.Type, into)
			continue
		}
		name, _, _ := strings.Cut(f.Tag.Get("toml"), ",")
		if name != "" && name != "-" {
			into[name] = typeSchema(f.Type)
		}
	}
}

func fields(t reflect.Type) func(func(reflect.StructField) bool) {
	return func(yield func(reflect.StructField) bool) {
		for i := range t.NumField() {
			if f := t.Field(i); (f.IsExported() || f.Anonymous) && !yield(f) {
				return
			}
		}
	}
}

// The table stands between these lines.
const (
	tableBegin = "<!-- values: generated from values.schema.json by make generate -->\n"
	tableEnd   = "<!-- end of values -->\n"
)

// withTable returns a document with the table of values in it.
func withTable(file string, schema []byte, values string) ([]byte, error) {
	doc, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	before, rest, ok := strings.Cut(string(doc), tableBegin)
	_, after, end := strings.Cut(rest, tableEnd)
	if !ok || !end {
		return nil, fmt.Errorf("%s has no lines %q and %q", file, tableBegin, tableEnd)
	}
	var s, defaults map[string]any
	if err := json.Unmarshal(schema, &s); err != nil {
		return nil, err
	}
	b, err := os.ReadFile(values)
	if err != nil {
		return nil, err
	}
	if err := yaml.Unmarshal(b, &defaults); err != nil {
		return nil, fmt.Errorf("read %s: %w", values, err)
	}
	var rows strings.Builder
	if err := tableRows(&rows, "", s, defaults); err != nil {
		return nil, err
	}
	return []byte(before + tableBegin + "| value | default | what it is |\n|---|---|---|\n" + rows.String() + tableEnd + after), nil
}

// tableRows writes a row for each value that is not a tree of others.
func tableRows(w *strings.Builder, path string, schema map[string]any, defaults any) error {
	properties, _ := schema["properties"].(map[string]any)
	values, _ := defaults.(map[string]any)
	for _, name := range slices.Sorted(maps.Keys(properties)) {
		s := properties[name].(map[string]any)
		full := strings.TrimPrefix(path+"."+name, ".")
		what, _ := s["description"].(string)
		if what == "" {
			return fmt.Errorf("the schema says nothing of %s", full)
		}
		value, ok := values[name]
		if !ok {
			return fmt.Errorf("values.yaml has no %s", full)
		}
		if s["properties"] != nil && full != "config" {
			if err := tableRows(w, full, s, value); err != nil {
				return err
			}
			continue
		}
		b, err := json.Marshal(value)
		if err != nil {
			return err
		}
		if options, ok := s["enum"].([]any); ok {
			what = strings.TrimSuffix(what, ".") + ": " + alternatives(options) + "."
		}
		fmt.Fprintf(w, "| `%s` | `%s` | %s |\n", full, b, what)
	}
	return nil
}

func alternatives(options []any) string {
	var words []string
	for _, o := range options {
		words = append(words, fmt.Sprintf("`%v`", o))
	}
	return strings.Join(words, ", ")
}
