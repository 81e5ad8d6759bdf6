package rabbitmq

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
)

// rootWith is a server with these files, by their path.
func rootWith(t *testing.T, files map[string]string) *platform.Platform {
	t.Helper()
	p := &platform.Platform{Root: t.TempDir()}
	for _, dir := range []string{platform.RabbitConfigDir, platform.RabbitDataDir} {
		if err := os.MkdirAll(p.Path(dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, data := range files {
		if err := os.WriteFile(p.Path(name), []byte(data), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

func TestManagementOnLoopback(t *testing.T) {
	const section = `{rabbitmq_management, [{listener, [{port, 15672}, {ip, "127.0.0.1"}]}]}`
	for _, test := range []struct{ name, before, after string }{
		{
			"an empty file gets a list",
			"",
			"[\n  " + section + "\n].\n",
		},
		{
			"comments alone stay",
			"%% nothing here. [\n",
			"%% nothing here. [\n[\n  " + section + "\n].\n",
		},
		{
			"an empty list gets its first entry",
			"[ ].",
			"[" + section + " ].",
		},
		{
			"XiVO's own settings stay",
			"[\n  {rabbit, [\n    {disk_free_limit, 100000000},\n    {tcp_listeners, [{\"0.0.0.0\", 5672}]},\n    {heartbeat, 0} % none\n  ]} % the end ].\n].\n",
			"[\n  {rabbit, [\n    {disk_free_limit, 100000000},\n    {tcp_listeners, [{\"0.0.0.0\", 5672}]},\n    {heartbeat, 0} % none\n  ]},\n  " + section + " % the end ].\n].\n",
		},
		{
			"a listener on every address is replaced, and its neighbours stay",
			"[{'rabbitmq_management', [{rates_mode, none}, {listener, [{port, 15672}]}, {x, <<\"]}\">>}]}, {kernel, []}].",
			"[{'rabbitmq_management', [{rates_mode, none}, {listener, [{port, 15672}, {ip, \"127.0.0.1\"}]}, {x, <<\"]}\">>}]}, {kernel, []}].",
		},
		{
			"a section without a listener gets one",
			"[{rabbitmq_management, [{rates_mode, none}]}].",
			"[{rabbitmq_management, [{rates_mode, none}, {listener, [{port, 15672}, {ip, \"127.0.0.1\"}]}]}].",
		},
		{
			"brackets in strings, atoms, comments and characters are text",
			`[{a, "]}% \"", 'it\'s ]', $], $", $\n, -1.5e3, 16#fF, {}}, % ]} "` + "\n []].",
			`[{a, "]}% \"", 'it\'s ]', $], $", $\n, -1.5e3, 16#fF, {}}, % ]} "` + "\n [],\n  " + section + "].",
		},
		{
			"what is as wanted, in another layout, is left as it is",
			"[{rabbitmq_management,[ {listener,\n[{port,15672} , %x\n {ip,\"127.0.0.1\"}]}]}].",
			"[{rabbitmq_management,[ {listener,\n[{port,15672} , %x\n {ip,\"127.0.0.1\"}]}]}].",
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := rootWith(t, map[string]string{configFile: test.before})
			s := ManagementOnLoopback(p)
			diff, err := s.Diff(t.Context())
			if err != nil || (diff != nil) != (test.before != test.after) {
				t.Fatalf("diff %q, %v", diff, err)
			}
			for range 2 {
				if err := s.Apply(t.Context()); err != nil {
					t.Fatal(err)
				}
				if d := cmp.Diff(test.after, read(t, p.Path(configFile))); d != "" {
					t.Fatal(d)
				}
				wanted(t, s)
			}
			if st, _ := os.Stat(p.Path(configFile)); st.Mode().Perm() != 0o640 {
				t.Fatalf("mode became %o", st.Mode().Perm())
			}
		})
	}
}

func TestManagementOnLoopbackMakesTheFile(t *testing.T) {
	p := rootWith(t, nil)
	become(t, ManagementOnLoopback(p))
	if st, _ := os.Stat(p.Path(configFile)); st.Mode().Perm() != 0o644 {
		t.Fatalf("mode is %o", st.Mode().Perm())
	}
}

func TestUnreadableConfigIsLeftAlone(t *testing.T) {
	for _, test := range []struct{ name, src, says string }{
		{"a list that does not end", "[\n {rabbit, [", `line 2, column 11: "]" is missing`},
		{"a string that does not end", "[{a, \"b}].", "line 1, column 6: the quote"},
		{"an atom that does not end", "[{'a, b}].", "line 1, column 3: the quote"},
		{"no dot", "[{a, 1}]\n", "line 2, column 1: the list's closing dot"},
		{"two lists", "[].\n[].\n", "line 2, column 1: something follows"},
		{"not a list", "{a, 1}.", "a list was expected"},
		{"a closing bracket of another kind", "[{a, 1].", `a comma or "}" was expected`},
		{"a comma too many", "[{a, 1},].", "a term was expected"},
		{"two sections", "[{rabbitmq_management, []}, {rabbitmq_management, []}].", "rabbitmq_management is there twice"},
		{"settings that are no list", "[{rabbitmq_management, none}].", "are not a list"},
		{"the new format", "listeners.tcp.default = 5672\n", "a list was expected"},
		{"not text", "[\x00].", "is not text"},
		{"a character at the end", "[$", "a comma or"},
		{"an escape at the end", `["\`, "the quote"},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := rootWith(t, map[string]string{configFile: test.src})
			_, err := ManagementOnLoopback(p).Diff(t.Context())
			if err == nil || !strings.Contains(err.Error(), test.says) || !strings.Contains(err.Error(), "run again") {
				t.Fatalf("diff says %v", err)
			}
			if err := ManagementOnLoopback(p).Apply(t.Context()); err == nil {
				t.Fatal("applied")
			}
			if got := read(t, p.Path(configFile)); got != test.src {
				t.Fatalf("changed to %q", got)
			}
		})
	}
}

func TestNewConfigurationFileHidesTheOldOne(t *testing.T) {
	p := rootWith(t, map[string]string{newConfFile: ""})
	if _, err := ManagementOnLoopback(p).Diff(t.Context()); err == nil || !strings.Contains(err.Error(), "rabbitmq.conf hides") {
		t.Fatalf("diff says %v", err)
	}
}

func TestPlugins(t *testing.T) {
	for _, test := range []struct{ name, before, after string }{
		{"no file content", "", "[rabbitmq_management,rabbitmq_federation,rabbitmq_federation_management].\n"},
		{"an empty list", "[].", "[rabbitmq_management,rabbitmq_federation,rabbitmq_federation_management]."},
		{"others stay", "[rabbitmq_stomp, 'rabbitmq_federation'].\n", "[rabbitmq_stomp, 'rabbitmq_federation',rabbitmq_management,rabbitmq_federation_management].\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := rootWith(t, map[string]string{pluginsFile: test.before})
			become(t, Plugins(p))
			if d := cmp.Diff(test.after, read(t, p.Path(pluginsFile))); d != "" {
				t.Fatal(d)
			}
		})
	}
	t.Run("no file", func(t *testing.T) { become(t, Plugins(rootWith(t, nil))) })
	t.Run("unreadable", func(t *testing.T) {
		p := rootWith(t, map[string]string{pluginsFile: "rabbitmq_stomp\n"})
		if _, err := Plugins(p).Diff(t.Context()); err == nil {
			t.Fatal("taken")
		}
	})
}

func TestManagementOnly(t *testing.T) {
	for _, test := range []struct{ name, before, after string }{
		{"federation goes", "[rabbitmq_management,rabbitmq_federation,rabbitmq_federation_management].\n", "[rabbitmq_management].\n"},
		{"also when it is first, quoted or alone", "['rabbitmq_federation', rabbitmq_stomp].\n", "[rabbitmq_stomp,rabbitmq_management].\n"},
		{"also what would start it", "[rabbitmq_federation_prometheus].\n", "[rabbitmq_management].\n"},
		{"the neighbours stay", "%% ours\n[rabbitmq_stomp, %% why\n rabbitmq_federation, rabbitmq_mqtt].\n", "%% ours\n[rabbitmq_stomp, rabbitmq_mqtt,rabbitmq_management].\n"},
		{"no file content", "", "[rabbitmq_management].\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := rootWith(t, map[string]string{pluginsFile: test.before})
			become(t, ManagementOnly(p))
			if d := cmp.Diff(test.after, read(t, p.Path(pluginsFile))); d != "" {
				t.Fatal(d)
			}
			become(t, Plugins(p))
		})
	}
}

// Whatever a well-formed file holds, one insertion or replacement makes it as
// wanted, and nothing else of it changes.
func TestListenerIsTheOnlyChange(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		blank := rapid.SampledFrom([]string{"", " ", "\n", "% ]}\"' note\n", "\t"})
		scalar := rapid.SampledFrom([]string{"a", "0.5", `"]\"}"`, `'}\''`, "$}", "-1", "<<\"]\", 1>>", "true"})
		var value func(depth int) string
		value = func(depth int) string {
			if depth == 0 || rapid.Bool().Draw(t, "scalar") {
				return scalar.Draw(t, "value")
			}
			open, shut := "[", "]"
			if rapid.Bool().Draw(t, "tuple") {
				open, shut = "{", "}"
			}
			parts := make([]string, rapid.IntRange(0, 3).Draw(t, "n"))
			for i := range parts {
				parts[i] = blank.Draw(t, "before") + value(depth-1) + blank.Draw(t, "after")
			}
			return open + strings.Join(parts, ",") + blank.Draw(t, "end") + shut
		}
		entries := make([]string, rapid.IntRange(0, 3).Draw(t, "entries"))
		for i := range entries {
			entries[i] = blank.Draw(t, "before") + "{key," + value(3) + "}" + blank.Draw(t, "after")
		}
		src := blank.Draw(t, "first") + "[" + strings.Join(entries, ",") + blank.Draw(t, "last") + "]" + blank.Draw(t, "dot") + ".\n"

		out, diff, err := setListener([]byte(src), managementListener)
		if err != nil || diff == nil {
			t.Fatalf("%q: %q, %v", src, diff, err)
		}
		put := "{rabbitmq_management, [" + managementListener + "]}"
		if strings.Contains(string(out), ",\n  "+put) {
			put = ",\n  " + put
		}
		if back := strings.Replace(string(out), put, "", 1); back != src {
			t.Fatalf("%q became %q", src, out)
		}
		again, diff, err := setListener(out, managementListener)
		if err != nil || diff != nil || string(again) != string(out) {
			t.Fatalf("%q is not as wanted: %q, %v", out, diff, err)
		}
	})
}

func FuzzReadList(f *testing.F) {
	f.Add([]byte(`[{a, "b", 'c', $d, <<1>>, 0.5}]. % e`))
	f.Fuzz(func(t *testing.T, src []byte) {
		if list, err := readList(src); err == nil && list != nil && (list.start >= list.end || list.end > len(src)) {
			t.Fatalf("%q: %+v", src, list)
		}
	})
}

func read(t *testing.T, name string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Clean(name))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}
