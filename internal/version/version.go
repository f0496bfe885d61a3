// Package version knows which build this is. It does not know what is in it.
package version

import "runtime/debug"

const module = "github.com/kata-qat/kata-qat"

// Which build this is; never empty. The linker sets both for `make build`
// (-X github.com/kata-qat/kata-qat/internal/version.Version=…); any other build
// has what the go command recorded.
var (
	// Version is the release, "0.1.0"; of a build of a checkout, "(devel)".
	Version string
	// Commit is the git commit, with "-dirty" when the tree had more in it
	// than the commit; "unknown" when nobody recorded it.
	Commit string
)

func init() {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		info = new(debug.BuildInfo)
	}
	Version, Commit = fill(Version, Commit, info)
}

// fill completes what the linker set.
func fill(version, commit string, info *debug.BuildInfo) (string, string) {
	if version == "" {
		version = "(devel)"
		// A program of another module that uses a package of this one has a
		// version, too, which is not ours.
		if info.Main.Path == module && info.Main.Version != "" {
			version = info.Main.Version
		}
	}
	if commit == "" {
		commit = recordedCommit(info.Settings)
	}
	return version, commit
}

func recordedCommit(settings []debug.BuildSetting) string {
	var revision, dirty string
	for _, s := range settings {
		switch {
		case s.Key == "vcs.revision":
			revision = s.Value
		case s.Key == "vcs.modified" && s.Value == "true":
			dirty = "-dirty"
		}
	}
	if revision == "" {
		return "unknown"
	}
	return revision + dirty
}
