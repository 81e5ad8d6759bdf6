package remote

import "testing"

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
		if got := quote(word); got != want {
			t.Errorf("%q: got %s, want %s", word, got, want)
		}
	}
}
