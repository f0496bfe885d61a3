package dump

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/kata-qat/kata-qat/internal/edits"
)

// object is a JSON object as encoding/json gives it with UseNumber.
type object = map[string]any

// Decode reads a spec as generic JSON. Numbers stay as they are written.
func Decode(spec []byte) (map[string]any, error) {
	d := json.NewDecoder(bytes.NewReader(spec))
	d.UseNumber()
	var o object
	if err := d.Decode(&o); err != nil {
		return nil, err
	}
	if o == nil {
		return nil, fmt.Errorf("null is no JSON object")
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, fmt.Errorf("more follows after the JSON object")
	}
	return o, nil
}

// Revert returns the spec as it was before the injection of which the record
// tells; the spec itself is left alone. Fields that nobody here knows stay. The
// second result names what the record has and the spec has not: somebody else
// changed the spec after the injection.
func Revert(spec map[string]any, r *edits.Record) (map[string]any, []string, error) {
	v := reversal{spec: maps.Clone(spec)}
	for _, path := range slices.Backward(r.Devices) {
		v.removeNode(path)
	}
	for _, path := range slices.Sorted(maps.Keys(r.Owned)) {
		if err := v.restoreOwner(path, r.Owned[path]); err != nil {
			return nil, nil, err
		}
	}
	for _, destination := range slices.Backward(r.Mounts) {
		v.remove("mount "+destination, field("destination", destination), "mounts")
	}
	for _, name := range slices.Backward(r.Env) {
		v.remove("variable "+name, func(e any) bool {
			s, ok := e.(string)
			return ok && strings.HasPrefix(s, name+"=")
		}, "process", "env")
	}
	if r.Memlock != nil {
		v.restoreMemlock(*r.Memlock)
	}
	update(v.spec, func(any) any { return nil }, []string{"annotations", edits.RecordAnnotation})
	return v.spec, v.missing, nil
}

// reversal is a spec from which an injection is being taken. What it does not
// change it shares with the spec that it was made of.
type reversal struct {
	spec    object
	missing []string
}

// removeNode removes a device node and the rule that lets the device cgroup
// through, of which every added node has brought one of its own.
func (v *reversal) removeNode(path string) {
	if node, ok := v.remove("device "+path, field("path", path), "linux", "devices").(object); ok {
		v.removeRule(node)
	}
}

func (v *reversal) removeRule(node object) {
	v.remove(fmt.Sprintf("device cgroup rule of %v", node["path"]), allows(node), "linux", "resources", "devices")
}

// restoreOwner gives a node that was there before its mode and owner back:
// "0600:0:0".
func (v *reversal) restoreOwner(path, was string) error {
	mode, owner, ok := strings.Cut(was, ":")
	uid, gid, ok2 := strings.Cut(owner, ":")
	m, err := strconv.ParseUint(mode, 8, 32)
	if err != nil || !ok || !ok2 || !isID(uid) || !isID(gid) {
		return fmt.Errorf("%q is no mode and owner of %s: expected one such as 0600:0:0", was, path)
	}
	var node object
	v.list(func(list []any) []any {
		if i := slices.IndexFunc(list, field("path", path)); i >= 0 {
			node = maps.Clone(list[i].(object))
			list[i] = node
			node["fileMode"] = json.Number(strconv.FormatUint(m, 10))
			node["uid"], node["gid"] = json.Number(uid), json.Number(gid)
		}
		return list
	}, "linux", "devices")
	if node == nil {
		v.missing = append(v.missing, "device "+path)
		return nil
	}
	// NRI replaces a node by adding it again, and adds a second rule for it
	// (nri 0.12, runtime-tools/generate.AdjustDevices).
	if v.count(allows(node), "linux", "resources", "devices") > 1 {
		v.removeRule(node)
	}
	return nil
}

// restoreMemlock sets the limit back, or removes it where there was none. NRI
// adds a second entry instead of changing the first (nri 0.12,
// runtime-tools/generate.AdjustRlimits).
func (v *reversal) restoreMemlock(was edits.Limit) {
	isMemlock := field("type", "RLIMIT_MEMLOCK")
	path := []string{"process", "rlimits"}
	if was == (edits.Limit{}) || v.count(isMemlock, path...) > 1 {
		v.remove("RLIMIT_MEMLOCK", isMemlock, path...)
		return
	}
	if v.count(isMemlock, path...) == 0 {
		v.missing = append(v.missing, "RLIMIT_MEMLOCK")
		return
	}
	v.list(func(list []any) []any {
		i := slices.IndexFunc(list, isMemlock)
		limit := maps.Clone(list[i].(object))
		list[i] = limit
		limit["soft"] = json.Number(strconv.FormatUint(was.Soft, 10))
		limit["hard"] = json.Number(strconv.FormatUint(was.Hard, 10))
		return list
	}, path...)
}

// remove takes the last matching element, which is the one that was added,
// from the list at path and returns it.
func (v *reversal) remove(what string, match func(any) bool, path ...string) (removed any) {
	v.list(func(list []any) []any {
		for i, have := range slices.Backward(list) {
			if match(have) {
				removed = have
				return slices.Delete(list, i, i+1)
			}
		}
		return list
	}, path...)
	if removed == nil {
		v.missing = append(v.missing, what)
	}
	return removed
}

func (v *reversal) count(match func(any) bool, path ...string) (n int) {
	v.list(func(list []any) []any {
		for _, have := range list {
			if match(have) {
				n++
			}
		}
		return list
	}, path...)
	return n
}

// list replaces the list at path by f of a copy of it.
func (v *reversal) list(f func([]any) []any, path ...string) {
	update(v.spec, func(e any) any {
		if list, ok := e.([]any); ok {
			return f(slices.Clone(list))
		}
		return e
	}, path)
}

// update replaces the value at path by f of it, or removes it when that is nil.
// An object or a list that this empties is removed too: the injection made it,
// for the OCI's types omit what is empty. The objects on the way are copied, o
// itself is changed.
func update(o object, f func(any) any, path []string) {
	key := path[0]
	value, ok := o[key]
	if !ok {
		return
	}
	before := size(value)
	if len(path) == 1 {
		value = f(value)
		o[key] = value
	} else if inner, ok := value.(object); ok {
		inner = maps.Clone(inner)
		update(inner, f, path[1:])
		value, o[key] = inner, inner
	}
	if value == nil || before > 0 && size(value) == 0 {
		delete(o, key)
	}
}

// size is the number of elements, or -1 for what has none.
func size(v any) int {
	switch v := v.(type) {
	case object:
		return len(v)
	case []any:
		return len(v)
	}
	return -1
}

func field(key, value string) func(any) bool {
	return func(e any) bool {
		o, ok := e.(object)
		return ok && o[key] == value
	}
}

// allows matches the rules that let the device of a node through.
func allows(node object) func(any) bool {
	return func(e any) bool {
		rule, ok := e.(object)
		return ok && rule["allow"] == true && rule["type"] == node["type"] &&
			rule["major"] != nil && rule["major"] == node["major"] && rule["minor"] == node["minor"]
	}
}

func isID(s string) bool {
	_, err := strconv.ParseUint(s, 10, 32)
	return err == nil
}
