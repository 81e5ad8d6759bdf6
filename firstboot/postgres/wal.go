package postgres

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/engine"
)

// page is how many bytes PostgreSQL writes to its log of changes at once.
const page = 8192

// fewChanges is how many bytes of changes may stand before the last checkpoint in its
// segment: those of the checkpoints themselves.
const fewChanges = 8 * page

// NoOldWAL is a server that is stopped, and whose log of changes (WAL) holds nothing
// but its last checkpoint: the log holds whole pages of tables as they were, in the
// segments that it used, in those that it keeps to write over, and after the end of
// the current one. The cluster stays as it is: the server reads from the last
// checkpoint on, and what is after that it takes for the end, as it does in a new
// segment.
func (c Cluster) NoOldWAL() engine.Resource { return engine.New(c.oldWAL, c.removeOldWAL) }

func (c Cluster) oldWAL(ctx context.Context) ([]string, error) {
	if c.runs() {
		return []string{"PostgreSQL runs, and its log holds changes"}, nil
	}
	last, err := c.lastCheckpoint(ctx)
	if err != nil {
		return nil, err
	}
	var diff []string
	old, err := c.otherSegments(last)
	if len(old) > 0 {
		diff = append(diff, fmt.Sprintf("segments of the log that are not needed (%d)", len(old)))
	}
	if last.offset > fewChanges {
		diff = append(diff, "changes before the last checkpoint")
	}
	if err != nil {
		return diff, err
	}
	dirty, err := c.afterEnd(last, false)
	if dirty {
		diff = append(diff, "bytes after the end of the log")
	}
	return diff, err
}

func (c Cluster) removeOldWAL(ctx context.Context) error {
	last, err := c.stopped(ctx)
	// The server writes by itself, too, and where its last checkpoint comes to stand is
	// chance.
	for try := 1; err == nil && !last.alone(); try++ {
		if try == stops {
			return errors.New("postgres: something was still writing each time when the server was stopped: end what asks it, and seal again")
		}
		if err := c.Start(ctx); err != nil {
			return fmt.Errorf("postgres: start it again: %w", err)
		}
		last, err = c.stopped(ctx)
	}
	if err != nil {
		return err
	}
	old, err := c.otherSegments(last)
	for _, name := range old {
		err = errors.Join(err, os.Remove(name))
	}
	if err != nil {
		return fmt.Errorf("postgres: empty the log: %w", err)
	}
	_, err = c.afterEnd(last, true)
	return err
}

// stops is how often the server is stopped before that is given up.
const stops = 5

// alone says whether next to nothing stands before the checkpoint in its segment, and
// all of it on one page.
func (p checkpoint) alone() bool {
	return p.offset <= fewChanges && p.offset%page <= page-checkpointRecord
}

// stopped is where the last checkpoint of the server stands, after it was stopped where
// it runs.
func (c Cluster) stopped(ctx context.Context) (checkpoint, error) {
	if c.runs() {
		if err := c.stopAtCheckpoint(ctx); err != nil {
			return checkpoint{}, err
		}
	}
	return c.lastCheckpoint(ctx)
}

// stopAtCheckpoint begins a new segment, in which there is no more than checkpoints
// when the server ends.
func (c Cluster) stopAtCheckpoint(ctx context.Context) error {
	version, err := c.Super(ctx, "postgres", "SHOW server_version_num")
	if err != nil {
		return err
	}
	next := "SELECT pg_switch_wal()"
	if number, err := strconv.Atoi(version); err != nil {
		return fmt.Errorf("postgres: its version is %q: %w", version, err)
	} else if number < 100000 {
		next = "SELECT pg_switch_xlog()"
	}
	for _, sql := range []string{"CHECKPOINT", next, "CHECKPOINT"} {
		if _, err := c.Super(ctx, "postgres", sql); err != nil {
			return err
		}
	}
	if err := c.Stop(ctx); err != nil {
		return fmt.Errorf("postgres: stop: %w", err)
	}
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for c.runs() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("postgres: it was stopped and still runs (%s is there): %w", c.pidFile(), ctx.Err())
		}
	}
	return nil
}

func (c Cluster) pidFile() string { return filepath.Join(c.Data, "postmaster.pid") }

func (c Cluster) runs() bool {
	_, err := os.Stat(c.pidFile())
	return !errors.Is(err, fs.ErrNotExist)
}

// checkpoint is where the last one stands.
type checkpoint struct {
	segment string // the file's name
	size    int64  // of a segment
	offset  int64  // in the segment
}

// checkpointRecord is more than such a record has in any version.
const checkpointRecord = 512

// lastCheckpoint is that of a server which was stopped in good order.
func (c Cluster) lastCheckpoint(ctx context.Context) (checkpoint, error) {
	out, err := c.Control(ctx)
	if err != nil {
		return checkpoint{}, err
	}
	said := map[string]string{}
	for line := range strings.Lines(out) {
		key, value, _ := strings.Cut(line, ":")
		said[key] = strings.TrimSpace(value)
	}
	if state := said["Database cluster state"]; state != "shut down" {
		return checkpoint{}, fmt.Errorf("postgres: the state of %s is %q, not \"shut down\": start PostgreSQL, see its log, and seal again", c.Data, state)
	}
	high, low, _ := strings.Cut(said["Latest checkpoint location"], "/")
	log, logErr := strconv.ParseInt(high, 16, 64)
	at, atErr := strconv.ParseInt(low, 16, 64)
	timeline, lineErr := strconv.ParseInt(said["Latest checkpoint's TimeLineID"], 10, 64)
	size, sizeErr := strconv.ParseInt(said["Bytes per WAL segment"], 10, 64)
	if err := errors.Join(logErr, atErr, lineErr, sizeErr); err != nil || size < page {
		return checkpoint{}, fmt.Errorf("postgres: where the last checkpoint is: pg_controldata says %q", out)
	}
	return checkpoint{segment: fmt.Sprintf("%08X%08X%08X", timeline, log, at/size), size: size, offset: at % size}, nil
}

// wal is the folder of the log.
func (c Cluster) wal() string {
	if before10 := filepath.Join(c.Data, "pg_xlog"); exists(before10) {
		return before10
	}
	return filepath.Join(c.Data, "pg_wal")
}

func exists(name string) bool {
	_, err := os.Stat(name)
	return err == nil
}

// segmentName matches the segments, whole and in the making, and what the archiver
// is told of them.
var segmentName = regexp.MustCompile(`^([0-9A-F]{24}(\.partial|\.ready|\.done)?|xlogtemp\..*)$`)

// otherSegments are all but the one with the last checkpoint, without which the
// server does not start.
func (c Cluster) otherSegments(last checkpoint) ([]string, error) {
	if _, err := os.Stat(filepath.Join(c.wal(), last.segment)); err != nil {
		return nil, fmt.Errorf("postgres: the segment with the last checkpoint: %w", err)
	}
	var old []string
	for _, folder := range []string{c.wal(), filepath.Join(c.wal(), "archive_status")} {
		entries, err := os.ReadDir(folder)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("postgres: list the log: %w", err)
		}
		for _, e := range entries {
			if e.Type().IsRegular() && e.Name() != last.segment && segmentName.MatchString(e.Name()) {
				old = append(old, filepath.Join(folder, e.Name()))
			}
		}
	}
	return old, nil
}

// afterEnd says whether something stands after the page with the last checkpoint, or
// writes zeros there, as in a segment that was never written.
func (c Cluster) afterEnd(last checkpoint, erase bool) (dirty bool, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("postgres: the end of the log: %w", err)
		}
	}()
	f, err := os.OpenFile(filepath.Join(c.wal(), last.segment), os.O_RDWR, 0)
	if err != nil {
		return false, err
	}
	defer f.Close()
	end := (last.offset/page + 1) * page
	rest := make([]byte, last.size-end)
	if _, err := f.ReadAt(rest, end); err != nil && err != io.EOF {
		return false, err
	}
	for _, b := range rest {
		dirty = dirty || b != 0
	}
	if !erase || !dirty {
		return dirty, nil
	}
	clear(rest)
	if _, err := f.WriteAt(rest, end); err != nil {
		return dirty, err
	}
	return dirty, f.Sync()
}
