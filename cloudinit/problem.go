package cloudinit

import (
	"cmp"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/agext/levenshtein"
)

// ErrNoDocument says that there is nothing for us: no key `xivo`, or an empty
// file. A document that is there and bad is an *InvalidError.
var ErrNoDocument = errors.New("no xivo document")

// Problem is one thing that is wrong with a document.
type Problem struct {
	File string
	// Line and Column count from 1; Column counts characters.
	Line, Column int
	// Path names the value, for example "xivo.peers[1]"; "" when the file as a
	// whole could not be read.
	Path string
	// What is wrong, and what to Do about it. Neither repeats a secret.
	What, Do string
}

// String is `file:line:column: xivo.path: what, what to do`.
func (p Problem) String() string {
	path := p.Path
	if path != "" {
		path += ": "
	}
	return fmt.Sprintf("%s:%d:%d: %s%s, %s", p.File, p.Line, p.Column, path, p.What, p.Do)
}

// InvalidError is a document that was refused, with everything that is wrong
// with it in the order of the file. There is at least one problem.
type InvalidError struct {
	Problems []Problem
}

// Error returns one problem per line.
func (e *InvalidError) Error() string {
	lines := make([]string, len(e.Problems))
	for i, p := range e.Problems {
		lines[i] = p.String()
	}
	return strings.Join(lines, "\n")
}

func invalid(problems []Problem) *InvalidError {
	slices.SortStableFunc(problems, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
	return &InvalidError{Problems: problems}
}

// nearest returns the known name that was probably meant, or "".
func nearest(name string, known []string) string {
	best, least := "", 3
	for _, k := range known {
		d := levenshtein.Distance(fold(name), fold(k), nil)
		if d < least && d*2 <= len(k) {
			best, least = k, d
		}
	}
	return best
}

func fold(s string) string { return strings.ReplaceAll(strings.ToLower(s), "-", "_") }

var plainName = regexp.MustCompile(`^[A-Za-z0-9_.-]*`)

// quote shows a value that a user wrote, on one line and short.
func quote(s string) string {
	if runes := []rune(s); len(runes) > 60 {
		s = string(runes[:60]) + "…"
	}
	return fmt.Sprintf("%q", s)
}

// quoteKey shows the name of an unknown key. What follows a name is cut off:
// `secret:abc` without the space is one key, with the secret in it.
func quoteKey(s string) string {
	if name := plainName.FindString(s); name != s {
		s = name + "…"
	}
	return quote(s)
}
