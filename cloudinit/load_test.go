package cloudinit

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// server is a root as cloud-init leaves it: an instance with an absolute link,
// born an hour ago.
func server(t *testing.T) (root string) {
	t.Helper()
	root = t.TempDir()
	put(t, root, "/var/lib/cloud/instances/i-1/sem/consume_data", "", time.Hour)
	put(t, root, "/var/lib/cloud/instances/i-1/cloud-config.txt", "", 0)
	put(t, root, "/var/lib/cloud/instances/i-1/vendor-cloud-config.txt", "", 0)
	put(t, root, "/var/lib/cloud/instances/i-1/boot-finished", "", 0)
	if err := os.Symlink("/var/lib/cloud/instances/i-1", filepath.Join(root, instanceLink)); err != nil {
		t.Fatal(err)
	}
	return root
}

func put(t *testing.T, root, name, content string, age time.Duration) {
	t.Helper()
	name = filepath.Join(root, name)
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	at := time.Now().Add(-age)
	if err := os.Chtimes(name, at, at); err != nil {
		t.Fatal(err)
	}
}

func TestLoadTakesTheFirstDocument(t *testing.T) {
	const user, vendor = "/var/lib/cloud/instances/i-1/cloud-config.txt", "/var/lib/cloud/instances/i-1/vendor-cloud-config.txt"
	doc := func(host string) string {
		return "#cloud-config\nxivo: {version: 1, peers: [" + host + "], secret: \"" + word + "\"}\n"
	}
	bare := "version: 1\npeers: [config]\nsecret: " + word + "\n"

	for name, c := range map[string]struct {
		files map[string]string
		age   time.Duration // of ConfigFile
		peer  string
		err   string
		none  bool
	}{
		"user data before all":                {files: map[string]string{user: doc("user"), vendor: doc("vendor"), ConfigFile: bare}, peer: "user"},
		"vendor data before the file":         {files: map[string]string{vendor: doc("vendor"), ConfigFile: bare}, peer: "vendor"},
		"user data without our key":           {files: map[string]string{user: "#cloud-config\nhostname: x\n", ConfigFile: bare}, peer: "config"},
		"the file alone":                      {files: map[string]string{ConfigFile: bare}, peer: "config"},
		"the file as cloud-config":            {files: map[string]string{ConfigFile: doc("config")}, peer: "config"},
		"the file, not its source":            {files: map[string]string{user: string(UserDataFile(&Config{Version: 1, Peers: []string{"old"}, Secret: word, Identity: IdentityAuto, Topology: TopologyMesh})), ConfigFile: bare}, peer: "config"},
		"the file, written in this instance":  {files: map[string]string{ConfigFile: bare}, age: 30 * time.Minute, peer: "config"},
		"the file of an earlier instance":     {files: map[string]string{ConfigFile: bare}, age: 2 * time.Hour, none: true, err: "older than this instance"},
		"nothing":                             {none: true, err: "no xivo document"},
		"a bad document is not skipped":       {files: map[string]string{user: "xivo: {version: 1}", ConfigFile: bare}, err: "/var/lib/cloud/instance/cloud-config.txt:1:7: xivo.peers: is missing"},
		"a bad document in merged user data":  {files: map[string]string{user: "xivo: {version: 1}"}, err: "xivo-firstboot validate"},
		"an empty file is no answer":          {files: map[string]string{ConfigFile: ""}, err: "write the document, or remove the file"},
		"a file of other things is no answer": {files: map[string]string{ConfigFile: "a: b"}, err: "write the document, or remove the file"},
		"a huge file":                         {files: map[string]string{ConfigFile: strings.Repeat("#", 2*MaxSize)}, err: "/etc/xivo-firstboot/config.yml:1:1: the file has more than 524288 bytes, shorten it"},
	} {
		t.Run(name, func(t *testing.T) {
			root := server(t)
			for file, content := range c.files {
				age := time.Duration(0)
				if file == ConfigFile {
					age = c.age
				}
				put(t, root, file, content, age)
			}
			loaded, err := Load(root)
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) || errors.Is(err, ErrNoDocument) != c.none {
					t.Fatalf("want an error with %q (no document: %v), got: %v", c.err, c.none, err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if loaded.Peers[0] != c.peer {
				t.Errorf("got the one of %s", loaded.Peers[0])
			}
		})
	}
}

func TestADocumentThatOthersMayReadIsRefusedWithTheCommand(t *testing.T) {
	for name, c := range map[string]struct {
		change func(t *testing.T, name string)
		says   string // "": it is taken
	}{
		"root's alone":          {chmod(0o600), ""},
		"for root to read only": {chmod(0o400), ""},
		"for all to read":       {chmod(0o644), ConfigFile + ":1:1: it has the secret and others may access it (mode 0644), chmod 0600 " + ConfigFile},
		"for a group to read":   {chmod(0o640), "(mode 0640), chmod 0600 " + ConfigFile},
		"for all to write":      {chmod(0o602), "(mode 0602), chmod 0600 " + ConfigFile},
		"another user's":        {chown(4711), "belongs to user 4711, chown root: " + ConfigFile + "; chmod 0600 " + ConfigFile},
	} {
		t.Run(name, func(t *testing.T) {
			root := server(t)
			put(t, root, ConfigFile, complete, 0)
			c.change(t, filepath.Join(root, ConfigFile))
			_, err := Load(root)
			var bad *InvalidError
			if c.says == "" && err != nil || c.says != "" && (!errors.As(err, &bad) || !strings.Contains(err.Error(), c.says)) {
				t.Errorf("%v, want %q", err, c.says)
			}
		})
	}
}

func TestLoadWithoutCloudInit(t *testing.T) {
	root := t.TempDir()
	if _, err := Load(root); !errors.Is(err, ErrNoDocument) {
		t.Errorf("want ErrNoDocument, got: %v", err)
	}
	put(t, root, ConfigFile, complete, 1000*time.Hour)
	if _, err := Load(root); err != nil {
		t.Error(err)
	}
}

func TestSecretFile(t *testing.T) {
	for name, c := range map[string]struct {
		content string
		change  func(t *testing.T, name string)
		err     string
	}{
		"one line":                {content: word + "\n"},
		"one line of Windows":     {content: word + "\r\n"},
		"no final newline":        {content: word},
		"empty":                   {content: "\n", err: "has 0 characters"},
		"short":                   {content: "hunter2\n", err: "has 7 characters"},
		"two lines":               {content: "hunter2hunter2hunter2\nhunter2\n", err: "line break"},
		"readable for its group":  {content: word, change: chmod(0o640), err: "(mode 0640): chmod 0600 /etc/mesh.secret"},
		"readable for all":        {content: word, change: chmod(0o644), err: "chmod 0600"},
		"readable for its owner":  {content: word, change: chmod(0o400)},
		"missing":                 {change: func(t *testing.T, name string) { os.Remove(name) }, err: "no such file"},
		"a folder":                {change: func(t *testing.T, name string) { os.Remove(name); os.Mkdir(name, 0o700) }, err: "not a regular file"},
		"belonging to other user": {content: word, change: chown(4711), err: "belongs to user 4711: chown root: /etc/mesh.secret; chmod 0600 /etc/mesh.secret"},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			put(t, root, "/etc/mesh.secret", c.content, 0)
			put(t, root, ConfigFile, "version: 1\npeers: []\nsecret_file: /etc/mesh.secret\n", 0)
			if c.change != nil {
				c.change(t, filepath.Join(root, "/etc/mesh.secret"))
			}
			loaded, err := Load(root)
			if c.err == "" {
				if err != nil || loaded.Secret != word {
					t.Fatalf("%v", err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), c.err) || strings.Contains(err.Error(), "hunter2") {
				t.Errorf("want an error with %q, got: %v", c.err, err)
			}
			// In cloud-init's user data, too, and not as if there were no document.
			if err := os.Remove(filepath.Join(root, ConfigFile)); err != nil {
				t.Fatal(err)
			}
			put(t, root, "/var/lib/cloud/instance/cloud-config.txt", "#cloud-config\nxivo:\n  version: 1\n  peers: []\n  secret_file: /etc/mesh.secret\n", 0)
			if _, err := Load(root); err == nil || !strings.Contains(err.Error(), c.err) || errors.Is(err, ErrNoDocument) {
				t.Errorf("of user data: want an error with %q, got: %v", c.err, err)
			}
		})
	}
}

func chmod(mode os.FileMode) func(*testing.T, string) {
	return func(t *testing.T, name string) {
		if err := os.Chmod(name, mode); err != nil {
			t.Fatal(err)
		}
	}
}

func chown(uid int) func(*testing.T, string) {
	return func(t *testing.T, name string) {
		if os.Geteuid() != 0 {
			t.Skip("only root gives a file away")
		}
		if err := os.Chown(name, uid, -1); err != nil {
			t.Fatal(err)
		}
	}
}

func TestInstance(t *testing.T) {
	for content, real := range map[string]bool{
		"i-0abc\n":              true,
		"clone-1":               true,
		"iid-datasource-none\n": false,
		"nocloud\n":             false,
		"\n":                    false,
	} {
		root := t.TempDir()
		put(t, root, instanceIDFile, content, 0)
		if id, got := Instance(root); got != real || id != strings.TrimSpace(content) {
			t.Errorf("%q: %q, %v", content, id, got)
		}
	}
	if id, real := Instance(t.TempDir()); id != "" || real {
		t.Errorf("missing: %q, %v", id, real)
	}
}
