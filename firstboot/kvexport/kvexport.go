// Package kvexport is the export of Consul's KV. Consul's state carries the
// identity of the server that it was copied from, so become empties it; from then
// until the export is retired, it may be all that there is of people's contacts: it
// is completed, and never replaced. What is on disk, by its state:
//
//	state     the file  journal                      Consul's folder
//	none      -         -                            the KV
//	exported  there     -                            the KV, and what came since
//	emptying  there     stateRemoved running         a part of its state: no KV
//	emptied   there     stateRemoved done            nothing, or what XiVO stored since
//	restored  there     settle.kv-import done        the KV
//	retired   -         settle.kv-retire done        the KV
//	lost      -         stateRemoved                 nothing, or what XiVO stored since
//
// Lost is a file that somebody removed: nothing goes on without a person.
//
// An image that was sealed has the file, no journal, and in its manifest the file's
// sum: exported. It wraps consul's Export and Import; node, become and sealing use
// it.
package kvexport

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/consul"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/engine"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/files"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/limit"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/manifest"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
)

// File is the export, for root alone: it holds private contacts and live tokens.
const File = platform.StateDir + "/kv.json"

// LiveTokens is where xivo-auth keeps its tokens in the KV, each below its own name. Two
// servers must not share them.
const LiveTokens = "xivo/xivo-auth/"

// Names of the steps whose stamps tell the state, in the phases become and settle.
const (
	ExportStep = "kv-export"
	EmptyStep  = "consul-state"
	ImportStep = "kv-import"
	RetireStep = "kv-retire"
)

const (
	// stateRemoved is stamped right before the first thing of Consul's state is
	// removed, and done after the last.
	stateRemoved = "become.consul-gone"
	imported     = "settle." + ImportStep
	retired      = "settle." + RetireStep
	settled      = "settle"
)

// State is where the KV is; see the package's table.
type State string

const (
	None     State = "none"
	Exported State = "exported"
	Emptying State = "emptying"
	Emptied  State = "emptied"
	Restored State = "restored"
	Retired  State = "retired"
	Lost     State = "lost"
)

// onlyCopy says that Consul cannot be trusted to hold what the export does: the
// export is completed, and never replaced.
func (s State) onlyCopy() bool { return s == Emptying || s == Emptied || s == Restored }

// stateOf tells the state from what is on disk.
func stateOf(file bool, j engine.Journal) State {
	exported := map[bool]State{true: Exported, false: None}[file]
	switch {
	case j == nil || !j.Begun(stateRemoved):
		return exported
	case j.Done(retired) || j.Done(settled):
		if file {
			return Exported // made since, by a seal of a node
		}
		return Retired
	case j.Done(imported):
		if file {
			return Restored
		}
		return Retired // cut off before that was stamped
	case !file:
		return Lost
	case j.Done(stateRemoved):
		return Emptied
	}
	return Emptying
}

// Surroundings is what the export needs of the machine that it is on.
type Surroundings struct {
	// Journal returns nil where there is none.
	Journal func() engine.Journal
	// SealedSum is the SHA-256 of the export that a seal put into the image; "" for
	// none.
	SealedSum func() string
	// Runs says whether Consul does; Consul is the client of one that runs.
	Runs   func(context.Context) (bool, error)
	Consul func(context.Context) (*consul.Client, error)
}

// Export is the export of one server's KV, wherever the KV is now.
type Export struct {
	platform *platform.Platform
	around   Surroundings
	fresh    bool // made or completed by this process
}

// New reads nothing yet.
func New(p *platform.Platform, s Surroundings) *Export { return &Export{platform: p, around: s} }

// State reads where the KV is.
func (e *Export) State() (State, error) {
	_, err := os.Stat(e.file())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("the export of Consul's KV: %w", err)
	}
	return stateOf(err == nil, e.around.Journal()), nil
}

// errLost is what to do about a lost export.
func (e *Export) errLost() error {
	return fmt.Errorf(`the state of Consul was removed, and %[1]s, which had its KV, is gone: put it back from a backup; to go on with what Consul holds now, write {"format": 1, "entries": []} into %[1]s`, e.file())
}

// Fresh says that this process made or completed the export.
func (e *Export) Fresh() bool { return e.fresh }

func (e *Export) file() string { return e.platform.Path(File) }

// exportTime bounds one export.
const exportTime = time.Minute

// Now exports the KV from Consul where it runs, else from its files at rest.
func (e *Export) Now(ctx context.Context) error {
	up, err := e.around.Runs(ctx)
	switch {
	case err != nil:
		return err
	case up:
		return e.FromConsul(ctx)
	}
	return e.AtRest(ctx)
}

// FromConsul exports the KV of the Consul that runs.
func (e *Export) FromConsul(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, exportTime)
	defer cancel()
	c, err := e.around.Consul(ctx)
	if err != nil {
		return err
	}
	return e.Put(func(file string) error { return c.Export(ctx, file) })
}

// AtRest exports the KV of a Consul that does not run, from its files.
func (e *Export) AtRest(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, exportTime)
	defer cancel()
	return e.Put(func(file string) error { return consul.ExportAtRest(ctx, e.platform, file) })
}

// Put puts what export writes in the place of an older export, which stays until
// then: it may be all that there is. Where it is, for sure, it is completed by what
// was stored since, and keeps what it has.
func (e *Export) Put(export func(file string) error) error {
	state, err := e.State()
	if err == nil && state == Lost {
		err = e.errLost()
	}
	if err != nil {
		return err
	}
	file, beside := e.file(), e.file()+".new"
	if err := os.Remove(beside); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := export(beside); err != nil {
		return err
	}
	e.fresh = true
	if state.onlyCopy() {
		return errors.Join(consul.CompleteExport(file, beside), os.Remove(beside))
	}
	return os.Rename(beside, file)
}

// UpToDate is an export that holds what Consul does, or did before its state was
// removed; how makes one.
func (e *Export) UpToDate(how func(context.Context) error) engine.Resource {
	return engine.New(func(context.Context) ([]string, error) {
		state, err := e.State()
		if err != nil {
			return nil, err
		}
		switch {
		case state == Lost:
			return nil, e.errLost()
		case state == None || state == Retired:
			return []string{"Consul's KV was not exported yet"}, nil
		case e.fresh || state == Emptying:
			return nil, nil
		}
		may, err := e.consulMayHoldMore()
		if err != nil || !may {
			return nil, err
		}
		return []string{"Consul may hold more than the export that an earlier run left"}, nil
	}, how)
}

// consulMayHoldMore says whether Consul can have run since the export was made.
func (e *Export) consulMayHoldMore() (bool, error) {
	content, err := limit.ReadFile(e.file(), limit.KV)
	if err != nil {
		return false, err
	}
	// The seal emptied Consul: what it holds since is not the KV.
	if e.around.SealedSum() == manifest.Sum(content) {
		return false, nil
	}
	for _, needed := range []string{platform.ConsulDataDir + "/raft", platform.CertificateFile} {
		if _, err := os.Stat(e.platform.Path(needed)); errors.Is(err, fs.ErrNotExist) {
			return false, nil
		} else if err != nil {
			return false, err
		}
	}
	return true, nil
}

// NoConsulState is Consul without its old state. It refuses as long as there is no
// export, or a process has files of that state open: what Consul writes after the
// export is not in it.
func (e *Export) NoConsulState() engine.Resource {
	emptied := consul.NoState(e.platform)
	return engine.New(emptied.Diff, func(ctx context.Context) error {
		if _, err := os.Stat(e.file()); err != nil {
			return fmt.Errorf("the KV's export is missing, so Consul's state stays: %w", err)
		}
		if err := consul.StateInUse(e.platform); err != nil {
			return err
		}
		j := e.around.Journal()
		if j == nil { // a server that is sealed and was no node
			return emptied.Apply(ctx)
		}
		// What is taken out again is to be put back again.
		if err := errors.Join(engine.Redo(j, imported), j.Stamp(stateRemoved, engine.Running)); err != nil {
			return err
		}
		if err := emptied.Apply(ctx); err != nil {
			return err
		}
		return j.Stamp(stateRemoved, engine.Done)
	})
}

// Restore is the export being back in Consul, but what is below these prefixes.
func (e *Export) Restore(c *consul.Client, skip ...string) engine.Resource {
	return c.Import(e.file(), skip...)
}

// NoExport is no copy of the KV being left on the disk: it holds private contacts,
// and would be in the way of the next export. It refuses as long as only the export
// has the KV.
func (e *Export) NoExport() engine.Resource {
	absent := files.Absent(e.platform.Root, File+"*", consul.AtRestDir)
	return engine.New(absent.Diff, func(ctx context.Context) error {
		switch state, err := e.State(); {
		case err != nil:
			return err
		case state == Emptying || state == Emptied:
			return fmt.Errorf("the KV is not back in Consul, so its export %s stays", e.file())
		}
		return absent.Apply(ctx)
	})
}

// Inherited is the stamp that the journal of a copy takes over from the original's:
// where only the export had the original's KV, the copy has it there only, too.
// "": none.
func Inherited(original engine.Journal) (id string) {
	if original.Begun(stateRemoved) && !original.Done(retired) {
		return stateRemoved
	}
	return ""
}

// RedoneSteps are those of a become that was cut off which are done once more, as the
// journal has them: Consul may have run since, and hold what the export does not.
var RedoneSteps = []string{"become." + ExportStep, "become." + EmptyStep}
