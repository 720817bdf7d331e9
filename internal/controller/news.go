package controller

import "sync"

// news wakes everybody who waits for a change. The zero news is ready.
type news struct {
	mu   sync.Mutex
	next chan struct{} // closed at the next change; nil until somebody waits
}

// wait returns a channel that is closed at the next change. Take it before looking at what may change.
func (n *news) wait() <-chan struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.next == nil {
		n.next = make(chan struct{})
	}
	return n.next
}

func (n *news) tell() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.next != nil {
		close(n.next)
		n.next = nil
	}
}
