package userdata

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/hashicorp/hcl/v2/hcldec"
	"github.com/zclconf/go-cty/cty"

	"github.com/xivo-mesh/packer-plugin-xivo/cloudinit"
	"github.com/xivo-mesh/packer-plugin-xivo/packer/packertest"
)

// decode reads what stands between the braces of the data source's block, as
// Packer does.
func decode(t *testing.T, body string) cty.Value {
	t.Helper()
	return packertest.Decode(t, new(Datasource).ConfigSpec(), body)
}

const complete = `
peers               = ["192.168.1.124", "XiVO2.example.com"]
secret              = "seven boats {{ left }} harbour today"
advertise_interface = "eth1"
identity            = "regenerate"
topology            = "hub"
hub                 = "192.168.1.124"
network {
  mode  = "overlay"
  range = "10.200.0.0/20"
  port  = 9999
}
directory {
  contexts           = ["default", "sales"]
  verify_certificate = true
  ca_file            = "/etc/ssl/mesh.pem"
}
consul {
  encrypt = false
}
firewall {
  enabled = false
  allow   = ["10.0.0.0/8"]
  metadata = "open"
}
`

func TestOutput(t *testing.T) {
	const word = `secret = "six red pens on a mat"` + "\n"
	for name, body := range map[string]string{
		"first-node":    "peers = []\n" + word,
		"complete":      complete,
		"write-files":   "write_files = true\n" + complete,
		"secret-file":   `peers = ["a"]` + "\n" + `secret_file = "/etc/mesh.secret"` + "\n" + `advertise = "10.0.0.7"`,
		"direct":        "peers = []\n" + word + "network {\n mode = \"direct\"\n interface = \"wg0\"\n shared = true\n}\n",
		"empty-blocks":  "peers = []\n" + word + "network {}\ndirectory {}\nconsul {}\nfirewall {}\n",
		"some-booleans": "peers = []\n" + word + "consul {\n encrypt = true\n}\n",
	} {
		t.Run(name, func(t *testing.T) {
			var d Datasource
			if err := d.Configure(decode(t, body)); err != nil {
				t.Fatal(err)
			}
			out, err := d.Execute()
			if err != nil {
				t.Fatal(err)
			}
			if !out.Type().Equals(hcldec.ImpliedType(d.OutputSpec())) {
				t.Errorf("the output is not what OutputSpec says: %#v", out)
			}
			got := out.GetAttr("user_data").AsString()
			if _, err := cloudinit.Parse([]byte(got), name); err != nil {
				t.Errorf("a node would refuse it: %v", err)
			}
			packertest.Golden(t, filepath.Join("testdata", name+".yml"), got)
		})
	}
}

func TestProblemsAreThoseOfAttributes(t *testing.T) {
	const word = `secret = "six red pens on a mat"`
	for name, tc := range map[string]struct {
		body string
		want []string
	}{
		"no peers":                      {word, []string{"peers: is missing", "`peers = []`"}},
		"a network among the peers":     {`peers = ["a", "10.0.0.0/8"]` + "\n" + word, []string{`peers[1]: "10.0.0.0/8" is a network`}},
		"no secret":                     {`peers = []`, []string{"secret: is missing", "secret_file"}},
		"a short secret":                {`peers = []` + "\n" + `secret = "hunter2"`, []string{"secret: has 7 characters"}},
		"a secret that people try":      {`peers = []` + "\n" + `secret = "correct horse battery staple"`, []string{"secret: consists of words that everybody tries first", "`xivo-firstboot secret`"}},
		"two secrets":                   {`peers = []` + "\n" + word + "\n" + `secret_file = "/x"`, []string{"secret_file: there is a secret, too"}},
		"two places to advertise":       {`peers = []` + "\n" + word + "\n" + `advertise = "auto"` + "\n" + `advertise_interface = "eth0"`, []string{"advertise_interface: there is advertise, too"}},
		"a bad interface":               {`peers = []` + "\n" + word + "\n" + `advertise_interface = "lo"`, []string{`advertise_interface: "lo" cannot be reached`}},
		"a bad address":                 {`peers = []` + "\n" + word + "\n" + `advertise = "127.0.0.1"`, []string{`advertise: "127.0.0.1" cannot be reached`}},
		"a misspelt choice":             {`peers = []` + "\n" + word + "\n" + `topology = "rign"`, []string{`topology: "rign" is not known, did you mean`, "`ring`"}},
		"a hub in a mesh":               {`peers = []` + "\n" + word + "\n" + `hub = "a"`, []string{"hub: has no meaning in a mesh", "`topology = \"hub\"`"}},
		"a hub without one":             {`peers = []` + "\n" + word + "\n" + `topology = "hub"`, []string{"hub: is missing"}},
		"an authority for nothing":      {`peers = []` + "\n" + word + "\ndirectory {\n" + `ca_file = "/x"` + "\n}", []string{"directory.ca_file: has no effect", "`verify_certificate = true`"}},
		"an empty list of contexts":     {`peers = []` + "\n" + word + "\ndirectory {\n contexts = []\n}", []string{"directory.contexts: is an empty list", "leave it out"}},
		"a network with host bits":      {`peers = []` + "\n" + word + "\nfirewall {\n" + `allow = ["10.0.0.1/8"]` + "\n}", []string{"firewall.allow[0]:", "host bits"}},
		"a misspelt mode":               {`peers = []` + "\n" + word + "\nnetwork {\n" + `mode = "overlap"` + "\n}", []string{`network.mode: "overlap" is not known, did you mean`, "`overlay`"}},
		"a range of the Internet":       {`peers = []` + "\n" + word + "\nnetwork {\n" + `mode = "overlay"` + "\n" + `range = "8.8.0.0/16"` + "\n}", []string{`network.range: "8.8.0.0/16" is not private or shared address space`}},
		"a port of XiVO's":              {`peers = []` + "\n" + word + "\nnetwork {\n" + `mode = "overlay"` + "\nport = 5060\n}", []string{"network.port: 5060 belongs to SIP"}},
		"port 0":                        {`peers = []` + "\n" + word + "\nnetwork {\n" + `mode = "overlay"` + "\nport = 0\n}", []string{`network.port: "0" is not a port`}},
		"an interface without a mode":   {`peers = []` + "\n" + word + "\nnetwork {\n" + `interface = "wg0"` + "\n}", []string{"network.interface: has no meaning in the mode overlay", "`mode = \"direct\"`"}},
		"direct through nothing":        {`peers = []` + "\n" + word + "\nnetwork {\n" + `mode = "direct"` + "\n}", []string{"network.interface: is missing"}},
		"a peer in the range":           {`peers = ["a", "100.88.0.7"]` + "\n" + word + "\nnetwork {\n" + `mode = "overlay"` + "\n}", []string{`peers[1]: "100.88.0.7" lies in network.range`}},
		"a mode for the metadata":       {`peers = []` + "\n" + word + "\nfirewall {\n" + `metadata = "closed"` + "\n}", []string{"firewall.metadata:", "write open"}},
		"everything at once, in a list": {`peers = ["http://a"]` + "\n" + `identity = "mine"`, []string{"peers[0]: is a URL", "identity:", "secret: is missing"}},
	} {
		t.Run(name, func(t *testing.T) {
			err := new(Datasource).Configure(decode(t, tc.body))
			if err == nil {
				t.Fatal("accepted")
			}
			for _, want := range tc.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q is not in: %v", want, err)
				}
			}
			for _, bad := range []string{"xivo.", "user_data:", "hunter2", "six red pens", "horse"} {
				if strings.Contains(err.Error(), bad) {
					t.Errorf("%q is in: %v", bad, err)
				}
			}
		})
	}
}

func TestWhatIsNotKnownYetIsCheckedLater(t *testing.T) {
	var d Datasource
	// As `packer validate` does for the output of another data source.
	if err := d.Configure(decode(t, `peers = []`+"\n"+`secret = "<unknown>"`)); err != nil {
		t.Errorf("refused too early: %v", err)
	}
	if _, err := d.Execute(); err == nil || !strings.Contains(err.Error(), "secret: has 9 characters") {
		t.Errorf("got %v", err)
	}
}
