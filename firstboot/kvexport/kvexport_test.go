package kvexport_test

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/consul"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/engine"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/kvexport"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/manifest"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
)

// The stamps that tell the state.
const (
	removed  = "become.consul-gone"
	imported = "settle.kv-import"
	retired  = "settle.kv-retire"
	settled  = "settle"
)

// Where a Consul of these tests has its KV, and what a half removed one has left.
const (
	raft = platform.ConsulDataDir + "/raft/raft.db"
	half = platform.ConsulDataDir + "/raft/peers.json"
)

// journal is one in memory, and may be cut off before a stamp.
type journal struct {
	stamps map[string]engine.State
	before func(id string, s engine.State) error
}

func (j *journal) Done(id string) bool  { return j.stamps[id] == engine.Done }
func (j *journal) Begun(id string) bool { return j.stamps[id] != "" }
func (j *journal) Stamp(id string, s engine.State) error {
	if j.before != nil {
		if err := j.before(id, s); err != nil {
			return err
		}
	}
	j.stamps[id] = s
	return nil
}

// kv is what a Consul or an export holds, by key.
type kv map[string]string

// disk is what a machine has on its disk, as far as the export goes.
type disk struct {
	File   kv // nil: there is none
	Stamps map[string]engine.State
	Consul kv   // nil: there is no raft log
	Half   bool // a part of Consul's state, but no KV
}

// machine is one with such a disk. Consul's raft log is a text of its keys.
type machine struct {
	*kvexport.Export
	platform *platform.Platform
	journal  *journal // nil on a machine that is sealed
	sum      string
}

func (d disk) machine(t testing.TB) *machine {
	t.Helper()
	m := &machine{platform: &platform.Platform{Root: t.TempDir()}, journal: &journal{stamps: maps.Clone(d.Stamps)}}
	if m.journal.stamps == nil {
		m.journal.stamps = map[string]engine.State{}
	}
	m.Export = kvexport.New(m.platform, kvexport.Surroundings{
		Journal: func() engine.Journal {
			if m.journal == nil {
				return nil
			}
			return m.journal
		},
		SealedSum: func() string { return m.sum },
		Consul:    func(context.Context) (*consul.Client, error) { return nil, errors.New("no Consul answers") },
	})
	m.write(t, platform.CertificateFile, "a certificate")
	m.write(t, platform.ConsulDataDir+"/master_token", "a token")
	m.write(t, platform.StateDir+"/document.yml", "a document")
	if d.File != nil {
		m.write(t, kvexport.File, d.File.export())
	}
	if d.Consul != nil {
		m.write(t, raft, d.Consul.export())
	}
	if d.Half {
		m.write(t, half, "[]")
	}
	return m
}

func (m *machine) write(t testing.TB, path, content string) {
	t.Helper()
	file := m.platform.Path(path)
	if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o700), os.WriteFile(file, []byte(content), 0o600)); err != nil {
		t.Fatal(err)
	}
}

// look reads the machine's disk. What is not part of it must be as it was.
func (m *machine) look(t testing.TB) disk {
	t.Helper()
	d := disk{File: m.read(t, kvexport.File), Consul: m.read(t, raft), Half: m.read(t, half) != nil}
	if m.journal != nil {
		d.Stamps = m.journal.stamps
	}
	var more []string
	for _, dir := range []string{platform.StateDir, platform.ConsulDataDir} {
		entries, err := os.ReadDir(m.platform.Path(dir))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if !(e.IsDir() && dir == platform.ConsulDataDir) && e.Name() != filepath.Base(kvexport.File) {
				more = append(more, e.Name())
			}
		}
	}
	if diff := cmp.Diff([]string{"document.yml", "master_token"}, more); diff != "" {
		t.Errorf("beside what is the export's or Consul's (-want +got):\n%s", diff)
	}
	return d
}

// read reads an export, or what a Consul of these tests has.
func (m *machine) read(t testing.TB, path string) kv {
	t.Helper()
	raw, err := os.ReadFile(m.platform.Path(path))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	if path == half {
		return kv{}
	}
	var doc struct {
		Entries []struct {
			Key   string `json:"key"`
			Value []byte `json:"value"`
		} `json:"entries"`
	}
	if err := json.Unmarshal(raw, &doc); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	held := kv{}
	for _, e := range doc.Entries {
		held[e.Key] = string(e.Value)
	}
	return held
}

// export is the text of an export.
func (held kv) export() string {
	type entry struct {
		Key   string `json:"key"`
		Value []byte `json:"value"`
		Flags int    `json:"flags"`
	}
	doc := struct {
		Format  int     `json:"format"`
		Entries []entry `json:"entries"`
	}{1, []entry{}}
	for _, key := range slices.Sorted(maps.Keys(held)) {
		doc.Entries = append(doc.Entries, entry{key, []byte(held[key]), 0})
	}
	raw, err := json.Marshal(doc)
	if err != nil {
		panic(err)
	}
	return string(raw)
}

// exported exports what this machine's Consul has.
func (m *machine) exported(context.Context) error {
	return m.Put(func(file string) error {
		raw, err := os.ReadFile(m.platform.Path(raft))
		if err != nil {
			return err
		}
		return os.WriteFile(file, raw, 0o600)
	})
}

// restored puts back what the file has and Consul has not.
func (m *machine) restored() engine.Resource {
	return engine.New(func(context.Context) ([]string, error) {
		raw, err := os.ReadFile(m.platform.Path(kvexport.File))
		if err != nil {
			return nil, err
		}
		if have, err := os.ReadFile(m.platform.Path(raft)); err == nil && string(have) == string(raw) {
			return nil, nil
		}
		return []string{"it is not back"}, nil
	}, func(context.Context) error {
		raw, err := os.ReadFile(m.platform.Path(kvexport.File))
		return errors.Join(err, os.MkdirAll(filepath.Dir(m.platform.Path(raft)), 0o700), os.WriteFile(m.platform.Path(raft), raw, 0o600))
	})
}

// phases are become and settle, as far as the export goes.
func (m *machine) phases() (become, settle engine.Phase[*machine]) {
	step := func(name string, r func() engine.Resource) engine.Step[*machine] {
		return engine.Step[*machine]{Name: name, Text: name, Open: func(context.Context, *machine) (engine.Resource, error) { return r(), nil }}
	}
	become = engine.Phase[*machine]{Name: "become", Once: true, Steps: []engine.Step[*machine]{
		step(kvexport.ExportStep, func() engine.Resource { return m.UpToDate(m.exported) }),
		step(kvexport.EmptyStep, m.NoConsulState),
	}}
	settle = engine.Phase[*machine]{Name: "settle", Once: true, Steps: []engine.Step[*machine]{
		step(kvexport.ImportStep, m.restored),
		step(kvexport.RetireStep, m.NoExport),
	}}
	return become, settle
}

// The machines of each state.
var (
	old, since = kv{"a contact": "one"}, kv{"a contact": "two", "a later one": "two"}
	both       = kv{"a contact": "one", "a later one": "two"}

	states = map[kvexport.State]disk{
		kvexport.None:     {Consul: since},
		kvexport.Exported: {File: old, Consul: since},
		kvexport.Emptying: {File: old, Stamps: stamps(removed, engine.Running), Half: true},
		kvexport.Emptied:  {File: old, Stamps: stamps(removed, engine.Done)},
		kvexport.Restored: {File: old, Stamps: stamps(removed, engine.Done, imported, engine.Done), Consul: since},
		kvexport.Retired:  {Stamps: stamps(removed, engine.Done, imported, engine.Done, retired, engine.Done), Consul: since},
	}
)

func stamps(pairs ...any) map[string]engine.State {
	out := map[string]engine.State{}
	for i := 0; i < len(pairs); i += 2 {
		out[pairs[i].(string)] = pairs[i+1].(engine.State)
	}
	return out
}

func (d disk) with(change func(*disk)) disk {
	d.Stamps = maps.Clone(d.Stamps)
	if d.Stamps == nil {
		d.Stamps = map[string]engine.State{}
	}
	change(&d)
	return d
}

func TestTheStateIsThatOfTheDisk(t *testing.T) {
	running, done := engine.Running, engine.Done
	for _, c := range []struct {
		name   string
		stamps map[string]engine.State
		file   kvexport.State // with the file
		none   kvexport.State // without it
	}{
		{"nothing was begun", nil, kvexport.Exported, kvexport.None},
		{"it was exported", stamps("become.kv-export", done, "become.consul-state", running), kvexport.Exported, kvexport.None},
		{"Consul's state is being removed", stamps(removed, running), kvexport.Emptying, kvexport.Lost},
		{"it was removed", stamps(removed, done), kvexport.Emptied, kvexport.Lost},
		{"the KV is being put back", stamps(removed, done, imported, running), kvexport.Emptied, kvexport.Lost},
		{"the KV is back", stamps(removed, done, imported, done), kvexport.Restored, kvexport.Retired},
		{"the export is being removed", stamps(removed, done, imported, done, retired, running), kvexport.Restored, kvexport.Retired},
		{"the export was removed", stamps(removed, done, imported, done, retired, done), kvexport.Exported, kvexport.Retired},
		{"it settled", stamps(removed, done, imported, done, retired, done, settled, done), kvexport.Exported, kvexport.Retired},
		{"it settled, by a release with other steps", stamps(removed, done, settled, done), kvexport.Exported, kvexport.Retired},
		{"a server that was adopted and kept its state", stamps("become", done, settled, done), kvexport.Exported, kvexport.None},
	} {
		for _, file := range []kv{old, nil} {
			m := disk{File: file, Stamps: c.stamps}.machine(t)
			want := c.none
			if file != nil {
				want = c.file
			}
			if got, err := m.State(); got != want || err != nil {
				t.Errorf("%s, and there is a file: %t: %s, %v; want %s", c.name, file != nil, got, err, want)
			}
			m.journal, want = nil, kvexport.None
			if file != nil {
				want = kvexport.Exported
			}
			if got, err := m.State(); got != want || err != nil {
				t.Errorf("without a journal, and there is a file: %t: %s, %v; want %s", file != nil, got, err, want)
			}
		}
	}
}

func TestWhatCannotBeReadIsNoState(t *testing.T) {
	m := states[kvexport.Exported].machine(t)
	if err := os.RemoveAll(m.platform.Path(platform.StateDir)); err != nil {
		t.Fatal(err)
	}
	m.write(t, platform.StateDir, "a file where our folder was")
	if s, err := m.State(); s != "" || err == nil {
		t.Errorf("%q, %v", s, err)
	}
	if diff, err := m.UpToDate(m.exported).Diff(t.Context()); diff != nil || err == nil {
		t.Errorf("%q, %v", diff, err)
	}
	if err := m.NoConsulState().Apply(t.Context()); err == nil || m.read(t, raft) == nil {
		t.Errorf("Consul was emptied: %v", err)
	}
}

// Every transition from every state: what it leads to, and what is on disk then.
func TestEveryTransition(t *testing.T) {
	type outcome struct {
		to   kvexport.State
		disk disk
		says string // of the error; "" where there is none
	}
	stays := func(s kvexport.State) outcome { return outcome{to: s, disk: states[s]} }
	refused := func(s kvexport.State, says string) outcome { return outcome{s, states[s], says} }
	leads := func(from, to kvexport.State, change func(*disk)) outcome {
		return outcome{to: to, disk: states[from].with(change)}
	}
	// later is the export of a Consul that holds more than it did.
	later := func(m *machine) error {
		return m.Put(func(file string) error {
			// As Consul's, which is never written over another one.
			f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
			if err != nil {
				return err
			}
			_, err = f.WriteString(since.export())
			return errors.Join(err, f.Close())
		})
	}
	replaced, completed := func(d *disk) { d.File = since }, func(d *disk) { d.File = both }
	const missing = "the KV's export is missing, so Consul's state stays"
	emptied := func(d *disk) { d.Consul, d.Half, d.Stamps[removed] = nil, false, engine.Done }
	again := func(change func(*disk)) func(*disk) {
		return func(d *disk) { change(d); d.Stamps[imported] = engine.Running }
	}

	for _, transition := range []struct {
		name string
		do   func(t *testing.T, m *machine) error
		want map[kvexport.State]outcome
	}{
		{"an export", func(_ *testing.T, m *machine) error { return later(m) }, map[kvexport.State]outcome{
			kvexport.None:     leads(kvexport.None, kvexport.Exported, replaced),
			kvexport.Exported: leads(kvexport.Exported, kvexport.Exported, replaced),
			kvexport.Emptying: leads(kvexport.Emptying, kvexport.Emptying, completed),
			kvexport.Emptied:  leads(kvexport.Emptied, kvexport.Emptied, completed),
			kvexport.Restored: leads(kvexport.Restored, kvexport.Restored, completed),
			kvexport.Retired:  leads(kvexport.Retired, kvexport.Exported, replaced),
		}},
		{"an export that fails half-way", func(t *testing.T, m *machine) error {
			err := m.Put(func(file string) error {
				return errors.Join(os.WriteFile(file, []byte("{"), 0o600), errors.New("no space left"))
			})
			if m.Fresh() {
				t.Error("it counts as made")
			}
			return errors.Join(err, os.Remove(m.platform.Path(kvexport.File+".new"))) // the next one does
		}, map[kvexport.State]outcome{
			kvexport.None:     refused(kvexport.None, "no space left"),
			kvexport.Exported: refused(kvexport.Exported, "no space left"),
			kvexport.Emptying: refused(kvexport.Emptying, "no space left"),
			kvexport.Emptied:  refused(kvexport.Emptied, "no space left"),
			kvexport.Restored: refused(kvexport.Restored, "no space left"),
			kvexport.Retired:  refused(kvexport.Retired, "no space left"),
		}},
		{"an export after one that was killed", func(t *testing.T, m *machine) error {
			m.write(t, kvexport.File+".new", "half of one")
			return later(m)
		}, map[kvexport.State]outcome{
			kvexport.None:     leads(kvexport.None, kvexport.Exported, replaced),
			kvexport.Exported: leads(kvexport.Exported, kvexport.Exported, replaced),
			kvexport.Emptying: leads(kvexport.Emptying, kvexport.Emptying, completed),
			kvexport.Emptied:  leads(kvexport.Emptied, kvexport.Emptied, completed),
			kvexport.Restored: leads(kvexport.Restored, kvexport.Restored, completed),
			kvexport.Retired:  leads(kvexport.Retired, kvexport.Exported, replaced),
		}},
		{"the export that become wants", func(t *testing.T, m *machine) error {
			return engine.Ensure(t.Context(), m.UpToDate(m.exported))
		}, map[kvexport.State]outcome{
			kvexport.None:     leads(kvexport.None, kvexport.Exported, replaced),
			kvexport.Exported: leads(kvexport.Exported, kvexport.Exported, replaced),
			kvexport.Emptying: stays(kvexport.Emptying), // a part of a state is no KV
			kvexport.Emptied:  stays(kvexport.Emptied),  // no Consul ran since
			kvexport.Restored: leads(kvexport.Restored, kvexport.Restored, completed),
			kvexport.Retired:  leads(kvexport.Retired, kvexport.Exported, replaced),
		}},
		{"emptying Consul", func(t *testing.T, m *machine) error { return m.NoConsulState().Apply(t.Context()) }, map[kvexport.State]outcome{
			kvexport.None:     refused(kvexport.None, missing),
			kvexport.Exported: leads(kvexport.Exported, kvexport.Emptied, emptied),
			kvexport.Emptying: leads(kvexport.Emptying, kvexport.Emptied, emptied),
			kvexport.Emptied:  stays(kvexport.Emptied),
			kvexport.Restored: leads(kvexport.Restored, kvexport.Emptied, again(emptied)), // to be put back again
			kvexport.Retired:  refused(kvexport.Retired, missing),
		}},
		{"emptying a Consul that runs", func(t *testing.T, m *machine) error {
			open, err := os.Open(m.platform.Path(raft))
			if errors.Is(err, fs.ErrNotExist) {
				open, err = os.Open(m.platform.Path(platform.ConsulDataDir, "master_token"))
			}
			if err != nil {
				t.Fatal(err)
			}
			defer open.Close()
			return m.NoConsulState().Apply(t.Context())
		}, map[kvexport.State]outcome{
			kvexport.None:     refused(kvexport.None, missing),
			kvexport.Exported: refused(kvexport.Exported, "stop it first"),
			kvexport.Emptying: refused(kvexport.Emptying, "stop it first"),
			kvexport.Emptied:  refused(kvexport.Emptied, "stop it first"),
			kvexport.Restored: refused(kvexport.Restored, "stop it first"),
			kvexport.Retired:  refused(kvexport.Retired, missing),
		}},
		{"emptying Consul, cut off before", func(t *testing.T, m *machine) error {
			m.journal.before = func(id string, s engine.State) error { return errors.New("cut off before " + string(s)) }
			return m.NoConsulState().Apply(t.Context())
		}, map[kvexport.State]outcome{
			kvexport.None:     refused(kvexport.None, missing),
			kvexport.Exported: refused(kvexport.Exported, "cut off before running"),
			kvexport.Emptying: refused(kvexport.Emptying, "cut off before running"),
			kvexport.Emptied:  refused(kvexport.Emptied, "cut off before running"),
			kvexport.Restored: refused(kvexport.Restored, "cut off before running"),
			kvexport.Retired:  refused(kvexport.Retired, missing),
		}},
		{"emptying Consul, cut off while it is done", func(t *testing.T, m *machine) error {
			var open *os.File
			m.journal.before = func(string, engine.State) (err error) {
				// Somebody starts Consul at this instant.
				open, err = os.Open(m.platform.Path(platform.ConsulDataDir, "master_token"))
				return err
			}
			err := m.NoConsulState().Apply(t.Context())
			open.Close()
			return err
		}, map[kvexport.State]outcome{
			kvexport.None:     refused(kvexport.None, missing),
			kvexport.Exported: {kvexport.Emptying, states[kvexport.Exported].with(func(d *disk) { d.Stamps[removed] = engine.Running }), "stop it first"},
			kvexport.Emptying: refused(kvexport.Emptying, "stop it first"),
			kvexport.Emptied:  {kvexport.Emptying, states[kvexport.Emptied].with(func(d *disk) { d.Stamps[removed] = engine.Running }), "stop it first"},
			kvexport.Restored: {kvexport.Emptying, states[kvexport.Restored].with(again(func(d *disk) { d.Stamps[removed] = engine.Running })), "stop it first"},
			kvexport.Retired:  refused(kvexport.Retired, missing),
		}},
		{"emptying Consul, cut off after", func(t *testing.T, m *machine) error {
			m.journal.before = func(id string, s engine.State) error {
				if s == engine.Done {
					return errors.New("cut off")
				}
				return nil
			}
			return m.NoConsulState().Apply(t.Context())
		}, map[kvexport.State]outcome{
			kvexport.None:     refused(kvexport.None, missing),
			kvexport.Exported: {kvexport.Emptying, states[kvexport.Exported].with(func(d *disk) { emptied(d); d.Stamps[removed] = engine.Running }), "cut off"},
			kvexport.Emptying: {kvexport.Emptying, states[kvexport.Emptying].with(func(d *disk) { emptied(d); d.Stamps[removed] = engine.Running }), "cut off"},
			kvexport.Emptied:  {kvexport.Emptying, states[kvexport.Emptied].with(func(d *disk) { d.Stamps[removed] = engine.Running }), "cut off"},
			kvexport.Restored: {kvexport.Emptying, states[kvexport.Restored].with(again(func(d *disk) { emptied(d); d.Stamps[removed] = engine.Running })), "cut off"},
			kvexport.Retired:  refused(kvexport.Retired, missing),
		}},
		{"the step that retires it", func(t *testing.T, m *machine) error {
			if !m.journal.Done(retired) { // what a run that was killed leaves
				m.write(t, kvexport.File+".new", "all of the KV")
				m.write(t, consul.AtRestDir+"/data/raft/raft.db", "all of the KV")
			}
			_, settle := m.phases()
			settle.Steps = settle.Steps[1:]
			_, err := engine.Runner[*machine]{Journal: m.journal}.Run(t.Context(), settle)
			delete(m.journal.stamps, settled)
			return err
		}, map[kvexport.State]outcome{
			kvexport.Restored: leads(kvexport.Restored, kvexport.Retired, func(d *disk) { d.File, d.Stamps[retired] = nil, engine.Done }),
			kvexport.Retired:  stays(kvexport.Retired),
		}},
		{"the step that retires it, cut off before its stamp", func(t *testing.T, m *machine) error { return m.NoExport().Apply(t.Context()) }, map[kvexport.State]outcome{
			kvexport.Emptying: refused(kvexport.Emptying, "the KV is not back in Consul"),
			kvexport.Emptied:  refused(kvexport.Emptied, "the KV is not back in Consul"),
			kvexport.Restored: leads(kvexport.Restored, kvexport.Retired, func(d *disk) { d.File = nil }),
			kvexport.Retired:  stays(kvexport.Retired),
		}},
		{"the step that restores it", func(t *testing.T, m *machine) error {
			_, settle := m.phases()
			settle.Steps = settle.Steps[:1]
			_, err := engine.Runner[*machine]{Journal: m.journal}.Run(t.Context(), settle)
			delete(m.journal.stamps, settled)
			return err
		}, map[kvexport.State]outcome{
			kvexport.Emptied:  leads(kvexport.Emptied, kvexport.Restored, func(d *disk) { d.Consul, d.Stamps[imported] = old, engine.Done }),
			kvexport.Restored: stays(kvexport.Restored),
			kvexport.Retired:  stays(kvexport.Retired),
		}},
		{"a copy that begins to become", func(_ *testing.T, m *machine) error {
			was := *m.journal
			m.journal.stamps = map[string]engine.State{}
			if id := kvexport.Inherited(&was); id != "" {
				m.journal.stamps[id] = was.stamps[id]
			}
			return nil
		}, map[kvexport.State]outcome{
			kvexport.None:     stays(kvexport.None),
			kvexport.Exported: stays(kvexport.Exported),
			kvexport.Emptying: stays(kvexport.Emptying),
			kvexport.Emptied:  stays(kvexport.Emptied),
			kvexport.Restored: leads(kvexport.Restored, kvexport.Emptied, func(d *disk) { delete(d.Stamps, imported) }),
			kvexport.Retired:  leads(kvexport.Retired, kvexport.None, func(d *disk) { clear(d.Stamps) }),
		}},
	} {
		t.Run(transition.name, func(t *testing.T) {
			for from, want := range transition.want {
				t.Run(string(from), func(t *testing.T) {
					m := states[from].machine(t)
					if s, err := m.State(); s != from || err != nil {
						t.Fatalf("before: %s, %v", s, err)
					}
					err := transition.do(t, m)
					if (err == nil) != (want.says == "") || err != nil && !strings.Contains(err.Error(), want.says) {
						t.Errorf("it says %v, want %q", err, want.says)
					}
					if s, err := m.State(); s != want.to || err != nil {
						t.Errorf("it leads to %s, %v; want %s", s, err, want.to)
					}
					if diff := cmp.Diff(want.disk, m.look(t), cmpopts.EquateEmpty()); diff != "" {
						t.Errorf("on disk (-want +got):\n%s", diff)
					}
				})
			}
		})
	}
}

// A seal has no journal: it exports, empties, and leaves the file in the image,
// whose sum the first boot knows.
func TestTheExportOfASeal(t *testing.T) {
	for name, was := range map[string]disk{
		"of a server":                  states[kvexport.None],
		"of a server that failed once": states[kvexport.Exported],
		"of a node":                    states[kvexport.Retired],
	} {
		t.Run(name, func(t *testing.T) {
			m := was.machine(t)
			m.journal = nil
			if err := engine.Ensure(t.Context(), m.UpToDate(m.exported)); err != nil || !m.Fresh() {
				t.Fatal(err)
			}
			if err := engine.Ensure(t.Context(), m.NoConsulState()); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(disk{File: since}, m.look(t)); diff != "" {
				t.Errorf("the image (-want +got):\n%s", diff)
			}

			clone := disk{File: since}.machine(t)
			clone.sum = manifest.Sum([]byte(since.export()))
			clone.write(t, raft, "of a Consul that somebody started")
			if diff, err := clone.UpToDate(clone.exported).Diff(t.Context()); diff != nil || err != nil {
				t.Errorf("its clone would export %q, %v", diff, err)
			}
			clone.sum = manifest.Sum([]byte("another export"))
			if diff, err := clone.UpToDate(clone.exported).Diff(t.Context()); diff == nil || err != nil {
				t.Errorf("with the manifest of another image, its clone exports nothing: %v", err)
			}
		})
	}
}

// A node that settled and is sealed makes an export, which each export of that
// seal replaces: Consul has the KV.
func TestANodeThatSettledExportsAnew(t *testing.T) {
	m := states[kvexport.Retired].with(func(d *disk) { d.Stamps[settled] = engine.Done }).machine(t)
	for _, held := range []kv{since, old} {
		m.write(t, raft, held.export())
		if err := m.exported(t.Context()); err != nil {
			t.Fatal(err)
		}
		if s, err := m.State(); s != kvexport.Exported || err != nil {
			t.Errorf("%s, %v", s, err)
		}
		if diff := cmp.Diff(held, m.read(t, kvexport.File)); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	}
}

// What Consul cannot have stored since the export is not exported again.
func TestAnExportIsMadeAgainWhereConsulMayHoldMore(t *testing.T) {
	for name, c := range map[string]struct {
		change func(m *machine) error
		says   string
	}{
		"by an earlier run": {func(*machine) error { return nil }, "Consul may hold more than the export that an earlier run left"},
		"by this one":       {func(m *machine) error { return m.exported(t.Context()) }, ""},
		"no raft log":       {func(m *machine) error { return os.RemoveAll(m.platform.Path(filepath.Dir(raft))) }, ""},
		"no certificate":    {func(m *machine) error { return os.Remove(m.platform.Path(platform.CertificateFile)) }, ""},
		"no export":         {func(m *machine) error { return os.Remove(m.platform.Path(kvexport.File)) }, "Consul's KV was not exported yet"},
	} {
		t.Run(name, func(t *testing.T) {
			m := states[kvexport.Exported].machine(t)
			if err := c.change(m); err != nil {
				t.Fatal(err)
			}
			diff, err := m.UpToDate(m.exported).Diff(t.Context())
			if got := strings.Join(diff, "; "); got != c.says || err != nil {
				t.Errorf("%q, %v; want %q", got, err, c.says)
			}
		})
	}
}

// The one way to lose the KV: to export again what Consul holds after a run
// that was cut off had emptied it. XiVO works with that Consul until the next run,
// though, so what it stored is added.
func TestAResumedBecomeCompletesTheOriginalExport(t *testing.T) {
	const exportDone, emptyStep = "become." + kvexport.ExportStep, "become." + kvexport.EmptyStep
	for what, c := range map[string]struct {
		gone, reset engine.State
		want        kv
	}{
		"while the state was removed": {engine.Running, engine.Running, old},
		"right after that":            {engine.Done, engine.Running, both},
		"later":                       {engine.Done, engine.Done, both},
	} {
		t.Run(what, func(t *testing.T) {
			m := disk{File: old, Consul: since, Stamps: stamps(exportDone, engine.Done, removed, c.gone, emptyStep, c.reset)}.machine(t)
			if err := redo(m.journal); err != nil {
				t.Fatal(err)
			}
			if m.journal.Done(exportDone) || m.journal.Done(emptyStep) || !m.journal.Begun(emptyStep) {
				t.Errorf("it would not run again: %v", m.journal.stamps)
			}
			become, _ := m.phases()
			if _, err := (engine.Runner[*machine]{Journal: m.journal}).Run(t.Context(), become); err != nil {
				t.Fatal(err)
			}
			got := m.look(t)
			if diff := cmp.Diff(c.want, got.File); diff != "" {
				t.Errorf("the export (-want +got):\n%s", diff)
			}
			if got.Consul != nil || got.Half {
				t.Errorf("Consul has %v", got)
			}
		})
	}
}

// Cut off anywhere, begun again, with Consul storing more in between: in the end
// Consul has all of it, and the export is gone.
func TestNothingOfTheKVIsLostWhereverABecomeIsCutOff(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		type cut struct{}
		m := disk{Consul: kv{"0": "a contact"}}.machine(t)
		stored := kv{"0": "a contact"}
		live := func(at int) (ended bool) {
			defer func() {
				if r := recover(); r != nil && r != (cut{}) {
					panic(r)
				}
			}()
			points := 0
			m.journal.before = func(string, engine.State) error {
				if points++; points > at {
					panic(cut{})
				}
				return nil
			}
			// Another process: it knows what is on disk, and no more.
			again := &machine{platform: m.platform, journal: m.journal}
			again.Export = kvexport.New(m.platform, kvexport.Surroundings{
				Journal: func() engine.Journal { return m.journal }, SealedSum: func() string { return "" },
			})
			become, settle := again.phases()
			if !m.journal.Done(become.Name) {
				if err := redo(m.journal); err != nil {
					rt.Fatal(err)
				}
			}
			r := engine.Runner[*machine]{Journal: m.journal}
			for _, p := range []engine.Phase[*machine]{become, settle} {
				if _, err := r.Run(context.Background(), p); err != nil {
					rt.Fatal(err)
				}
			}
			return true
		}
		for i, at := range rapid.SliceOfN(rapid.IntRange(0, 14), 0, 5).Draw(rt, "cuts") {
			if live(at) {
				break
			}
			state, err := m.State()
			if err != nil {
				rt.Fatal(err)
			}
			// While its state is removed, Consul does not run; and what it stores from
			// when it became until it settled, the import leaves alone.
			if state == kvexport.Emptying || m.journal.Done("become") || !rapid.Bool().Draw(rt, "Consul ran") {
				continue
			}
			now := m.read(t, raft)
			if now == nil {
				now = kv{}
			}
			key := string(rune('1' + i))
			now[key], stored[key] = "stored since", "stored since"
			m.write(t, raft, now.export())
		}
		live(1 << 20)
		got := m.look(t)
		if diff := cmp.Diff(disk{Stamps: m.journal.stamps, Consul: stored}, got); diff != "" {
			rt.Errorf("in the end (-want +got):\n%s", diff)
		}
		if s, err := m.State(); s != kvexport.Retired || err != nil {
			rt.Errorf("in the end: %s, %v", s, err)
		}
	})
}

// An adopted server, and whoever has no Consul, is told why nothing was exported.
func TestAConsulThatDoesNotAnswerLeavesTheExport(t *testing.T) {
	m := states[kvexport.Exported].machine(t)
	if err := m.FromConsul(t.Context()); err == nil || !strings.Contains(err.Error(), "no Consul answers") || m.Fresh() {
		t.Errorf("%v; it counts as made: %t", err, m.Fresh())
	}
	if diff := cmp.Diff(states[kvexport.Exported], m.look(t), cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// Somebody removed the file that alone had the KV: what Consul holds now is not
// taken for it, until a person says so.
func TestALostExportIsNotMadeAnew(t *testing.T) {
	for _, from := range []kvexport.State{kvexport.Emptying, kvexport.Emptied} {
		t.Run(string(from), func(t *testing.T) {
			lost := states[from].with(func(d *disk) { d.File = nil })
			m := lost.machine(t)
			if s, err := m.State(); s != kvexport.Lost || err != nil {
				t.Fatalf("%s, %v", s, err)
			}
			for what, err := range map[string]error{
				"the step that exports": engine.Ensure(t.Context(), m.UpToDate(m.exported)),
				"an export":             m.exported(t.Context()),
				"emptying Consul":       m.NoConsulState().Apply(t.Context()),
			} {
				if err == nil || !strings.Contains(err.Error(), "kv.json") {
					t.Errorf("%s says %v, want what is gone", what, err)
				}
			}
			if diff := cmp.Diff(lost, m.look(t), cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("on disk (-want +got):\n%s", diff)
			}
			m.write(t, kvexport.File, `{"format": 1, "entries": []}`)
			if s, err := m.State(); s != from || err != nil {
				t.Errorf("as a person was told to: %s, %v", s, err)
			}
		})
	}
}

// redo is what becomes of the journal of a become that was cut off.
func redo(j engine.Journal) error {
	var errs []error
	for _, id := range kvexport.RedoneSteps {
		errs = append(errs, engine.Redo(j, id))
	}
	return errors.Join(errs...)
}
