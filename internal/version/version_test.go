package version

import (
	"runtime/debug"
	"testing"
)

func TestBuildNamesItself(t *testing.T) {
	build := func(path, version string, settings ...debug.BuildSetting) *debug.BuildInfo {
		return &debug.BuildInfo{Main: debug.Module{Path: path, Version: version}, Settings: settings}
	}
	revision := debug.BuildSetting{Key: "vcs.revision", Value: "381bfeb"}
	clean := debug.BuildSetting{Key: "vcs.modified", Value: "false"}
	dirty := debug.BuildSetting{Key: "vcs.modified", Value: "true"}
	for name, c := range map[string]struct {
		version, commit         string // of the linker
		info                    *debug.BuildInfo
		wantVersion, wantCommit string
	}{
		"the linker knows best":   {"0.1.0", "abc", build(module, "v9", revision, clean), "0.1.0", "abc"},
		"go install of a release": {"", "", build(module, "v0.1.0"), "v0.1.0", "unknown"},
		"go build of a commit":    {"", "", build(module, "(devel)", revision, clean), "(devel)", "381bfeb"},
		"go build of a change":    {"", "", build(module, "(devel)", revision, dirty), "(devel)", "381bfeb-dirty"},
		"another module":          {"", "", build("example.com/other", "v7"), "(devel)", "unknown"},
		"nothing recorded":        {"", "", build("", "", dirty), "(devel)", "unknown"},
	} {
		if version, commit := fill(c.version, c.commit, c.info); version != c.wantVersion || commit != c.wantCommit {
			t.Errorf("%s: version %q, commit %q: expected %q, %q", name, version, commit, c.wantVersion, c.wantCommit)
		}
	}
}
