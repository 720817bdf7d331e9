package bench_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/starpatch/starpatch/client"
)

// only is the one host of the lab that is measured, with the controller and an agent.
const only = "controller-0"

// lab is a running cluster of one real host.
type lab struct {
	b      *testing.B
	dir    string
	env    []string
	client *client.Client
}

func newLab(b *testing.B) *lab {
	b.Helper()
	if os.Geteuid() != 0 {
		b.Skip("a lab needs root")
	}
	dir, err := os.MkdirTemp("", "lab")
	if err != nil {
		b.Fatal(err)
	}
	l := &lab{b: b, dir: dir, env: os.Environ()}
	b.Cleanup(func() {
		l.must(b, "patch-lab", "down", "--dir", dir)
		if err := os.RemoveAll(dir); err != nil {
			b.Error(err)
		}
	})
	l.must(b, "patch-lab", "up", "--dir", dir, "--topology", "1+0+0")
	for line := range strings.Lines(l.must(b, "patch-lab", "env", "--dir", dir)) {
		name, value, _ := strings.Cut(strings.TrimPrefix(strings.TrimSpace(line), "export "), "=")
		if value = strings.Trim(value, "'"); name != "PATH" {
			l.env = append(l.env, name+"="+value)
		}
		if name == "STARPATCH_SOCKET" {
			l.client = client.Unix(value)
			b.Cleanup(l.client.CloseIdle)
		}
	}
	return l
}

// must runs one of our programs in the lab's folder and returns what it printed.
func (l *lab) must(b *testing.B, name string, args ...string) string {
	b.Helper()
	path, err := filepath.Abs(program(name))
	if err != nil {
		b.Fatal(err)
	}
	cmd := exec.Command(path, args...)
	cmd.Dir, cmd.Env = l.dir, l.env
	out, err := cmd.CombinedOutput()
	if err != nil {
		b.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// settle waits until the host has answered to the last change of the repository, as the eye of an operator does.
func (l *lab) settle(b *testing.B) {
	b.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for {
		q, err := l.client.QueryHosts(ctx)
		if err != nil || len(q.Hosts) != 1 {
			b.Fatal(q, err)
		}
		if h := q.Hosts[0]; !h.InterimState && h.State == "idle" {
			return
		}
	}
}

// last is what the agent's log says of the last operation.
type last struct {
	at                    time.Time // before the agent tells anybody
	total, tools, scripts time.Duration
}

var installed = regexp.MustCompile(`time=(\S+) level=INFO msg=installed .* total=(\S+) tools=(\S+) scripts=(\S+) `)

func (l *lab) last(b *testing.B) last {
	b.Helper()
	text, err := os.ReadFile(filepath.Join(l.dir, "hosts", only, "log", "sw-patch-agent.log"))
	if err != nil {
		b.Fatal(err)
	}
	all := installed.FindAllSubmatch(text, -1)
	if len(all) == 0 {
		b.Fatalf("the agent tells of no installation:\n%s", text)
	}
	m := all[len(all)-1]
	at, err := time.Parse(time.RFC3339, string(m[1]))
	if err != nil {
		b.Fatal(err)
	}
	out := last{at: at}
	for i, to := range []*time.Duration{&out.total, &out.tools, &out.scripts} {
		if *to, err = time.ParseDuration(string(m[i+2])); err != nil {
			b.Fatal(err)
		}
	}
	return out
}

// BenchmarkLab measures one real host.
func BenchmarkLab(b *testing.B) {
	l := newLab(b)
	b.Run("HostInstall", l.hostInstall)
	b.Run("AgentIdle", l.agentIdle)
}

// hostInstall takes a patch of five packages in service, one of which restarts a service by its script, onto the host
// and off again, by sw-patch host-install. Of its time ms-tools is dnf's and rpm's, ms-scripts that of the patch's own
// script, ms-ours everything but the tools; ms-told is from the agent's last word to the end of sw-patch.
func (l *lab) hostInstall(b *testing.B) {
	const id = "BENCH_FIVE"
	args := []string{"--id", id, "--release", release, "--status", "REL", "--reboot-required", "N", "--key", filepath.Join(l.dir, "keys", "formal-private-key.pem")}
	for _, name := range []string{"demo-service", "lab-libcore", "lab-ssh", "lab-logging", "lab-tools"} {
		args = append(args, strings.TrimSpace(l.must(b, "patch-lab", "rpm", name, "1.0-2")))
	}
	l.must(b, "patch_build", args...)
	l.must(b, "sw-patch", "upload", id+".patch")
	var total, tools, scripts, told time.Duration
	var ours times
	n := 0
	for b.Loop() {
		b.StopTimer()
		l.must(b, "sw-patch", []string{"apply", "remove"}[n%2], id)
		l.settle(b)
		n++
		b.StartTimer()
		began := time.Now()
		l.must(b, "sw-patch", "host-install", only)
		ended := time.Now()
		b.StopTimer()
		last := l.last(b)
		total += ended.Sub(began)
		tools += last.tools
		scripts += last.scripts
		told += ended.Sub(last.at)
		ours = append(ours, ended.Sub(began)-last.tools)
		b.StartTimer()
	}
	each := func(d time.Duration) float64 { return milliseconds(d) / float64(n) }
	b.ReportMetric(each(total), "ms-total")
	b.ReportMetric(each(tools), "ms-tools")
	b.ReportMetric(100*float64(tools)/float64(total), "%tools")
	b.ReportMetric(each(scripts), "ms-scripts")
	b.ReportMetric(each(told), "ms-told")
	b.ReportMetric(ours.at(0.5), "ms-ours-p50")
	b.ReportMetric(ours.at(0.99), "ms-ours-max")
}

// agentIdle watches the agent that has just installed something while it has nothing to do.
func (l *lab) agentIdle(b *testing.B) {
	pid := l.agent(b)
	window := time.Duration(size(15, 1)) * time.Second
	var used time.Duration
	n := 0
	for b.Loop() {
		before := processor(b, pid)
		<-time.After(window)
		used += processor(b, pid) - before
		n++
	}
	b.ReportMetric(mib(status(b, pid, "VmRSS")), "resident-MiB")
	b.ReportMetric(mib(status(b, pid, "RssAnon")), "own-MiB")
	b.ReportMetric(float64(used)/float64(window)/float64(n)*100, "%cpu")
}

// agent finds the process of the host's agent by its configuration.
func (l *lab) agent(b *testing.B) int {
	b.Helper()
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		b.Fatal(err)
	}
	for _, path := range lines {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		if bytes.Contains(text, []byte("sw-patch-agent\x00")) && bytes.Contains(text, []byte(l.dir+"/")) {
			pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
			if err != nil {
				b.Fatal(err)
			}
			return pid
		}
	}
	b.Fatal("there is no agent")
	return 0
}

// processor is how long the threads of a process have used a processor so far.
func processor(b *testing.B, pid int) time.Duration {
	b.Helper()
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	if err != nil {
		b.Fatal(err)
	}
	var sum time.Duration
	for _, path := range threads {
		text, err := os.ReadFile(path)
		if err != nil {
			b.Fatal(err)
		}
		n, err := strconv.ParseInt(strings.Fields(string(text))[0], 10, 64)
		if err != nil {
			b.Fatal(err)
		}
		sum += time.Duration(n)
	}
	return sum
}
