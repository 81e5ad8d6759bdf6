package secret

import (
	"errors"
	"strings"
)

// longest is how many bytes of an answer Redact repeats: some are a page of Erlang.
const longest = 300

// Redact is an error of another program as it may be told: one line of at most 300
// bytes in which "[redacted]" stands for each of the secrets. A secret that was
// sent in more than one form, as part of a uri for example, is to be given in
// each. The result wraps nothing: the original would tell all.
func Redact(err error, secrets ...Secret) error {
	text := oneLine(err.Error())
	for _, s := range secrets {
		for _, form := range []string{s.Reveal(), oneLine(s.Reveal())} {
			if form != "" {
				text = strings.ReplaceAll(text, form, redacted)
			}
		}
	}
	if len(text) > longest {
		text = strings.ToValidUTF8(text[:longest], "") + " …"
	}
	return errors.New(text)
}

func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }

// RedactURI is a uri without the user and the password in it, and without what
// follows a question mark, where some uris have a password, too. It is cut, not
// parsed: one that a person wrote need not be well-formed.
func RedactURI(uri string) string {
	scheme, rest, found := strings.Cut(uri, "://")
	if !found {
		scheme, rest = "", uri
	} else {
		scheme += "://"
	}
	rest = rest[strings.LastIndexByte(rest, '@')+1:]
	rest, _, _ = strings.Cut(rest, "?")
	return scheme + rest
}
