package cloudinit

import (
	_ "embed"
	"fmt"
	"strings"
	"unicode"
)

// What a recorded hello of the mesh lets somebody do is to try secrets, at the price
// of stretching each. A secret that people make up is tried first.
const (
	minCharacters = 8
	minWords      = 5
	// minOwn is how many characters a secret needs beside words that are tried first.
	minOwn = 5
)

//go:embed weak.txt
var weakFile string

// weakWords are what is tried first, in small letters and without digits and marks.
var weakWords = strings.Fields(weakFile)

const strong = "take one that `xivo-firstboot secret` prints"

// checkStrength refuses secrets that are easily guessed. It says which rule they
// break, and nothing of the secret.
func checkStrength(s string) *fault {
	if n := distinct(strings.Split(strings.ToLower(s), "")); n < minCharacters {
		return &fault{fmt.Sprintf("has %d different characters, fewer than %d, so it is easily guessed", n, minCharacters), strong}
	}
	if half := s + s; strings.Contains(half[1:len(half)-1], s) {
		return &fault{"repeats itself, so it is easily guessed", strong}
	}
	if runs(s)*2 > len(s) {
		return &fault{"runs along the alphabet or a keyboard, so it is easily guessed", strong}
	}
	if own(s) < minOwn {
		return &fault{"consists of words that everybody tries first", strong}
	}
	if words := phrase(s); words != nil && distinct(words) < minWords {
		return &fault{fmt.Sprintf("has %d different words, fewer than %d, so it is easily guessed", distinct(words), minWords), strong}
	}
	return nil
}

func distinct(parts []string) int {
	seen := map[string]bool{}
	for _, p := range parts {
		seen[p] = true
	}
	return len(seen)
}

// rows are characters that follow each other, in this direction and back.
var rows = []string{"abcdefghijklmnopqrstuvwxyz", "01234567890", "qwertyuiop", "asdfghjkl", "zxcvbnm", "qwertzuiop", "yxcvbnm", "azertyuiop", "qsdfghjklm", "wxcvbn"}

// runs counts the pairs of characters that follow each other in one of the rows.
func runs(s string) (pairs int) {
	s = strings.ToLower(s)
	for i := 0; i+1 < len(s); i++ {
		for _, row := range rows {
			if strings.Contains(row, s[i:i+2]) || strings.Contains(row, s[i+1:i+2]+s[i:i+1]) {
				pairs++
				break
			}
		}
	}
	return pairs
}

// looksLike are the digits and marks that people write for letters.
var looksLike = strings.NewReplacer("0", "o", "1", "i", "3", "e", "4", "a", "5", "s", "7", "t", "@", "a", "$", "s", "!", "i")

// own counts the characters that are left when the words which are tried first, and
// rows of the alphabet or a keyboard, are taken out.
func own(s string) int {
	least := len(s)
	for _, text := range []string{s, looksLike.Replace(s)} {
		text = strings.Map(func(r rune) rune {
			if unicode.IsLetter(r) || unicode.IsDigit(r) {
				return unicode.ToLower(r)
			}
			return -1
		}, text)
		for _, w := range weakWords {
			text = strings.ReplaceAll(text, w, "")
		}
		least = min(least, len(text)-runs(text))
	}
	return least
}

// phrase returns the words and numbers of a secret that consists of them, nil for
// all else: random letters have capitals where words have none.
func phrase(s string) []string {
	word := func(r rune) bool { return unicode.IsLetter(r) || unicode.IsDigit(r) }
	words := strings.FieldsFunc(strings.ToLower(s), func(r rune) bool { return !word(r) })
	marks := 0
	before := ' '
	for _, r := range s {
		switch {
		case !word(r):
			marks++
		case unicode.IsUpper(r) && unicode.IsLower(before), unicode.IsDigit(r) && unicode.IsLetter(before), unicode.IsLetter(r) && unicode.IsDigit(before):
			return nil
		}
		before = r
	}
	if len(words) < 2 || marks >= 2*len(words) {
		return nil
	}
	return words
}
