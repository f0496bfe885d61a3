package dump

import (
	"fmt"
	"strings"

	"github.com/kata-qat/kata-qat/internal/containers"
)

// Selection says which containers are wanted.
type Selection struct {
	All bool
	// Names are ids of containers, or what they begin with, and
	// namespace/pod.
	Names []string
}

// ParseSelection checks what was given on the command line.
func ParseSelection(all bool, names []string) (Selection, error) {
	switch {
	case all && len(names) > 0:
		return Selection{}, fmt.Errorf("--all and %q: expected one or the other", names[0])
	case !all && len(names) == 0:
		return Selection{}, fmt.Errorf("nothing to dump: expected a container id, a namespace/pod, --bundle DIR or --all")
	}
	for _, n := range names {
		namespace, pod, isPod := strings.Cut(n, "/")
		if isPod && (namespace == "" || pod == "" || strings.Contains(pod, "/")) {
			return Selection{}, fmt.Errorf("pod %q: expected namespace/pod, for example default/qat-app", n)
		}
		if !isPod && !containers.ValidIDPrefix(n) {
			return Selection{}, fmt.Errorf("container id %q: expected letters and digits, or namespace/pod", n)
		}
	}
	return Selection{All: all, Names: names}, nil
}

// choose returns the containers that were asked for, each once.
func (s Selection) choose(all []containers.Container) ([]containers.Container, error) {
	if s.All {
		return all, nil
	}
	wanted := make([]bool, len(all))
	for _, name := range s.Names {
		found, err := find(name, all)
		if err != nil {
			return nil, err
		}
		for _, i := range found {
			wanted[i] = true
		}
	}
	var chosen []containers.Container
	for i, w := range wanted {
		if w {
			chosen = append(chosen, all[i])
		}
	}
	return chosen, nil
}

func find(name string, all []containers.Container) ([]int, error) {
	pod := strings.Contains(name, "/")
	var found []int
	for i := range all {
		c := &all[i]
		switch {
		case !pod && c.ID == name:
			return []int{i}, nil
		case pod && c.PodName() == name, !pod && strings.HasPrefix(c.ID, name):
			found = append(found, i)
		}
	}
	switch {
	case len(found) == 0 && pod:
		return nil, fmt.Errorf("pod %s: no container of it among the %d on this node: kata-qat dump --all lists them", name, len(all))
	case len(found) == 0:
		return nil, fmt.Errorf("container %s: none of the %d on this node has an id that begins so: kata-qat dump --all lists them", name, len(all))
	case !pod && len(found) > 1:
		return nil, fmt.Errorf("container %s: %d ids begin so: %s: give more of the id", name, len(found), listed(found, all))
	}
	return found, nil
}

// listed names the first few of the containers.
func listed(found []int, all []containers.Container) string {
	const most = 6
	names := make([]string, 0, most+1)
	for n, i := range found {
		if n == most {
			names = append(names, fmt.Sprintf("and %d more", len(found)-most))
			break
		}
		c := all[i]
		names = append(names, c.String())
	}
	return strings.Join(names, ", ")
}
