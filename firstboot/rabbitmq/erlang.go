package rabbitmq

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
)

// A small reader of Erlang's configuration files ("file:consult" form: terms,
// each ended by a dot). It does not evaluate anything: it finds where a term
// begins and ends, so that one can be put in or replaced and every other byte,
// comments included, stays as it was.

// term is where a term stands in its source, and its parts.
type term struct {
	kind       byte // '[' list, '{' tuple, '<' binary, 'a' atom, number or string
	start, end int
	items      []term
}

// text is the term without the spaces and comments between its parts: equal
// terms that are laid out differently have equal texts.
func (t term) text(src []byte) string {
	open, shut := "", ""
	switch t.kind {
	case '[':
		open, shut = "[", "]"
	case '{':
		open, shut = "{", "}"
	default:
		return string(src[t.start:t.end])
	}
	parts := make([]string, len(t.items))
	for i, item := range t.items {
		parts[i] = item.text(src)
	}
	return open + strings.Join(parts, ",") + shut
}

// isAtom says whether the term is this atom, quoted or not.
func (t term) isAtom(src []byte, name string) bool {
	text := string(src[t.start:t.end])
	return t.kind == 'a' && (text == name || text == "'"+name+"'")
}

// entry finds the {key, …} in a list; nil when there is none. A key that is
// there twice is an error: which one counts depends on the reader.
func (t term) entry(src []byte, key string) (*term, error) {
	var found *term
	for i, item := range t.items {
		if item.kind != '{' || len(item.items) != 2 || !item.items[0].isAtom(src, key) {
			continue
		}
		if found != nil {
			return nil, at(src, item.start, "%s is there twice", key)
		}
		found = &t.items[i]
	}
	return found, nil
}

// replace puts text in the place of a term.
func (t term) replace(src []byte, text string) []byte {
	return splice(src, t.start, t.end, text)
}

// add puts text behind the last item of a list.
func (t term) add(src []byte, separator, text string) []byte {
	if len(t.items) == 0 {
		return splice(src, t.start+1, t.start+1, text)
	}
	end := t.items[len(t.items)-1].end
	return splice(src, end, end, ","+separator+text)
}

// remove takes an item out of a list, and a comma with it.
func (t term) remove(src []byte, i int) []byte {
	switch {
	case i > 0:
		return splice(src, t.items[i-1].end, t.items[i].end, "")
	case len(t.items) > 1:
		return splice(src, t.items[i].start, t.items[i+1].start, "")
	}
	return splice(src, t.items[i].start, t.items[i].end, "")
}

func splice(src []byte, from, to int, text string) []byte {
	return bytes.Join([][]byte{src[:from], []byte(text), src[to:]}, nil)
}

// readList reads a file that holds one list; nil when it holds no term at all.
func readList(src []byte) (*term, error) {
	r := &reader{src: src}
	if err := r.space(); err != nil {
		return nil, err
	}
	if r.pos == len(src) {
		return nil, nil
	}
	list, err := r.term()
	if err != nil {
		return nil, err
	}
	if list.kind != '[' {
		return nil, at(src, list.start, "a list was expected")
	}
	if err := r.space(); err != nil {
		return nil, err
	}
	if !r.accept(".") {
		return nil, at(src, r.pos, "the list's closing dot was expected")
	}
	if err := r.space(); err != nil {
		return nil, err
	}
	if r.pos != len(src) {
		return nil, at(src, r.pos, "something follows the list")
	}
	return &list, nil
}

type reader struct {
	src []byte
	pos int
}

// term reads one term. RabbitMQ's files hold no maps, funs or improper lists.
func (r *reader) term() (term, error) {
	t := term{start: r.pos}
	var err error
	switch {
	case r.accept("["):
		t.kind = '['
		t.items, err = r.items("]")
	case r.accept("{"):
		t.kind = '{'
		t.items, err = r.items("}")
	case r.accept("<<"):
		t.kind = '<'
		t.items, err = r.items(">>")
	case r.peek() == '"' || r.peek() == '\'':
		t.kind = 'a'
		err = r.quoted()
	case r.accept("$"): // a character, which may be a bracket or a quote
		t.kind = 'a'
		r.accept(`\`)
		r.pos = min(r.pos+1, len(r.src))
	default:
		t.kind = 'a'
		for r.pos < len(r.src) && (isWord(r.src[r.pos]) || r.inNumber()) {
			r.pos++
		}
		if r.pos == t.start {
			return t, at(r.src, r.pos, "a term was expected")
		}
	}
	t.end = r.pos
	return t, err
}

// items reads terms between commas up to the closing bracket.
func (r *reader) items(shut string) ([]term, error) {
	var items []term
	for open := r.pos; ; {
		if err := r.space(); err != nil {
			return nil, err
		}
		if r.pos == len(r.src) {
			return nil, at(r.src, open-1, "%q is missing for what begins here", shut)
		}
		if len(items) == 0 && r.accept(shut) {
			return nil, nil
		}
		item, err := r.term()
		if err != nil {
			return nil, err
		}
		items = append(items, item)
		if err := r.space(); err != nil {
			return nil, err
		}
		switch {
		case r.accept(","):
		case r.accept(shut):
			return items, nil
		default:
			return nil, at(r.src, r.pos, "a comma or %q was expected", shut)
		}
	}
}

// quoted reads a "string" or a 'quoted atom'.
func (r *reader) quoted() error {
	start, quote := r.pos, r.src[r.pos]
	for r.pos++; r.pos < len(r.src); r.pos++ {
		switch r.src[r.pos] {
		case '\\':
			r.pos++
		case quote:
			r.pos++
			return nil
		}
	}
	return at(r.src, start, "the quote that begins here does not end")
}

// space skips blanks and % comments. A control byte is no space: it means
// that this is not a text file.
func (r *reader) space() error {
	for ; r.pos < len(r.src); r.pos++ {
		switch c := r.src[r.pos]; {
		case c == '%':
			if n := bytes.IndexByte(r.src[r.pos:], '\n'); n >= 0 {
				r.pos += n
			} else {
				r.pos = len(r.src) - 1
			}
		case c == ' ' || c == '\t' || c == '\n' || c == '\r':
		case c < ' ':
			return at(r.src, r.pos, "byte %#x is not text", c)
		default:
			return nil
		}
	}
	return nil
}

func (r *reader) peek() byte {
	if r.pos < len(r.src) {
		return r.src[r.pos]
	}
	return 0
}

func (r *reader) accept(s string) bool {
	if bytes.HasPrefix(r.src[r.pos:], []byte(s)) {
		r.pos += len(s)
		return true
	}
	return false
}

// inNumber tells the point of 0.4 from the dot that ends a term.
func (r *reader) inNumber() bool {
	return r.src[r.pos] == '.' && r.pos+1 < len(r.src) && isDigit(r.src[r.pos+1]) &&
		r.pos > 0 && isDigit(r.src[r.pos-1])
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

func isWord(c byte) bool {
	return isDigit(c) || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' ||
		c == '_' || c == '@' || c == '-' || c == '+' || c == '#'
}

// at makes an error that says where in the source it is.
func at(src []byte, pos int, format string, args ...any) error {
	pos = max(0, min(pos, len(src)))
	line := 1 + bytes.Count(src[:pos], []byte("\n"))
	column := pos - bytes.LastIndexByte(src[:pos], '\n')
	return errors.New(fmt.Sprintf("line %d, column %d: ", line, column) + fmt.Sprintf(format, args...))
}
