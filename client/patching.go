package client

import (
	"context"
	"io"
	"mime/multipart"
	"net/http"
	"net/url"
	"strconv"
	"sync/atomic"

	"github.com/starpatch/starpatch/api"
)

// The calls of the compatible patching API (/v1). A refusal is a normal answer there: look at the reply's Error.

// All in place of a patch ID means every available patch.
const All = "--all"

// ApplyOptions are the parameters of Apply.
type ApplyOptions = api.ApplyOptions

// RemoveOptions are the parameters of Remove.
type RemoveOptions = api.RemoveOptions

func yes(params map[string]bool) url.Values {
	v := url.Values{}
	for name, on := range params {
		if on {
			v.Set(name, "yes")
		}
	}
	return v
}

// Query lists patches: show is all, available, applied or committed; an empty release means every one.
func (c *Client) Query(ctx context.Context, show, release string) (api.Query, error) {
	v := url.Values{"show": {show}}
	if release != "" {
		v.Set("release", release)
	}
	var r api.Query
	err := c.get(ctx, segments("query"), v, &r)
	return r, err
}

// Show returns the details of patches.
func (c *Client) Show(ctx context.Context, ids ...string) (api.Show, error) {
	var r api.Show
	err := c.post(ctx, segments("show", ids...), nil, &r)
	return r, err
}

// Upload sends one patch file, read from body, under the file name as the operator typed it. progress, when not nil, is
// called with the bytes read from body so far, from one goroutine.
func (c *Client) Upload(ctx context.Context, filename string, body io.Reader, progress func(sent int64)) (api.Messages, error) {
	pr, pw := io.Pipe()
	form := multipart.NewWriter(pw)
	var failed atomic.Pointer[error]
	written := make(chan struct{})
	go func() {
		defer close(written)
		err := writeForm(form, filename, &meter{r: body, progress: progress})
		if err != nil {
			failed.Store(&err)
		}
		pw.CloseWithError(err) // always nil, says its documentation
	}()
	var r api.Messages
	err := c.call(ctx, http.MethodPost, segments("upload"), nil, pr, form.FormDataContentType(), &r)
	pr.CloseWithError(errUploadEnded) // the answer may have come before the end of the file
	<-written
	if werr := failed.Load(); err != nil && werr != nil && *werr != errUploadEnded && ctx.Err() == nil {
		return r, *werr
	}
	return r, err
}

// errUploadEnded stops the writer of a form whose answer has come.
var errUploadEnded = io.ErrClosedPipe

// uploadBuffer is how many bytes of a file go out at a time.
const uploadBuffer = 256 << 10

func writeForm(form *multipart.Writer, filename string, body io.Reader) error {
	part, err := form.CreateFormFile("file", filename)
	if err != nil {
		return err
	}
	if _, err := io.CopyBuffer(part, struct{ io.Reader }{body}, make([]byte, uploadBuffer)); err != nil {
		return err
	}
	return form.Close()
}

// meter counts what is read through it.
type meter struct {
	r        io.Reader
	n        int64
	progress func(int64)
}

func (m *meter) Read(p []byte) (int, error) {
	n, err := m.r.Read(p)
	m.n += int64(n)
	if m.progress != nil && n > 0 {
		m.progress(m.n)
	}
	return n, err
}

// UploadDir has the controller upload every patch file in folders of its own; no controller of ours allows it.
func (c *Client) UploadDir(ctx context.Context, dirs ...string) (api.Messages, error) {
	v := url.Values{}
	for i, d := range dirs {
		v.Set("dir"+strconv.Itoa(i), d)
	}
	var r api.Messages
	err := c.post(ctx, segments("upload_dir"), v, &r)
	return r, err
}

// Apply puts patches into the update repository.
func (c *Client) Apply(ctx context.Context, ids []string, o ApplyOptions) (api.Messages, error) {
	v := yes(map[string]bool{"skip-semantic": o.SkipSemantic})
	if o.Release != "" {
		v.Set("release", o.Release)
	}
	var r api.Messages
	err := c.post(ctx, segments("apply", ids...), v, &r)
	return r, err
}

// Remove takes patches out of the update repository.
func (c *Client) Remove(ctx context.Context, ids []string, o RemoveOptions) (api.Messages, error) {
	v := yes(map[string]bool{"removeunremovable": o.RemoveUnremovable, "skipappcheck": o.SkipAppCheck, "skip-semantic": o.SkipSemantic})
	var r api.Messages
	err := c.post(ctx, segments("remove", ids...), v, &r)
	return r, err
}

// Delete forgets patches that are not in the update repository.
func (c *Client) Delete(ctx context.Context, ids []string) (api.Messages, error) {
	var r api.Messages
	err := c.post(ctx, segments("delete", ids...), nil, &r)
	return r, err
}

// QueryHosts lists every host with what it last reported, sorted by name.
func (c *Client) QueryHosts(ctx context.Context) (api.QueryHosts, error) {
	var r api.QueryHosts
	err := c.get(ctx, segments("query_hosts"), nil, &r)
	return r, err
}

// HostInstallAsync asks for an installation on a host, by name or IP address, and returns when the request is saved.
func (c *Client) HostInstallAsync(ctx context.Context, host string, force bool) (api.Messages, error) {
	args := []string{host}
	if force {
		args = append(args, "force")
	}
	var r api.Messages
	err := c.post(ctx, segments("host_install_async", args...), nil, &r)
	return r, err
}

// DropHost forgets a host, by name or IP address, until its agent connects again.
func (c *Client) DropHost(ctx context.Context, host string) (api.Messages, error) {
	var r api.Messages
	err := c.post(ctx, segments("drop_host", host), nil, &r)
	return r, err
}

// WhatRequires says which patches require each of the given ones.
func (c *Client) WhatRequires(ctx context.Context, ids ...string) (api.Messages, error) {
	var r api.Messages
	err := c.get(ctx, segments("what_requires", ids...), nil, &r)
	return r, err
}

// QueryDependencies returns the given patches and what they require, all the way down when recursive.
func (c *Client) QueryDependencies(ctx context.Context, recursive bool, ids ...string) (api.Dependencies, error) {
	var r api.Dependencies
	err := c.get(ctx, segments("query_dependencies", ids...), yes(map[string]bool{"recursive": recursive}), &r)
	return r, err
}

// IsApplied says whether every one of the patches has patch state Applied.
func (c *Client) IsApplied(ctx context.Context, ids ...string) (bool, error) {
	var r bool
	err := c.post(ctx, segments("is_applied", ids...), nil, &r)
	return r, err
}

// IsAvailable says whether every one of the patches has patch state Available.
func (c *Client) IsAvailable(ctx context.Context, ids ...string) (bool, error) {
	var r bool
	err := c.post(ctx, segments("is_available", ids...), nil, &r)
	return r, err
}
