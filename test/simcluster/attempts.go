package simcluster

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// Attempt is one time that kubelet asked containerd for a sandbox or a container,
// and was answered.
type Attempt struct {
	Pod       string // "namespace/name"
	Container string // "" for the sandbox
	Asked     time.Time
	Answered  time.Time
	Refused   string // why; "" if it was made
}

func (a Attempt) String() string {
	what := "sandbox of " + a.Pod
	if a.Container != "" {
		what = "container " + a.Container + " of " + a.Pod
	}
	if a.Refused == "" {
		return what + ": made"
	}
	return what + ": " + a.Refused
}

// containerd's lines (v2.4, internal/cri/instrument/instrumented_service.go): one
// when it is asked, and one when it answers.
var (
	logLine   = regexp.MustCompile(`^time="([^"]+)" level=\w+ msg=("(?:[^"\\]|\\.)*")(?: error=("(?:[^"\\]|\\.)*"|\S+))?`)
	sandboxes = regexp.MustCompile(`^RunPodSandbox for (.*?)( failed, error| returns sandbox id "(\w+)")?$`)
	creations = regexp.MustCompile(`^CreateContainer within sandbox "(\w+)" for (?:container )?(.*?)( failed| returns container id "\w+")?$`)
	// What a message of protobuf's looks like is not for programs; this takes it
	// with and without quotes and spaces.
	nameField      = regexp.MustCompile(`\b[Nn]ame:\s*"?([^",} ]+)`)
	namespaceField = regexp.MustCompile(`\b[Nn]amespace:\s*"?([^",} ]+)`)
	attemptField   = regexp.MustCompile(`\b[Aa]ttempt:\s*(\d+)`)
)

// Attempts reads containerd's log for what kubelet has tried in a namespace, in the
// order of the answers. What containerd did not answer before it ended is not among
// them.
func Attempts(log, namespace string) (all []Attempt, _ error) {
	asked, pods := map[string]time.Time{}, map[string]string{}
	for line := range strings.Lines(log) {
		m := logLine.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		at, err := time.Parse(time.RFC3339Nano, m[1])
		if err != nil {
			return nil, fmt.Errorf("read containerd's log: %w", err)
		}
		message, err := strconv.Unquote(m[2])
		if err != nil {
			return nil, fmt.Errorf("read containerd's log: message %s: %w", m[2], err)
		}
		var a Attempt
		var key, answer string
		if s := sandboxes.FindStringSubmatch(message); s != nil {
			a.Pod = field(namespaceField, s[1]) + "/" + field(nameField, s[1])
			key, answer = a.Pod+" "+field(attemptField, s[1]), s[2]
			if s[3] != "" {
				pods[s[3]] = a.Pod
			}
		} else if s := creations.FindStringSubmatch(message); s != nil {
			a.Pod, a.Container = pods[s[1]], field(nameField, s[2])
			key, answer = s[1]+" "+a.Container+" "+field(attemptField, s[2]), s[3]
		} else {
			continue
		}
		if answer == "" {
			asked[key] = at
			continue
		}
		a.Asked, a.Answered = asked[key], at
		if strings.HasPrefix(answer, " failed") {
			a.Refused = m[3]
			if text, err := strconv.Unquote(m[3]); err == nil {
				a.Refused = text
			}
		}
		if strings.HasPrefix(a.Pod, namespace+"/") {
			all = append(all, a)
		}
	}
	return all, nil
}

func field(re *regexp.Regexp, message string) string {
	if m := re.FindStringSubmatch(message); m != nil {
		return m[1]
	}
	return ""
}
