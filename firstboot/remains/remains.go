// Package remains is the proof that a disk holds nothing of a machine that was: the
// values that were its own, which stay outside the image, and the search of a disk
// for them, in every form in which something may have written them.
package remains

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"

	"github.com/google/uuid"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/disk"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/limit"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/secret"
)

// Values are what a machine had that is its own: identities and secrets, by names
// that tell neither. They print as nothing but the names.
type Values struct{ all []value }

type value struct {
	name string
	text secret.Secret
}

func (v Values) String() string               { return fmt.Sprintf("values of %q", v.Names()) }
func (v Values) GoString() string             { return v.String() }
func (v Values) MarshalText() ([]byte, error) { return []byte(v.String()), nil }

// Add adds a value. One that is empty, or known already, is not added.
func (v *Values) Add(name, text string) {
	text = strings.TrimSpace(text)
	if text == "" || slices.ContainsFunc(v.all, func(have value) bool { return have.text.Reveal() == text }) {
		return
	}
	v.all = append(v.all, value{name, secret.Secret(text)})
}

// AddAll adds those of others.
func (v *Values) AddAll(others Values) {
	for _, other := range others.all {
		v.Add(other.name, other.text.Reveal())
	}
}

// Len is how many there are.
func (v Values) Len() int { return len(v.all) }

// Names are what the values are called, in order, each once.
func (v Values) Names() []string {
	var names []string
	for _, value := range v.all {
		if !slices.Contains(names, value.name) {
			names = append(names, value.name)
		}
	}
	return names
}

const format = 1

type file struct {
	Format int         `json:"format"`
	Values []fileValue `json:"values"`
}

type fileValue struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// Encode is the values as a file, which holds secrets.
func (v Values) Encode() ([]byte, error) {
	f := file{Format: format, Values: []fileValue{}}
	for _, value := range v.all {
		f.Values = append(f.Values, fileValue{value.name, value.text.Reveal()})
	}
	raw, err := json.MarshalIndent(f, "", "  ")
	return append(raw, '\n'), err
}

// Decode reads what Encode made. No value in it is an error: a search for nothing
// finds nothing.
func Decode(from io.Reader) (Values, error) {
	raw, err := limit.Read(from, limit.File)
	if err != nil {
		return Values{}, err
	}
	var f file
	// Its text is not quoted in the error: it holds secrets.
	if err := json.Unmarshal(raw, &f); err != nil || f.Format != format {
		return Values{}, fmt.Errorf("these are no values of a seal of format %d", format)
	}
	var v Values
	for _, value := range f.Values {
		v.Add(value.Name, value.Value)
	}
	if len(v.all) == 0 {
		return Values{}, errors.New("there is no value in it to search for")
	}
	return v, nil
}

// form is one way in which a value may be written.
type form struct {
	of    int // the value
	how   string
	bytes []byte
}

// forms are all ways in which the values may be written, and the names of those that
// are too short to be searched for.
func (v Values) forms() (forms []form, short []string) {
	seen := map[string]bool{}
	for i, value := range v.all {
		found := false
		add := func(how string, raw []byte) {
			if len(raw) < disk.Shortest {
				return
			}
			found = true
			if !seen[string(raw)] {
				seen[string(raw)] = true
				forms = append(forms, form{i, how, raw})
			}
		}
		each(value.text.Reveal(), add)
		if !found {
			short = append(short, value.name)
		}
	}
	return forms, short
}

var isHex = regexp.MustCompile(`^([0-9a-fA-F]{2}){12,}$`)

// each calls add with every form of one value.
func each(text string, add func(how string, raw []byte)) {
	if block, _ := pem.Decode([]byte(text)); block != nil {
		eachOfKey(text, block.Bytes, add)
		return
	}
	add("as text", []byte(text))
	eachInBase64(text, add)
	// 32 hex digits are read as a UUID: so does what prints a machine id.
	if id, err := uuid.Parse(text); err == nil {
		dashed, plain := id.String(), hex.EncodeToString(id[:])
		add("as text", []byte(dashed))
		eachInBase64(dashed, add)
		add("as text in capitals", []byte(strings.ToUpper(dashed)))
		add("as text without dashes", []byte(plain))
		add("as text without dashes, in capitals", []byte(strings.ToUpper(plain)))
		add("as 16 bytes", id[:])
		mixed := id
		slices.Reverse(mixed[0:4])
		slices.Reverse(mixed[4:6])
		slices.Reverse(mixed[6:8])
		add("as 16 bytes in DMI's order", mixed[:])
		return
	}
	if isHex.MatchString(text) {
		add("as text", []byte(strings.ToLower(text)))
		add("as text in capitals", []byte(strings.ToUpper(text)))
		raw, _ := hex.DecodeString(text)
		add("as bytes", raw)
		return
	}
	for _, encoding := range []*base64.Encoding{base64.StdEncoding, base64.RawURLEncoding} {
		if raw, err := encoding.DecodeString(text); err == nil && len(raw) >= shortestKey {
			add("as bytes", raw)
		}
	}
}

// eachInBase64 is a text somewhere in what was written in base64 as a whole, as the
// values in an export of Consul's KV are: it may begin at any of three bits.
func eachInBase64(text string, add func(how string, raw []byte)) {
	for before := range 3 {
		encoded := base64.RawStdEncoding.EncodeToString(append(make([]byte, before), text...))
		first, last := (before*8+5)/6, (before+len(text))*8/6
		add("in base64", []byte(encoded[first:last]))
	}
}

// shortestKey is how many bytes a text in base64 must stand for: a name may look
// like base64, too.
const shortestKey = 12

// eachOfKey searches for parts of a private key's second half: the first has what the
// certificate or the public key has, too.
func eachOfKey(text string, der []byte, add func(how string, raw []byte)) {
	var lines []string
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); len(line) >= 60 && !strings.HasPrefix(line, "-") {
			lines = append(lines, line)
		}
	}
	for _, line := range lines[len(lines)/2:] {
		add("as text", []byte(line))
	}
	const part = 32
	for at := len(der) / 2; at+part <= len(der); at += 4 * part {
		add("as bytes", der[at:at+part])
	}
}
