package allocation

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/kata-qat/kata-qat/internal/refusal"
)

// Request asks the standalone pool for a number of VFs of one resource.
type Request struct {
	Resource string // full name, "qat.intel.com/cy"
	Count    int
}

// requestForm ends every complaint about an annotation.
const requestForm = `expected <resource>=<number>, several joined by ",", for example "cy=2" or "cy=1,dc=1"`

// ParseRequest reads the value of a request annotation, "cy=2" or "cy=1,dc=1",
// where a resource may carry its domain: "qat.intel.com/cy=2". It takes nothing
// else: no spaces, no resource twice, no number below 1, no more than most VFs.
func ParseRequest(value, domain string, most int) ([]Request, error) {
	var requests []Request
	total := 0
	for part := range strings.SplitSeq(value, ",") {
		resource, number, ok := strings.Cut(part, "=")
		name := strings.TrimPrefix(resource, domain+"/")
		if !ok || !resourceName(name) {
			return nil, fmt.Errorf("%s: %s", quote(part), requestForm)
		}
		// A sign, a leading zero or a stray digit group is more likely a
		// mistake than a number.
		count, err := strconv.Atoi(number)
		if err != nil || count < 1 || strconv.Itoa(count) != number {
			return nil, fmt.Errorf("%s: %s is no number of VFs from 1 to %d: %s", quote(part), quote(number), most, requestForm)
		}
		if count > most || total+count > most {
			return nil, tooMany(max(count, total+count), most)
		}
		total += count
		r := Request{Resource: domain + "/" + name, Count: count}
		if slices.ContainsFunc(requests, func(o Request) bool { return o.Resource == r.Resource }) {
			return nil, fmt.Errorf("%s: %s is asked for twice: %s", quote(value), r.Resource, requestForm)
		}
		requests = append(requests, r)
	}
	return requests, nil
}

// tooMany refuses a number of VFs for one pod. Kata takes pcie_root_port = 16
// whatever larger number it is given (kata-containers, virtcontainers, maxPCIeRootPort).
func tooMany(n, most int) error {
	return refusal.Because(refusal.Request, fmt.Errorf("%d VFs: a pod can have at most %d, the number of PCIe root ports (pcie_root_port) that Kata gives a VM: ask for fewer", n, most))
}

// containerRequest is what a pod's annotations ask for one container.
type containerRequest struct {
	container string
	requests  []Request
}

// podRequests reads all request annotations of a pod, in the order of the
// containers' names.
func podRequests(pod *Pod, domain string, most int) ([]containerRequest, error) {
	var all []containerRequest
	total := 0
	for key, value := range pod.Annotations {
		container, ok := strings.CutPrefix(key, RequestAnnotation)
		if !ok {
			continue
		}
		if !label(container) {
			return nil, refusal.Because(refusal.Request, fmt.Errorf("pod %s: annotation %s: %s is no name of a container: expected %s<container>", pod.String(), quote(key), quote(container), RequestAnnotation))
		}
		requests, err := ParseRequest(value, domain, most)
		if err != nil {
			return nil, inContainer(pod, container, refusal.Because(refusal.Request, fmt.Errorf("annotation %s: %w", key, err)))
		}
		for _, r := range requests {
			total += r.Count
		}
		all = append(all, containerRequest{container, requests})
	}
	if total > most {
		return nil, fmt.Errorf("pod %s: annotations %s*: %w", pod.String(), RequestAnnotation, tooMany(total, most))
	}
	slices.SortFunc(all, func(a, b containerRequest) int { return cmp.Compare(a.container, b.container) })
	return all, nil
}

// requested tells whether a pod has any request annotation.
func requested(pod *Pod) bool {
	for key := range pod.Annotations {
		if strings.HasPrefix(key, RequestAnnotation) {
			return true
		}
	}
	return false
}

func resourceName(s string) bool { return len(s) <= 63 && letters(s, "_-") }

// label tells whether s is a DNS label, as names of containers are
// (Kubernetes, validation.IsDNS1123Label).
func label(s string) bool { return len(s) <= 63 && letters(s, "-") }

// letters tells whether s is made of lower-case letters and digits, with the
// punctuation only between them.
func letters(s, punctuation string) bool {
	for i := 0; i < len(s); i++ {
		inner := i > 0 && i < len(s)-1
		if c := s[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') && (!inner || strings.IndexByte(punctuation, c) < 0) {
			return false
		}
	}
	return s != ""
}

// quote makes what a user wrote fit for an error of one line.
func quote(s string) string {
	const most = 64
	if len(s) > most {
		return strconv.Quote(s[:most]) + "…"
	}
	return strconv.Quote(s)
}
