// Package client is the typed Go client of the controller's APIs: the compatible patching API and our own /api/v1. The
// command lines, the end-to-end tests and others use it. It turns every error answer back into a [problem.Error].
//
// A Client is safe for concurrent use. It sets no time limit of its own beyond that of connecting: the context does.
package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/starpatch/starpatch/api"
	"github.com/starpatch/starpatch/problem"
)

// DefaultSocket is where a controller listens for local command lines; the environment variable STARPATCH_SOCKET names
// another place.
const DefaultSocket = "/run/starpatch/controller.sock"

// maxReply is the largest answer that is read, in bytes: 10,000 hosts with long lists fit well.
const maxReply = 256 << 20

// connectTimeout bounds the opening of a connection, so that a controller that is gone is noticed.
const connectTimeout = 5 * time.Second

// Client calls one controller.
type Client struct {
	base string // scheme and authority, without trailing slash
	http *http.Client

	// Trace, when set before the first call, is given the body of every JSON answer.
	Trace func(body []byte)
}

// New returns a client of the controller at base, like http://127.0.0.1:5487. A nil hc means plain defaults.
func New(base string, hc *http.Client) *Client {
	if hc == nil {
		hc = &http.Client{Transport: &http.Transport{DialContext: (&net.Dialer{Timeout: connectTimeout}).DialContext, DisableCompression: true, WriteBufferSize: uploadBuffer}}
	}
	return &Client{base: strings.TrimSuffix(base, "/"), http: hc}
}

// Unix returns a client of the controller behind the unix socket at path.
func Unix(path string) *Client {
	return New("http://controller", &http.Client{Transport: &http.Transport{
		DisableCompression: true,
		WriteBufferSize:    uploadBuffer,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{Timeout: connectTimeout}).DialContext(ctx, "unix", path)
		},
	}})
}

// StatusError is an answer that is neither a success nor a problem document: what the compatible API sends when it
// cannot answer at all. It is the cause of a [problem.Error].
type StatusError struct {
	Status int    // HTTP status
	Body   string // start of the body
}

func (e *StatusError) Error() string {
	return fmt.Sprintf("HTTP status %d: %s", e.Status, strings.TrimSpace(e.Body))
}

// CloseIdle closes connections that no call uses.
func (c *Client) CloseIdle() { c.http.CloseIdleConnections() }

// call sends one request and decodes the JSON of a 2xx answer into reply, which may be nil.
func (c *Client) call(ctx context.Context, method, path string, params url.Values, body io.Reader, contentType string, reply any) error {
	resp, err := c.send(ctx, method, path, params, body, contentType, "application/json")
	if err != nil {
		return err
	}
	defer resp.Body.Close() // read to its end or given up: the error of closing says nothing more
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxReply+1))
	if err != nil {
		return c.unreachable(err)
	}
	if len(text) > maxReply {
		return problem.Errorf(problem.TooLarge, "the controller's answer has more than %d bytes", maxReply)
	}
	if c.Trace != nil {
		c.Trace(text)
	}
	if reply == nil {
		return nil
	}
	if err := json.Unmarshal(text, reply); err != nil {
		return problem.Errorf(problem.Unavailable, "cannot read the controller's answer to %s %s: %w", method, path, err)
	}
	return nil
}

// send returns the answer when its status is 2xx; the caller closes its body. Everything else is an error.
func (c *Client) send(ctx context.Context, method, path string, params url.Values, body io.Reader, contentType, accept string) (*http.Response, error) {
	target := c.base + path
	if len(params) > 0 {
		target += "?" + params.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, method, target, body)
	if err != nil {
		return nil, problem.Errorf(problem.Invalid, "cannot ask the controller at %s: %w", c.base, err)
	}
	req.Header.Set("Accept", accept)
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.unreachable(err)
	}
	if resp.StatusCode/100 == 2 {
		return resp, nil
	}
	defer resp.Body.Close() // only the start of an error body is wanted
	text, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err != nil {
		return nil, c.unreachable(err)
	}
	if c.Trace != nil {
		c.Trace(text)
	}
	return nil, refusal(resp, text)
}

// refusal turns an error answer into a problem.Error.
func refusal(resp *http.Response, text []byte) error {
	cause := &StatusError{Status: resp.StatusCode, Body: string(text[:min(len(text), 512)])}
	if strings.HasPrefix(resp.Header.Get("Content-Type"), "application/problem+json") {
		var p api.Problem
		if err := json.Unmarshal(text, &p); err == nil && p.Detail != "" {
			return &problem.Error{Kind: problem.Kind(p.Kind), Msg: p.Detail, Err: cause}
		}
	}
	kind := problem.Internal
	switch resp.StatusCode {
	case http.StatusUnauthorized:
		kind = problem.Unauthorized
	case http.StatusForbidden:
		kind = problem.Forbidden
	case http.StatusNotFound:
		kind = problem.NotFound
	case http.StatusMethodNotAllowed, http.StatusNotAcceptable, http.StatusBadRequest:
		kind = problem.Invalid
	case http.StatusRequestEntityTooLarge:
		kind = problem.TooLarge
	case http.StatusServiceUnavailable:
		kind = problem.Unavailable
	}
	msg := cause.Error()
	var e api.ErrorOnly
	if err := json.Unmarshal(text, &e); err == nil && e.Error != "" {
		msg = strings.TrimSuffix(e.Error, "\n")
	}
	return &problem.Error{Kind: kind, Msg: msg, Err: cause}
}

// unreachable says that the controller did not answer. The caller's own cancellation is passed on as it is.
func (c *Client) unreachable(err error) error {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	if e, ok := errors.AsType[*problem.Error](err); ok {
		return e // an upload's own reader failed
	}
	if op, ok := errors.AsType[*net.OpError](err); ok {
		return &problem.Error{Kind: problem.Unavailable, Msg: "cannot reach the controller: " + op.Error(), Err: err}
	}
	return &problem.Error{Kind: problem.Unavailable, Msg: "lost the connection to the controller: " + err.Error(), Err: err}
}

func (c *Client) get(ctx context.Context, path string, params url.Values, reply any) error {
	return c.call(ctx, http.MethodGet, path, params, nil, "", reply)
}

func (c *Client) post(ctx context.Context, path string, params url.Values, reply any) error {
	return c.call(ctx, http.MethodPost, path, params, nil, "", reply)
}

func (c *Client) postJSON(ctx context.Context, path string, body, reply any) error {
	text, err := json.Marshal(body)
	if err != nil {
		return fmt.Errorf("cannot encode a request: %w", err)
	}
	return c.call(ctx, http.MethodPost, path, nil, bytes.NewReader(text), "application/json", reply)
}

// segments joins escaped path segments below a route of the compatible API.
func segments(route string, args ...string) string {
	var b strings.Builder
	b.WriteString("/v1/")
	b.WriteString(route)
	for _, a := range args {
		b.WriteByte('/')
		b.WriteString(url.PathEscape(a))
	}
	return b.String()
}
