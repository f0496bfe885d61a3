package kubeevents

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// event is what is written of an Event of events.k8s.io/v1. The types of
// k8s.io/api would bring all of Kubernetes' core with them, and 100 KiB of work
// at the start of every command (Kubernetes 1.37, api/events/v1/types.go).
type event struct {
	metav1.TypeMeta     `json:""`
	Metadata            metadata         `json:"metadata"`
	EventTime           metav1.MicroTime `json:"eventTime"`
	Series              *seriesOf        `json:"series,omitempty"`
	ReportingController string           `json:"reportingController"`
	ReportingInstance   string           `json:"reportingInstance"`
	Action              string           `json:"action"`
	Reason              string           `json:"reason"`
	Regarding           reference        `json:"regarding"`
	Note                string           `json:"note"`
	Type                string           `json:"type"`
}

type metadata struct {
	Name      string `json:"name"`
	Namespace string `json:"namespace"`
}

// seriesOf tells how often the same was seen.
type seriesOf struct {
	Count            int32            `json:"count"`
	LastObservedTime metav1.MicroTime `json:"lastObservedTime"`
}

// reference names a pod, and perhaps a container of it.
type reference struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Namespace  string `json:"namespace"`
	Name       string `json:"name"`
	UID        string `json:"uid,omitempty"`
	FieldPath  string `json:"fieldPath,omitempty"`
}
