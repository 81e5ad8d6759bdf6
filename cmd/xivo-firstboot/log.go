package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/engine"
)

// newLogger writes JSON under systemd, and plain lines for a person.
func newLogger(w io.Writer) *slog.Logger {
	if os.Getenv("JOURNAL_STREAM") != "" || os.Getenv("INVOCATION_ID") != "" {
		return slog.New(slog.NewJSONHandler(w, nil))
	}
	return slog.New(&lineHandler{w: w})
}

// progress logs each step as `phase n/N name (took)`, and what it changed, or why
// it was skipped.
func progress(log *slog.Logger) engine.Progress {
	return func(e engine.Event) {
		took := e.Took.Round(time.Millisecond)
		switch {
		case e.Skipped != "":
			log.Info(fmt.Sprintf("%s %d/%d %s: skipped", e.Phase, e.N, e.Of, e.Step), "because", e.Skipped)
		case e.Err != nil:
			log.Error(fmt.Sprintf("%s %d/%d %s (%s)", e.Phase, e.N, e.Of, e.Step, took), "error", e.Err)
		case len(e.Changes) > 0:
			log.Info(fmt.Sprintf("%s %d/%d %s (%s)", e.Phase, e.N, e.Of, e.Step, took), "changed", strings.Join(e.Changes, "; "))
		default:
			log.Debug(fmt.Sprintf("%s %d/%d %s (%s)", e.Phase, e.N, e.Of, e.Step, took))
		}
	}
}

// changesOnly is progress without the steps that were skipped: of passes that are
// repeated again and again.
func changesOnly(p engine.Progress) engine.Progress {
	return func(e engine.Event) {
		if e.Skipped == "" {
			p(e)
		}
	}
}

// lineHandler prints `message: value` lines: a terminal needs neither time nor
// level, and a test can read them.
type lineHandler struct {
	mu sync.Mutex
	w  io.Writer
}

func (h *lineHandler) Enabled(_ context.Context, l slog.Level) bool { return l >= slog.LevelInfo }
func (h *lineHandler) WithAttrs([]slog.Attr) slog.Handler           { return h }
func (h *lineHandler) WithGroup(string) slog.Handler                { return h }

func (h *lineHandler) Handle(_ context.Context, r slog.Record) error {
	var b strings.Builder
	if r.Level >= slog.LevelWarn {
		b.WriteString(strings.ToLower(r.Level.String()) + ": ")
	}
	b.WriteString(r.Message)
	r.Attrs(func(a slog.Attr) bool {
		fmt.Fprintf(&b, "  %s: %v", a.Key, a.Value.Resolve())
		return true
	})
	h.mu.Lock()
	defer h.mu.Unlock()
	_, err := fmt.Fprintln(h.w, b.String())
	return err
}
