// Package activity tells how much QAT devices are used: samples of what their
// firmware has counted, rates between two samples, and whether a pod's devices
// did something meanwhile. It only reads. Counters are a PF's: they do not tell
// which of its VFs was used, and nothing here pretends that they do.
package activity

import (
	"time"

	"github.com/kata-qat/kata-qat/internal/qat"
)

// Sample is what the PFs said at one moment.
type Sample struct {
	Time time.Time `json:"time"`
	PFs  []PF      `json:"pfs"`
}

// PF is one of them.
type PF struct {
	Address   qat.Address `json:"address"`
	Family    *qat.Family `json:"family"`
	State     string      `json:"state,omitempty"` // up, down; empty before Gen4
	Health    qat.Health  `json:"health"`
	Requests  uint64      `json:"requests"`
	Responses uint64      `json:"responses"`
	// Rate is that since the sample before; nil in the first, and when the
	// device was started again in between.
	Rate    *Rate        `json:"rate,omitempty"`
	Engines qat.Counters `json:"engines,omitempty"`
	// Problem says why there are no counters.
	Problem string `json:"problem,omitempty"`
}

// Rate is what a PF did between two samples, in a second.
type Rate struct {
	Requests  float64 `json:"requestsPerSecond"`
	Responses float64 `json:"responsesPerSecond"`
}

// Read takes a sample of PFs.
func Read(root string, pfs []qat.PF, now time.Time) Sample {
	s := Sample{Time: now, PFs: make([]PF, len(pfs))}
	for i := range pfs {
		v := qat.ReadVitals(root, &pfs[i])
		s.PFs[i] = PF{
			Address: pfs[i].Address, Family: pfs[i].Family, State: v.State, Health: v.Health,
			Requests: v.Counters.Requests(), Responses: v.Counters.Responses(), Engines: v.Counters,
		}
		if v.Err != nil {
			s.PFs[i].Problem = v.Err.Error()
		}
	}
	return s
}

// pf finds a PF.
func (s *Sample) pf(a qat.Address) *PF {
	for i := range s.PFs {
		if s.PFs[i].Address == a {
			return &s.PFs[i]
		}
	}
	return nil
}

// Rates fills in the rates since the sample before.
func (s *Sample) Rates(before *Sample) {
	seconds := s.Time.Sub(before.Time).Seconds()
	for i := range s.PFs {
		now := &s.PFs[i]
		was := before.pf(now.Address)
		if was == nil || was.Problem != "" || now.Problem != "" || seconds <= 0 || now.restarted(was) {
			continue
		}
		now.Rate = &Rate{float64(now.Requests-was.Requests) / seconds, float64(now.Responses-was.Responses) / seconds}
	}
}

// restarted tells whether the device was started in between: its counters begin
// at 0 then.
func (p *PF) restarted(was *PF) bool { return p.Requests < was.Requests || p.Responses < was.Responses }
