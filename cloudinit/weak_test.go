package cloudinit

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/secret"
)

func TestASecretThatIsEasilyGuessedIsRefused(t *testing.T) {
	const characters, repeats, row, words, tried = "different characters", "repeats itself", "runs along", "different words", "everybody tries first"
	for _, c := range []struct{ secret, because string }{
		{"aaaaaaaaaaaaaaaa", characters},
		{"passwordpassword", characters},
		{"1111222233334444", characters},
		{"hunter2xhunter2xhunter2x", repeats},
		{"Rosebud9Rosebud9", repeats},
		{"abcdefghijklmnop", row},
		{"0123456789abcdef", row},
		{"1234567890qwertyuiop", row},
		{"qwertzuiopasdfgh", row},
		{"a sentence that only we know", tried},
		{"A sentence, that only we know!", tried},
		{"correct horse battery staple", tried},
		{"CorrectHorseBatteryStaple1", tried},
		{"the quick brown fox jumps over the lazy dog", tried},
		{"Password12345678!", tried},
		{"P@ssw0rd P@ssw0rd 2024", tried},
		{"xivo-mesh-secret-2024", tried},
		{"xivo mesh password server", tried},
		{"wazo.admin.changeme.1", tried},
		{"<what xivo-firstboot secret prints>", tried},
		{"my long little pony", words},
		{"lyon-grenoble-annecy", words},
		{"Lyon.Grenoble.2016", words},
		{"LYON_GRENOBLE_LYON_GRENOBLE_NICE", words},
	} {
		t.Run(c.secret, func(t *testing.T) {
			want := regexp.MustCompile(`^d:1:39: xivo\.secret: .*` + c.because + `.*, take one that .xivo-firstboot secret. prints$`)
			_, err := Parse(fmt.Appendf(nil, "xivo: {version: 1, peers: [], secret: '%s'}", c.secret), "d")
			if err == nil || !want.MatchString(err.Error()) {
				t.Errorf("%v, want %s", err, want)
			}
			if err != nil && strings.Contains(err.Error(), c.secret) {
				t.Errorf("the secret is told: %v", err)
			}

			root := t.TempDir()
			file := filepath.Join(root, "secret")
			if err := os.WriteFile(file, []byte(c.secret+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := (&Config{SecretFile: "/secret"}).ReadSecret(root); err == nil || !strings.Contains(err.Error(), c.because) {
				t.Errorf("in a file: %v, want %q", err, c.because)
			}
			// A node that works with it goes on.
			worked := Alone()
			worked.Secret = secret.Secret(c.secret)
			kept := UserData(worked)
			if c, err := ParseKept(kept, "document.yml"); err != nil {
				t.Errorf("kept before: %v", err)
			} else if string(UserData(c)) != string(kept) {
				t.Error("kept before, it is read as another document")
			}
		})
	}
}

func TestASecretThatNobodyGuessesIsTaken(t *testing.T) {
	for _, s := range []string{
		"seven small boats left harbour today",
		"K9x!vB2m#Qp7zR4t",
		"3f9c1a7be04d5286",
		"wJ2kPq8+ZmFvYxNcTgHsRbLdEu/KoAiX",
		"FGHTZ-PLMQW-BXCVR-NDJKS-TYWPL",
		"5f0f5a4e-6c5f-4f3e-9a47-0d8d5b0f7a11",
	} {
		if bad := checkStrength(s); bad != nil {
			t.Errorf("%s: %s", s, bad.what)
		}
	}
	const base64 = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
	for range 3000 {
		random := make([]byte, 24)
		for i := range random {
			random[i] = base64[rand.IntN(len(base64))]
		}
		for _, s := range []string{secret.New().Reveal(), Alone().Secret.Reveal(), string(random)} {
			if bad := checkStrength(s); bad != nil {
				t.Errorf("%s: %s", s, bad.what)
			}
		}
	}
}
