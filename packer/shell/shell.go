// Package shell writes command lines for a POSIX shell, here or in the machine
// that is provisioned.
package shell

import (
	"regexp"
	"strings"
)

// plainWord is a word that every shell reads as it stands.
var plainWord = regexp.MustCompile(`^[A-Za-z0-9_@%+=:,./-]+$`)

// Quote returns a command line that a shell splits into exactly these words and
// expands nothing of. Words that need no quotes have none. An empty word is a pair of quotes;
// no words are an empty command line. A word must not hold a NUL byte, which no
// argument of a program can.
func Quote(words ...string) string {
	quoted := make([]string, len(words))
	for i, word := range words {
		if !plainWord.MatchString(word) {
			word = "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
		}
		quoted[i] = word
	}
	return strings.Join(quoted, " ")
}
