package main

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"

	"github.com/starpatch/starpatch/api"
	"github.com/starpatch/starpatch/host"
	"github.com/starpatch/starpatch/internal/agentlink"
	"github.com/starpatch/starpatch/internal/rpm"
)

// hostModel is a host without packages: an agent on the real link that says what a script has it say.
type hostModel struct {
	name string
	link *agentlink.Client
	stop func()

	mu        sync.Mutex
	facts     host.Facts
	epoch     uint64
	revision  int64
	operation string // last one that it heard of
	differs   []host.Difference
	failed    bool
	state     host.AgentState
	silent    bool   // reports only when told, or after an installation
	ending    string // of the next installation; empty: done
	held      string // operation that was begun and waits for its end
	began     chan struct{}
	marks     int
	acked     map[string]chan struct{}
}

// joinHost makes a host with a join token, connects it and waits until the controller has its first report.
func joinHost(ctx context.Context, name string, personality host.Personality, controller, token, dir string) (*hostModel, error) {
	if _, err := agentlink.Join(ctx, agentlink.JoinConfig{Controllers: []string{controller}, Token: token, Host: name, Dir: dir}); err != nil {
		return nil, err
	}
	link, err := agentlink.NewClient(agentlink.ClientConfig{Dir: dir, Controllers: []string{controller}, Log: slog.New(slog.DiscardHandler), Rand: rand.New(rand.NewPCG(1, 2))})
	if err != nil {
		return nil, err
	}
	h := &hostModel{
		name: name, link: link, state: host.Idle, acked: map[string]chan struct{}{}, began: make(chan struct{}, 1),
		facts: host.Facts{Personality: personality, Release: release, BootID: "1", Agent: "model"},
	}
	first := h.mark("mark-0")
	run, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		// Run ends with its context only.
		_ = link.Run(run, h)
	}()
	h.stop = sync.OnceFunc(func() { cancel(); <-ended })
	return h, wait(ctx, name, first)
}

func wait(ctx context.Context, name string, acked chan struct{}) error {
	select {
	case <-acked:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("the controller has not taken the report of %s: %w", name, context.Cause(ctx))
	}
}

// mark returns a channel that closes when the controller has everything that was said before the mark was sent.
func (h *hostModel) mark(id string) chan struct{} {
	h.mu.Lock()
	defer h.mu.Unlock()
	c := make(chan struct{})
	h.acked[id] = c
	return c
}

// tell sends a report now and waits until the controller has it.
func (h *hostModel) tell(ctx context.Context) error {
	h.mu.Lock()
	h.marks++
	id := fmt.Sprintf("mark-%d", h.marks)
	h.mu.Unlock()
	acked := h.mark(id)
	h.mu.Lock()
	err := h.report()
	h.mu.Unlock()
	if err != nil {
		return err
	}
	if err := h.link.SendProgress(agentlink.Progress{Operation: id, State: api.OperationRunning}); err != nil {
		return err
	}
	return wait(ctx, h.name, acked)
}

// report says how the host is; mu is held.
func (h *hostModel) report() error {
	return h.link.SendReport(host.Report{
		Release: release, Revision: h.revision, State: h.state, Installed: h.differs, PatchFailed: h.failed,
	})
}

func (h *hostModel) Hello() agentlink.Hello {
	h.mu.Lock()
	defer h.mu.Unlock()
	return agentlink.Hello{Facts: h.facts, LastOperation: h.operation, Epoch: h.epoch}
}

func (h *hostModel) Welcome(agentlink.Welcome) {}

func (h *hostModel) Desired(_ context.Context, d agentlink.Desired) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.epoch = d.Epoch
	changed := d.Revision != h.revision
	h.revision = d.Revision
	if d.Operation == nil || d.Operation.ID == h.operation {
		if !changed || h.silent {
			return nil
		}
		if err := h.report(); err != nil {
			return err
		}
		return h.link.SendProgress(agentlink.Progress{Operation: "mark-0", State: api.OperationRunning})
	}
	h.operation = d.Operation.ID
	return h.install(d.Operation.ID)
}

// install begins an installation, and ends it unless the script holds it; mu is held.
func (h *hostModel) install(id string) error {
	for _, state := range []string{api.OperationAccepted, api.OperationRunning} {
		if err := h.link.SendProgress(agentlink.Progress{Operation: id, State: state}); err != nil {
			return err
		}
	}
	if h.ending == "waits" {
		h.ending, h.held = "", id
		h.began <- struct{}{}
		return nil
	}
	return h.end(id)
}

// end ends an installation as the script wants it; mu is held.
func (h *hostModel) end(id string) error {
	end := agentlink.Progress{Operation: id, State: api.OperationDone}
	h.state, h.failed = host.Idle, false
	switch h.ending {
	case "fails":
		end.State, end.Detail = api.OperationFailed, "the package tools failed"
		h.state, h.failed = host.InstallFailed, true
	case "rejects":
		end.State, end.Detail = api.OperationRejected, h.name+" is unlocked and a patch on it needs a reboot; lock it first"
		h.state = host.InstallRejected
	case "restarts":
		end.State, end.Detail = api.OperationRestartPending, "restart pending: peer-svc, audit"
		h.failed = true
	default:
		h.differs = nil
	}
	h.ending = ""
	if err := h.report(); err != nil {
		return err
	}
	return h.link.SendProgress(end)
}

func (h *hostModel) ProgressAcked(operation, _ string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if c := h.acked[operation]; c != nil {
		close(c)
		delete(h.acked, operation)
	}
}

// difference is an installed package at another version than the wanted one.
func difference(name, have, wanted string) (host.Difference, error) {
	h, err := rpm.ParseFileName(name + "-" + have + ".noarch.rpm")
	if err != nil {
		return host.Difference{}, err
	}
	w, err := rpm.ParseFileName(name + "-" + wanted + ".noarch.rpm")
	if err != nil {
		return host.Difference{}, err
	}
	return host.Difference{Have: h, Wanted: w.EVR}, nil
}
