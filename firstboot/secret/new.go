package secret

import (
	"crypto/rand"
	"strings"
)

// New makes a secret that nobody guesses: 25 characters of base32, 125 bits, in
// groups that can be told over the telephone. It reads the same in every file.
func New() Secret {
	const groups, group = 5, 5
	text := strings.ToLower(rand.Text())
	var parts []string
	for i := range groups {
		parts = append(parts, text[i*group:(i+1)*group])
	}
	return Secret(strings.Join(parts, "-"))
}
