package e2e

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/xivo-mesh/packer-plugin-xivo/test/lab"
)

// endState is all that a first boot leaves on a machine, one item a thing: a
// row, a file, a key, a setting, a service. What is new by design (the machine's
// own names, times, keys that are drawn) is replaced by what it is.
type endState map[string]string

// differences are the items that are not equal, told as a person reads them.
func (want endState) differences(have endState) []string {
	var diff []string
	for item, value := range want {
		switch got, ok := have[item]; {
		case !ok:
			diff = append(diff, "missing: "+item)
		case got != value:
			diff = append(diff, fmt.Sprintf("%s:\n\twant %s\n\thave %s", item, short(value), short(got)))
		}
	}
	for item := range have {
		if _, ok := want[item]; !ok {
			diff = append(diff, fmt.Sprintf("too much: %s: %s", item, short(have[item])))
		}
	}
	slices.Sort(diff)
	return diff
}

func short(s string) string {
	const limit = 2000
	if len(s) > limit {
		return s[:limit] + "…"
	}
	return s
}

// drawn are files whose content is random.
var drawn = regexp.MustCompile(`^/etc/ssh/ssh_host_|^/usr/share/xivo-certs/server\.|\.erlang\.cookie$|^/var/lib/consul/node-id$|^/etc/machine-id$|^/var/lib/xivo-firstboot/mesh/wg\.key$`)

// Of our own files, what tells of this run and not of the node.
var (
	timestamp = regexp.MustCompile(`\d{4}-\d\d-\d\dT[\d:.]+Z`)
	drawnID   = regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`)
	roundTrip = regexp.MustCompile(`"milliseconds": \d+`)
)

// readEndState reads it from a machine whose services are up.
func readEndState(t *testing.T, m *lab.Machine) endState {
	t.Helper()
	run := func(script string) string {
		t.Helper()
		out, err := m.Run(t.Context(), "bash", "-o", "pipefail", "-ec", script)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	uuid, err := m.SQL(t.Context(), "SELECT uuid FROM infos")
	if err != nil {
		t.Fatal(err)
	}
	if !drawnID.MatchString(uuid) {
		t.Fatalf("the UUID in the database is %q", uuid)
	}
	own := []string{uuid, "<uuid>", uuid[:8], "<8 of uuid>", m.Name, "<name>", m.Address.String(), "<address>"}
	for what, script := range map[string]string{
		"<overlay address>": `sed 's/.*"address":"\([0-9.]*\)".*/\1/' /var/lib/xivo-firstboot/mesh/address.json`,
		"<Consul's token>":  `cat /var/lib/consul/master_token`,
	} {
		own = append(own, strings.TrimSpace(run(script)), what)
	}
	// A service's key must be the one in the database, whatever it is.
	for line := range strings.Lines(run(`cd /var/lib/xivo-auth-keys; grep -H '^service_key: ' *`)) {
		if file, key, ok := strings.Cut(strings.TrimSpace(line), ":service_key: "); ok {
			own = append(own, strings.Trim(key, `'"`), "<key in "+file+">")
		}
	}
	normal := strings.NewReplacer(own...)

	s := endState{}
	s.addRows(normal.Replace(run(`PGPASSWORD=proformatique pg_dump --host=localhost --username=asterisk --data-only --column-inserts asterisk`)))
	s.addFiles(t, run(`cd /; tar --create --exclude=var/lib/consul/{raft,serf,services,checks,tmp} \
		etc usr/share/xivo-certs usr/local var/lib/xivo-firstboot var/lib/xivo-auth-keys var/lib/consul var/lib/rabbitmq/.erlang.cookie`), normal)
	s.addBroker(t, run(`curl -sf -u guest:guest http://127.0.0.1:15672/api/definitions`), normal)
	for line := range strings.Lines(run(`systemctl list-units --all --plain --no-legend --type=service 'xivo*' consul rabbitmq-server 'postgresql*'; systemctl list-units --plain --no-legend --failed`)) {
		if f := strings.Fields(line); len(f) > 3 {
			s["service "+f[0]] = f[2] + " " + f[3]
		}
	}
	s["environment of the service manager"] = normal.Replace(run(`systemctl show-environment | grep ^XIVO`))
	s["firewall"] = normal.Replace(run(`iptables-save | grep ^-`))
	maps.Copy(s, readKV(t, m))
	return s
}

var (
	insert   = regexp.MustCompile(`(?m)^INSERT INTO public\.(\w+) \((\w+), [^)]*\) VALUES \((\d+), .*$`)
	sequence = regexp.MustCompile(`(?m)^SELECT pg_catalog\.setval\('public\.(\w+)_id_seq', (\d+), true\);$`)
)

// addRows takes a dump. A transaction that was cut off leaves a gap in the ids:
// they are counted anew, in their order.
func (s endState) addRows(dump string) {
	ids := map[string][]int{}
	for _, row := range insert.FindAllStringSubmatch(dump, -1) {
		if id, err := strconv.Atoi(row[3]); err == nil && row[2] == "id" {
			ids[row[1]] = append(ids[row[1]], id)
		}
	}
	for _, all := range ids {
		slices.Sort(all)
	}
	for line := range strings.Lines(dump) {
		line = strings.TrimSpace(line)
		if row := insert.FindStringSubmatchIndex(line); row != nil {
			table, from, to := line[row[2]:row[3]], row[6], row[7]
			if table == "ctidirectoryfields" {
				table = "ctidirectories" // whose id dir_id is
			}
			id, _ := strconv.Atoi(line[from:to])
			if i, known := slices.BinarySearch(ids[table], id); known {
				line = fmt.Sprintf("%s<%d>%s", line[:from], i+1, line[to:])
			}
		}
		if seq := sequence.FindStringSubmatch(line); seq != nil {
			last, _ := strconv.Atoi(seq[2])
			s["sequence of "+seq[1]] = fmt.Sprint("gives ids that are free: ", len(ids[seq[1]]) == 0 || last >= slices.Max(ids[seq[1]]))
		} else if strings.HasPrefix(line, "INSERT ") {
			s["row "+line] = "there"
		}
	}
}

// addFiles takes a tar: type, mode, owner and content of everything in it.
func (s endState) addFiles(t *testing.T, archive string, normal *strings.Replacer) {
	t.Helper()
	const ours = "/var/lib/xivo-firstboot/"
	r := tar.NewReader(strings.NewReader(archive))
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		name, text := "/"+h.Name, normal.Replace(string(content))
		switch {
		case drawn.MatchString(name) && text != "":
			text = "<drawn>"
		case name == ours+"status.json", name == ours+"mesh/peers.json":
			text = "" // about the last pass, and the network; what it says is asked of the program
		case strings.HasPrefix(name, ours):
			text = timestamp.ReplaceAllString(text, "<time>")
			text = drawnID.ReplaceAllString(text, "<id>")
			text = roundTrip.ReplaceAllString(text, "<took>")
		}
		s["file "+normal.Replace(name)] = fmt.Sprintf("%c %o %s:%s %s %s", h.Typeflag, h.Mode, h.Uname, h.Gname, normal.Replace(h.Linkname), text)
	}
}

// addBroker takes RabbitMQ's definitions: users, permissions, policies,
// parameters, exchanges, queues, each as one item.
func (s endState) addBroker(t *testing.T, definitions string, normal *strings.Replacer) {
	t.Helper()
	var kinds map[string]json.RawMessage
	if err := json.Unmarshal([]byte(definitions), &kinds); err != nil {
		t.Fatal(err)
	}
	for kind, raw := range kinds {
		var all []map[string]any
		if json.Unmarshal(raw, &all) != nil {
			continue // the versions
		}
		for _, one := range all {
			delete(one, "password_hash") // salted anew each time
			text, err := json.Marshal(one)
			if err != nil {
				t.Fatal(err)
			}
			s["broker "+kind+" "+normal.Replace(string(text))] = "there"
		}
	}
}

// kvEntries reads what Consul's KV has below a prefix.
func kvEntries(t *testing.T, m *lab.Machine, prefix string) []kvEntry {
	t.Helper()
	out, err := m.Run(t.Context(), "sh", "-ec",
		token+`curl -ksf -H "X-Consul-Token: $token" "https://localhost:8500/v1/kv/$1?recurse"`, "sh", prefix)
	if err != nil {
		t.Fatal(err)
	}
	var entries []kvEntry
	if err := json.Unmarshal([]byte(out), &entries); err != nil {
		t.Fatal(err)
	}
	return entries
}

// readKV reads every key, value and flags.
func readKV(t *testing.T, m *lab.Machine) endState {
	t.Helper()
	s := endState{}
	for _, e := range kvEntries(t, m, "") {
		s["KV "+e.Key] = fmt.Sprintf("flags %d, value %q", e.Flags, e.Value)
	}
	return s
}
