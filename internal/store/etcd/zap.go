package etcd

import (
	"context"
	"log/slog"
	"strings"
	"sync/atomic"

	"go.uber.org/zap/zapcore"
)

// quiet are warnings of the engine that say nothing to an operator.
var quiet = map[string]bool{
	"Running http and grpc server on single port. This is not recommended for production.": true, // there is no port
	"simple token is not cryptographically signed":                                         true, // its users are not used
	"failed to apply request": true, // a refusal, which its caller gets as an error
}

// logBridge passes what the engine logs, from warnings up, to our logger. A fatal message still ends the process after it:
// the engine has no other way when its disk fails, and going on would break promises.
type logBridge struct {
	log     *slog.Logger
	with    []slog.Attr
	closing *atomic.Bool // what the engine says of its own end is for debugging only
}

func (b logBridge) Enabled(l zapcore.Level) bool { return l >= zapcore.WarnLevel }

func (b logBridge) With(fields []zapcore.Field) zapcore.Core {
	b.with = append(b.with[:len(b.with):len(b.with)], attrs(fields)...)
	return b
}

func (b logBridge) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if !b.Enabled(e.Level) || quiet[e.Message] {
		return ce
	}
	return ce.AddCore(e, b)
}

func (b logBridge) Write(e zapcore.Entry, fields []zapcore.Field) error {
	level := slog.LevelWarn
	switch {
	case b.closing.Load() && e.Level < zapcore.DPanicLevel:
		level = slog.LevelDebug
	case e.Level > zapcore.WarnLevel:
		level = slog.LevelError
	}
	b.log.LogAttrs(context.Background(), level, "state store: "+e.Message, append(b.with[:len(b.with):len(b.with)], attrs(fields)...)...)
	return nil
}

func (b logBridge) Sync() error { return nil }

// longest is how much of one attribute is logged: the engine gives whole requests, of hundreds of keys.
const longest = 200

func attrs(fields []zapcore.Field) []slog.Attr {
	enc := zapcore.NewMapObjectEncoder()
	var out []slog.Attr
	for _, f := range fields {
		f.AddTo(enc)
		if v, ok := enc.Fields[f.Key]; ok {
			if text, ok := v.(string); ok && len(text) > longest {
				v = strings.ToValidUTF8(text[:longest], "") + "..."
			}
			out = append(out, slog.Any(f.Key, v))
		}
	}
	return out
}
