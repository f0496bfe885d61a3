package nriplugin

import "testing"

func TestWhichRuntimesValidate(t *testing.T) {
	for _, tc := range []struct {
		nri, runtime, version string
		want                  bool
	}{
		{"v0.12.3", "containerd", "2.4.2", true},
		{"v0.8.0", "containerd", "2.0.0", false},
		{"v0.10.0", "cri-o", "1.34.0", true},
		{"", "containerd", "1.7.35+unknown", false},
		{"", "containerd", "v1.7.35", false},
		{"", "containerd", "2.0.5", false},
		{"", "containerd", "v2.4.2+unknown", true},
		{"unknown", "containerd", "1.99.0-rc.0", false},
		{"", "another", "0.1", true},
	} {
		if got := validates(tc.nri, tc.runtime, tc.version); got != tc.want {
			t.Errorf("NRI %q of %s %s: validates = %v, expected %v", tc.nri, tc.runtime, tc.version, got, tc.want)
		}
	}
}
