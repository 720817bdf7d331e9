package client

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/starpatch/starpatch/api"
	"github.com/starpatch/starpatch/problem"
)

// The calls of our own API (/api/v1).

// Status returns what the controller says of itself.
func (c *Client) Status(ctx context.Context) (api.Status, error) {
	var r api.Status
	err := c.get(ctx, "/api/v1/status", nil, &r)
	return r, err
}

// InstallHost asks for an installation on a host, by name or IP address. The operation that it returns is saved: follow
// it with [Client.WatchOperation].
func (c *Client) InstallHost(ctx context.Context, host string, force bool) (api.Operation, error) {
	var r api.Operation
	err := c.postJSON(ctx, "/api/v1/hosts/"+url.PathEscape(host)+"/install", api.InstallRequest{Force: force}, &r)
	return r, err
}

// Operation returns the present state of an operation.
func (c *Client) Operation(ctx context.Context, id string) (api.Operation, error) {
	var r api.Operation
	err := c.get(ctx, "/api/v1/operations/"+url.PathEscape(id), nil, &r)
	return r, err
}

// OperationLog returns the kept output of an operation's tools.
func (c *Client) OperationLog(ctx context.Context, id string) (api.OperationLog, error) {
	var r api.OperationLog
	err := c.get(ctx, "/api/v1/operations/"+url.PathEscape(id)+"/log", nil, &r)
	return r, err
}

// The waits between attempts to reach a controller that has gone while an operation is watched, and how long in all
// without any answer is enough to give up: a controller restarts in a fraction of it.
const (
	firstRetry  = 50 * time.Millisecond
	longestWait = time.Second
	giveUpAfter = 30 * time.Second
)

// WatchOperation follows an operation until it is final and returns its final state. onChange, when not nil, is called
// for every state seen, the final one included, each version once. A lost connection is opened again; after 30 seconds
// without an answer the error says so. Ending ctx ends the watch, not the operation.
func (c *Client) WatchOperation(ctx context.Context, id string, onChange func(api.Operation)) (api.Operation, error) {
	var last api.Operation
	see := func(o api.Operation) {
		if o.Version > last.Version || last.ID == "" {
			last = o
			if onChange != nil {
				onChange(o)
			}
		}
	}
	wait, heard := firstRetry, time.Now()
	for {
		got, err := c.streamOperation(ctx, id, last.Version, see)
		if last.Final() {
			return last, nil
		}
		if ctx.Err() != nil {
			return last, context.Cause(ctx)
		}
		if got {
			wait, heard = firstRetry, time.Now()
		}
		if err != nil && problem.KindOf(err) != problem.Unavailable {
			return last, err
		}
		if time.Since(heard) > giveUpAfter {
			if err == nil {
				err = problem.Errorf(problem.Unavailable, "lost the connection to the controller while waiting for operation %s", id)
			}
			return last, err
		}
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return last, context.Cause(ctx)
		case <-t.C:
		}
		wait = min(2*wait, longestWait)
	}
}

// streamOperation reads one stream of events to its end. It says whether any event came.
func (c *Client) streamOperation(ctx context.Context, id string, after int64, see func(api.Operation)) (bool, error) {
	resp, err := c.send(ctx, http.MethodGet, "/api/v1/operations/"+url.PathEscape(id), nil, nil, "", "text/event-stream")
	if err != nil {
		return false, err
	}
	defer resp.Body.Close() // the stream has ended or is given up
	any := false
	err = events(resp.Body, func(data []byte) error {
		var o api.Operation
		if err := json.Unmarshal(data, &o); err != nil {
			return problem.Errorf(problem.Internal, "cannot read an event of operation %s: %w", id, err)
		}
		any = true
		if o.Version > after {
			see(o)
		}
		return nil
	})
	if err != nil && !errors.Is(err, io.EOF) && problem.KindOf(err) == problem.Internal {
		if ctx.Err() != nil {
			return any, context.Cause(ctx)
		}
		return any, c.unreachable(err)
	}
	return any, err
}

// events calls each with the data of every server-sent event.
func events(r io.Reader, each func(data []byte) error) error {
	s := bufio.NewScanner(r)
	s.Buffer(make([]byte, 0, 4096), 1<<20)
	var data []byte
	for s.Scan() {
		line := s.Bytes()
		if len(line) == 0 {
			if len(data) > 0 {
				if err := each(data); err != nil {
					return err
				}
			}
			data = nil
			continue
		}
		if v, ok := bytes.CutPrefix(line, []byte("data:")); ok {
			if data != nil {
				data = append(data, '\n')
			}
			data = append(data, bytes.TrimPrefix(v, []byte(" "))...)
		}
	}
	return s.Err()
}

// CreateToken makes a join token for a host. A ttl of zero means the controller's default.
func (c *Client) CreateToken(ctx context.Context, host string, ttl time.Duration) (api.Token, error) {
	req := api.TokenRequest{Host: host}
	if ttl > 0 {
		req.TTL = ttl.String()
	}
	var r api.Token
	err := c.postJSON(ctx, "/api/v1/tokens", req, &r)
	return r, err
}

// Tokens lists join tokens without their secrets.
func (c *Client) Tokens(ctx context.Context) ([]api.Token, error) {
	var r []api.Token
	err := c.get(ctx, "/api/v1/tokens", nil, &r)
	return r, err
}

// Trust lists the keys that patches are verified with.
func (c *Client) Trust(ctx context.Context) ([]api.TrustKey, error) {
	var r []api.TrustKey
	err := c.get(ctx, "/api/v1/trust", nil, &r)
	return r, err
}

// AddTrust adds a public key or certificate in PEM form to class formal or dev, under a file name.
func (c *Client) AddTrust(ctx context.Context, class, name, pem string) (api.TrustKey, error) {
	var r api.TrustKey
	err := c.postJSON(ctx, "/api/v1/trust", api.TrustRequest{Class: class, Name: name, PEM: pem}, &r)
	return r, err
}

// RemoveTrust removes the key file name from a class.
func (c *Client) RemoveTrust(ctx context.Context, class, name string) error {
	return c.call(ctx, http.MethodDelete, "/api/v1/trust/"+url.PathEscape(class)+"/"+url.PathEscape(name), nil, nil, "", nil)
}

// Feeds lists the releases whose base packages the controller holds.
func (c *Client) Feeds(ctx context.Context) ([]api.ReleaseStatus, error) {
	var r []api.ReleaseStatus
	err := c.get(ctx, "/api/v1/feeds", nil, &r)
	return r, err
}

// AddFeed brings the base packages of a release in from a folder on the controller.
func (c *Client) AddFeed(ctx context.Context, release, dir string) (api.ReleaseStatus, error) {
	var r api.ReleaseStatus
	err := c.postJSON(ctx, "/api/v1/feeds", api.FeedRequest{Release: release, Dir: dir}, &r)
	return r, err
}

// Journal returns records with numbers greater than after.
func (c *Client) Journal(ctx context.Context, after int64) (api.JournalPage, error) {
	var r api.JournalPage
	err := c.get(ctx, "/api/v1/journal", url.Values{"after": {strconv.FormatInt(after, 10)}}, &r)
	return r, err
}

// VerifyJournal has the controller check its journal's chain of hashes.
func (c *Client) VerifyJournal(ctx context.Context) (api.JournalCheck, error) {
	var r api.JournalCheck
	err := c.get(ctx, "/api/v1/journal/verify", nil, &r)
	return r, err
}
