package install

import (
	"bytes"
	"context"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	packersdk "github.com/hashicorp/packer-plugin-sdk/packer"
)

// exchange is a command that the machine is to get, and its answer.
type exchange struct {
	command string
	stdout  string
	stderr  string
	status  int
}

// scripted is a communicator that gives the answers that it was told, in order.
type scripted struct {
	packersdk.Communicator // what is not expected panics

	answers []exchange
	asked   []string
	hangs   string // a command that never ends
}

func (m *scripted) Start(_ context.Context, cmd *packersdk.RemoteCmd) error {
	m.asked = append(m.asked, cmd.Command)
	if m.hangs != "" && strings.HasPrefix(cmd.Command, m.hangs) {
		return nil
	}
	answer := exchange{status: 127, stderr: "not expected"}
	if i := len(m.asked) - 1; i < len(m.answers) && m.answers[i].command == cmd.Command {
		answer = m.answers[i]
	}
	go func() {
		io.WriteString(cmd.Stdout, answer.stdout)
		io.WriteString(cmd.Stderr, answer.stderr)
		cmd.SetExited(answer.status)
	}()
	return nil
}

type settings = map[string]any

// What the machine is asked, in the order of an installation.
const (
	isThere      = `sh -c 'test -e "$1" && echo there || echo absent' sh `
	testVersion  = isThere + "/usr/share/xivo/XIVO-VERSION"
	catVersion   = "cat /usr/share/xivo/XIVO-VERSION"
	testDebian   = isThere + "/etc/debian_version"
	catDebian    = "cat /etc/debian_version"
	findTool     = "sh -c 'command -v wget || command -v curl || true'"
	wget         = "wget -nv -T 30 -t 3 -O "
	curl         = "curl -fsSL --connect-timeout 30 --retry 2 -o "
	release2024  = "/dev/null http://mirror.xivo.solutions/archive/dists/xivo-2024.10.00/Release"
	getScript    = "/root/xivo_install.sh http://mirror.xivo.solutions/xivo_install.sh"
	head         = "head -c 2 /root/xivo_install.sh"
	writeArchive = `sh -c 'umask 022 && printf %s "$1" >"$2"' sh '// What archive.debian.org has is never signed anew.
Acquire::Check-Valid-Until "false";
' /etc/apt/apt.conf.d/80archive-debian-org`
	testSources  = isThere + "/etc/apt/sources.list"
	catSources   = "cat /etc/apt/sources.list"
	writeSources = `sh -c 'umask 022 && printf %s "$1" >"$2"' sh 'deb http://archive.debian.org/debian wheezy main
' /etc/apt/sources.list`
	writeApt = `sh -c 'umask 022 && printf %s "$1" >"$2"' sh 'Acquire::Retries "3";
Dpkg::Options { "--force-confdef"; "--force-confold"; };
' /etc/apt/apt.conf.d/99xivo-install`
	runScript = "env DEBIAN_FRONTEND=noninteractive bash /root/xivo_install.sh -a "
	noInput   = " </dev/null"
	removeAll = "rm -f /root/xivo_install.sh /etc/apt/apt.conf.d/99xivo-install"
	removeOne = "rm -f /root/xivo_install.sh"
)

var (
	absent    = exchange{command: testVersion, stdout: "absent\n"}
	bookworm  = []exchange{absent, {command: testDebian, stdout: "there\n"}, {command: catDebian, stdout: "12.5\n"}}
	withWget  = exchange{command: findTool, stdout: "/usr/bin/wget\n"}
	withCurl  = exchange{command: findTool, stdout: "/usr/bin/curl\n"}
	shebang   = exchange{command: head, stdout: "#!"}
	fetched   = slices.Concat(bookworm, []exchange{withWget, {command: wget + release2024}, {command: wget + getScript}, shebang})
	prepared  = slices.Concat(fetched, []exchange{{command: writeApt}})
	installed = slices.Concat(prepared, []exchange{{command: runScript + "2024.10.00" + noInput, stdout: "Setting up xivo\n"}})
)

func TestProvision(t *testing.T) {
	const version = "2024.10.00"
	for _, tc := range []struct {
		name     string
		settings settings
		answers  []exchange
		err      string // part of the error
		says     string // part of what the user sees
	}{
		{
			name:    "a Debian becomes a XiVO",
			answers: slices.Concat(installed, []exchange{{command: testVersion, stdout: "there\n"}, {command: catVersion, stdout: version + "\n"}, {command: removeAll}}),
			says:    "Setting up xivo",
		}, {
			name: "with curl, as another user",
			settings: settings{
				"sudo": true,
			},
			answers: sudo(slices.Concat(bookworm, []exchange{
				withCurl, {command: curl + release2024}, {command: curl + getScript}, shebang, {command: writeApt},
				{command: runScript + version + noInput},
				{command: testVersion, stdout: "there\n"}, {command: catVersion, stdout: version}, {command: removeAll},
			})),
		}, {
			name:     "an old release comes from the archive",
			settings: settings{"xivo_version": "15.19", "apt_retries": 7},
			answers: []exchange{
				absent, {command: testDebian, stdout: "there\n"}, {command: catDebian, stdout: "7.11"}, withWget,
				{command: wget + "/dev/null http://mirror.xivo.solutions/archive/dists/xivo-15.19/Release"},
				{command: wget + getScript}, shebang,
				{command: writeArchive}, {command: testSources, stdout: "there\n"}, {command: catSources, stdout: "deb http://ftp.fr.debian.org/debian/ wheezy main\n"}, {command: writeSources},
				{command: strings.Replace(writeApt, "3", "7", 1)}, {command: runScript + "15.19" + noInput},
				{command: testVersion, stdout: "there\n"}, {command: catVersion, stdout: "15.19"}, {command: removeAll},
			},
		}, {
			name:     "an old release with sources of its own",
			settings: settings{"xivo_version": "15.19"},
			answers: []exchange{
				absent, {command: testDebian, stdout: "there\n"}, {command: catDebian, stdout: "7.11"}, withWget,
				{command: wget + "/dev/null http://mirror.xivo.solutions/archive/dists/xivo-15.19/Release"},
				{command: wget + getScript}, shebang,
				{command: writeArchive}, {command: testSources, stdout: "there\n"}, {command: catSources},
				{command: writeApt}, {command: runScript + "15.19" + noInput},
				{command: testVersion, stdout: "there\n"}, {command: catVersion, stdout: "15.19"}, {command: removeAll},
			},
		}, {
			name:     "Wazo, from a mirror of one's own, apt as it is",
			settings: settings{"xivo_version": "18.03", "mirror": "https://wazo.example:8443/m/", "archive": false},
			answers: []exchange{
				absent, {command: testDebian, stdout: "there\n"}, {command: catDebian, stdout: "9.13"}, withWget,
				{command: wget + "/dev/null https://wazo.example:8443/m/archive/dists/wazo-18.03/Release"},
				{command: wget + "/root/xivo_install.sh https://wazo.example:8443/m/fai/xivo-migration/wazo_install.sh"}, shebang,
				{command: writeApt},
				{command: `sed -i -e 's|http://mirror\.wazo\.community|https://wazo.example:8443/m|g' /root/xivo_install.sh`},
				{command: runScript + "18.03" + noInput},
				{command: testVersion, stdout: "there\n"}, {command: catVersion, stdout: "18.03"}, {command: removeAll},
			},
		}, {
			name:    "the wanted version is there",
			answers: []exchange{{command: testVersion, stdout: "there\n"}, {command: catVersion, stdout: version + "\n"}},
			says:    "XiVO 2024.10.00 is already installed: nothing to do",
		}, {
			name:    "another version is there",
			answers: []exchange{{command: testVersion, stdout: "there\n"}, {command: catVersion, stdout: "2023.05.00\n"}},
			err:     "the machine has XiVO 2023.05.00 and 2024.10.00 is wanted",
		}, {
			name:    "a version file that says nothing",
			answers: []exchange{{command: testVersion, stdout: "there\n"}, {command: catVersion, stdout: "\n"}},
			err:     "XIVO-VERSION is empty; nothing was installed",
		}, {
			name:     "another Debian, whose number is greater only as text",
			settings: settings{"xivo_version": "2021.07.00"},
			answers:  []exchange{absent, {command: testDebian, stdout: "there\n"}, {command: catDebian, stdout: "9.13\n"}},
			err:      "XiVO 2021.07.00 needs Debian 10 (buster), and the machine is Debian 9.13: choose a source",
		}, {
			name:    "a Debian before its release",
			answers: []exchange{absent, {command: testDebian, stdout: "there\n"}, {command: catDebian, stdout: "trixie/sid\n"}},
			err:     "the machine is Debian trixie/sid",
		}, {
			name:    "no Debian",
			answers: []exchange{absent, {command: testDebian, stdout: "absent\n"}},
			err:     "the machine is no Debian",
		}, {
			name:     "a refusal of sudo is not an absent file",
			settings: settings{"sudo": true},
			answers:  sudo([]exchange{{command: testVersion, status: 1, stderr: "sudo: a password is required"}}),
			err:      "sudo: a password is required",
		}, {
			name:    "a greeting is not an answer",
			answers: []exchange{{command: testVersion, stdout: "Welcome!\nabsent\n"}},
			err:     `unexpected answer "Welcome!\nabsent\n"; nothing was installed`,
		}, {
			name:     "a terminal and a warning of sudo change nothing",
			settings: settings{"sudo": true},
			answers: sudo([]exchange{
				{command: testVersion, stdout: "there\r\n", stderr: "sudo: unable to resolve host"}, {command: catVersion, stdout: version + "\r\n"},
			}),
			says: "already installed",
		}, {
			name:    "nothing to fetch with",
			answers: slices.Concat(bookworm, []exchange{{command: findTool}}),
			err:     "neither wget nor curl: install one first",
		}, {
			name:    "a mirror out of reach",
			answers: slices.Concat(bookworm, []exchange{withWget, {command: wget + release2024, status: 4, stderr: "wget: unable to resolve host address 'mirror.xivo.solutions'\n"}}),
			err:     "cannot reach the mirror http://mirror.xivo.solutions (wget -nv -T 30 -t 3 -O " + release2024 + ": exit status 4: wget: unable to resolve host address 'mirror.xivo.solutions'): check the machine's network and name server, or set mirror to one that it can reach; nothing was installed",
		}, {
			name:    "a mirror without the version",
			answers: slices.Concat(bookworm, []exchange{withCurl, {command: curl + release2024, status: 22, stderr: "curl: (22) The requested URL returned error: 404"}}),
			err:     "the mirror http://mirror.xivo.solutions answers and does not have /archive/dists/xivo-2024.10.00/Release (curl: (22)",
		}, {
			name:    "a mirror without the script leaves nothing of it",
			answers: slices.Concat(bookworm, []exchange{withWget, {command: wget + release2024}, {command: wget + getScript, status: 8, stderr: "ERROR 404"}, {command: removeOne}}),
			err:     "answers and does not have /xivo_install.sh (ERROR 404)",
		}, {
			name:    "a page instead of the script is not run",
			answers: slices.Concat(bookworm, []exchange{withWget, {command: wget + release2024}, {command: wget + getScript}, {command: head, stdout: "<h"}, {command: removeOne}}),
			err:     `xivo_install.sh is no script: it begins with "<h"`,
		}, {
			name:    "a script that fails",
			answers: slices.Concat(prepared, []exchange{{command: runScript + version + noInput, status: 100, stderr: "E: no such package\n"}}),
			err:     "exit status 100 (the machine is between Debian and XiVO 2024.10.00",
			says:    "E: no such package",
		}, {
			name:    "a script that loses the connection",
			answers: slices.Concat(prepared, []exchange{{command: runScript + version + noInput, status: packersdk.CmdDisconnect}}),
			err:     "the connection was lost",
		}, {
			name:    "a script that installs something else",
			answers: slices.Concat(installed, []exchange{{command: testVersion, stdout: "there\n"}, {command: catVersion, stdout: "2025.05.00\n"}}),
			err:     "says 2025.05.00 instead of 2024.10.00",
		}, {
			name:    "a script that installs nothing",
			answers: slices.Concat(installed, []exchange{{command: testVersion, stdout: "absent\n"}}),
			err:     "ended well, and there is no /usr/share/xivo/XIVO-VERSION",
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var p Provisioner
			if err := p.Prepare(settings{"xivo_version": version}, tc.settings); err != nil {
				t.Fatal(err)
			}
			var shown bytes.Buffer
			ui := &packersdk.BasicUi{Reader: strings.NewReader(""), Writer: &shown, ErrorWriter: &shown}
			m := &scripted{answers: tc.answers}

			err := p.Provision(t.Context(), ui, m, nil)
			if (err == nil) != (tc.err == "") || err != nil && !strings.Contains(err.Error(), tc.err) {
				t.Errorf("error: got %v\nwant %q", err, tc.err)
			}
			var want []string
			for _, e := range tc.answers {
				want = append(want, e.command)
			}
			if diff := cmp.Diff(want, m.asked); diff != "" {
				t.Errorf("asked of the machine (-want +got):\n%s", diff)
			}
			if !strings.Contains(shown.String(), tc.says) {
				t.Errorf("the user does not see %q but:\n%s", tc.says, &shown)
			}
		})
	}
}

// sudo is what is asked of the machine by another user than root.
func sudo(answers []exchange) []exchange {
	answers = slices.Clone(answers)
	for i := range answers {
		answers[i].command = "sudo -n " + answers[i].command
	}
	return answers
}

func TestProvisionEndsInTime(t *testing.T) {
	for _, hangs := range []string{testVersion, runScript} {
		var p Provisioner
		if err := p.Prepare(settings{"xivo_version": "2024.10.00", "timeout": "50ms"}); err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		err := p.Provision(t.Context(), packersdk.TestUi(t), &scripted{answers: installed, hangs: hangs}, nil)
		if err == nil || !strings.Contains(err.Error(), "not finished within timeout = 50ms") {
			t.Errorf("%s hangs: %v", hangs, err)
		}
		if took := time.Since(begin); took > 10*time.Second {
			t.Errorf("%s hangs: returned after %s", hangs, took)
		}
	}
}
