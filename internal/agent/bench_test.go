package agent_test

import (
	"fmt"
	"regexp"
	"strconv"
	"testing"

	"github.com/starpatch/starpatch/api"
	"github.com/starpatch/starpatch/host"
	"github.com/starpatch/starpatch/internal/agentlink"
	"github.com/starpatch/starpatch/internal/rpmmake"
)

// BenchmarkHostInstall installs an in-service patch of five packages and removes it again. Beside the time of one
// operation it tells what is left of it without the package tools, and without tools and scripts.
func BenchmarkHostInstall(b *testing.B) {
	var base, patch []rpmmake.Spec
	for i := range 5 {
		name := "p" + strconv.Itoa(i)
		base = append(base, pkg(name, "1-1"))
		patch = append(patch, pkg(name, "2-1", script("exit $PATCH_STATUS_OK")))
	}
	w := newWorld(b, base...)
	w.start()
	desired := []agentlink.Desired{w.publish(nil, patch...), w.publish(nil)}
	times := regexp.MustCompile(`time: (\d+) ms in all, (\d+) ms in package tools, (\d+) ms in scripts`)
	var n, all, tools, scripts int
	for b.Loop() {
		n++
		op := agentlink.Operation{ID: fmt.Sprintf("op%d", n), Kind: "install", InServiceOnly: true}
		w.desire(desired[(n-1)%2], &op)
		p, _ := w.end(op.ID)
		m := times.FindSubmatch(p.Output)
		if p.State != api.OperationDone || m == nil {
			b.Fatalf("%+v", p)
		}
		for i, to := range []*int{&all, &tools, &scripts} {
			v, err := strconv.Atoi(string(m[i+1]))
			if err != nil {
				b.Fatal(err)
			}
			*to += v
		}
	}
	b.ReportMetric(float64(tools)/float64(n), "ms-tools/op")
	b.ReportMetric(float64(scripts)/float64(n), "ms-scripts/op")
	b.ReportMetric(float64(all-tools)/float64(n), "ms-rest/op")
}

// BenchmarkCompare is what a new generation that changes nothing for a host costs it, rpm -qa included.
func BenchmarkCompare(b *testing.B) {
	w := newWorld(b, pkg("a", "1-1"))
	w.start()
	// Two generations that differ, in turn.
	desired := []agentlink.Desired{w.publish(nil, pkg("a", "2-1")), w.publish(nil)}
	n := 0
	for b.Loop() {
		d := desired[n%2]
		n++
		w.epoch++
		d.Epoch = w.epoch
		w.give(d)
		w.reported(func(r host.Report) bool { return r.Revision == d.Revision })
	}
}
