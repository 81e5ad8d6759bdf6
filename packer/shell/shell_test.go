package shell_test

import (
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/xivo-mesh/packer-plugin-xivo/packer/shell"
)

func TestQuoteIsOneWordOfAShell(t *testing.T) {
	for word, want := range map[string]string{
		"":               "''",
		"plain-1.0":      "plain-1.0",
		"http://a/b?c&d": "'http://a/b?c&d'",
		"two words":      "'two words'",
		"$(reboot)":      "'$(reboot)'",
		"it's":           `'it'\''s'`,
		"two\nlines":     "'two\nlines'",
	} {
		if got := shell.Quote(word); got != want {
			t.Errorf("%q: got %s, want %s", word, got, want)
		}
	}
}

func TestAShellReadsTheSameWords(t *testing.T) {
	words := []string{"", "plain", "two words", "it's", "$HOME `id` \\ \"x\"", "*", "~", "#", "a\n b\n", "-e"}
	argv := append([]string{"printf", `%s\000`}, words...)
	before := slices.Clone(argv)
	line := shell.Quote(argv...)
	if !slices.Equal(argv, before) {
		t.Errorf("the caller's words were changed: %q", argv)
	}
	out, err := exec.Command("sh", "-c", line).Output()
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Split(strings.TrimSuffix(string(out), "\x00"), "\x00"); !slices.Equal(got, words) {
		t.Errorf("got %q, want %q", got, words)
	}
}
