package refusal

import (
	"context"
	"errors"
	"fmt"
	"testing"
)

func TestAnErrorKeepsItsReasonAndItsWords(t *testing.T) {
	inner := errors.New("VF 0000:6b:00.1: held by default/other")
	err := fmt.Errorf("pod default/app: %w", Because(DeviceHeld, inner))
	if err.Error() != "pod default/app: VF 0000:6b:00.1: held by default/other" || !errors.Is(err, inner) {
		t.Errorf("the error is %q", err)
	}
	for _, tc := range []struct {
		err  error
		want Reason
	}{
		{err, DeviceHeld},
		{Because(Kubelet, context.DeadlineExceeded), Kubelet},
		{fmt.Errorf("wait: %w", context.DeadlineExceeded), Timeout},
		{inner, Other},
	} {
		if got := Of(tc.err); got != tc.want {
			t.Errorf("%q: reason %s, expected %s", tc.err, got, tc.want)
		}
	}
	if Because(Other, nil) != nil {
		t.Error("no error got a reason")
	}
}
