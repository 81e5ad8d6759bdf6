package cloudinit

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/agext/levenshtein"
	"gopkg.in/yaml.v3"
)

// MaxSize is the most bytes that a file with a document may have.
const MaxSize = 512 << 10

// maxExpanded is how many values a file may hold once its aliases are written
// out: far above any real document, far below what hurts.
const maxExpanded = 100_000

// ConfigFile is where the document stands by itself on a server.
const ConfigFile = "/etc/xivo-firstboot/config.yml"

const blockKey = "xivo"

// place is where in a file the block may stand.
type place int

const (
	// The value of the key `xivo` is one always.
	asWhole      place = 1 << iota // the whole file
	inWriteFiles                   // what a write_files entry puts into ConfigFile
	accepted                       // nowhere else: it was accepted before
)

// Parse reads a document: a cloud-config with the key `xivo` or with a
// write_files entry for ConfigFile, or the bare block as ConfigFile holds it.
// Other keys of a cloud-config are not looked at. The name is the file's, for
// messages.
//
// The error is an *InvalidError with every problem found, or wraps
// ErrNoDocument. Nothing outside data is read: a secret_file is only named.
func Parse(data []byte, name string) (*Config, error) {
	return parse(data, name, asWhole|inWriteFiles)
}

// ParseKept reads what UserData rendered of an accepted document. Its secret was
// accepted then: a later release that refuses it takes no node out of its mesh.
func ParseKept(data []byte, name string) (*Config, error) {
	return parse(data, name, accepted)
}

func parse(data []byte, name string, places place) (*Config, error) {
	r := &reader{file: name, lines: bytes.Split(data, []byte("\n")), accepted: places&accepted != 0}
	if !r.text(data) {
		return nil, invalid(r.problems)
	}
	root := r.yaml(data)
	if len(r.problems) > 0 {
		return nil, invalid(r.problems)
	}
	if root == nil {
		return nil, fmt.Errorf("%s: %w: the file is empty", name, ErrNoDocument)
	}

	block, last := r.find(root, data, places)
	if block == nil && len(r.problems) == 0 {
		if file := writtenFile(root); file != nil && places&inWriteFiles != 0 {
			r.checkPermissions(file)
			return r.embedded(file["content"])
		}
		return nil, fmt.Errorf("%s: %w: it has no key `%s`", name, ErrNoDocument, blockKey)
	}
	c := defaults()
	if block != nil {
		r.tabs(block.Line, last)
		r.block(block, c)
	}
	if len(r.problems) > 0 {
		return nil, invalid(r.problems)
	}
	return c, nil
}

// reader collects the problems of one file.
type reader struct {
	file     string
	lines    [][]byte
	problems []Problem
	// accepted: the secret was accepted before.
	accepted bool
}

func (r *reader) problem(line, column int, path, what, do string) {
	r.problems = append(r.problems, Problem{r.file, max(line, 1), max(column, 1), path, what, do})
}

func (r *reader) at(n *yaml.Node, path, what, do string) {
	r.problem(n.Line, n.Column, path, what, do)
}

// text checks what must hold before YAML is read at all.
func (r *reader) text(data []byte) bool {
	switch {
	case len(data) > MaxSize:
		r.problem(1, 1, "", fmt.Sprintf("the file has %d bytes", len(data)), fmt.Sprintf("keep it within %d", MaxSize))
	case bytes.HasPrefix(data, []byte("\xef\xbb\xbf")), bytes.HasPrefix(data, []byte("\xff\xfe")), bytes.HasPrefix(data, []byte("\xfe\xff")):
		// cloud-init does not recognise "#cloud-config" after one.
		r.problem(1, 1, "", "the file starts with a byte order mark", "save it as UTF-8 without one")
	case !utf8.Valid(data):
		for i, line := range r.lines {
			if !utf8.Valid(line) {
				valid := strings.IndexRune(strings.ToValidUTF8(string(line), "\x00"), 0)
				r.problem(i+1, utf8.RuneCount(line[:valid])+1, "", "the text is not UTF-8", "save the file as UTF-8")
				break
			}
		}
	}
	return len(r.problems) == 0
}

// yaml returns the root of the one YAML document in data, nil if there is none.
func (r *reader) yaml(data []byte) *yaml.Node {
	var doc, second yaml.Node
	dec := yaml.NewDecoder(bytes.NewReader(data))
	if err := dec.Decode(&doc); errors.Is(err, io.EOF) {
		return nil
	} else if err != nil {
		r.syntax(err)
		return nil
	}
	if err := dec.Decode(&second); err == nil {
		r.at(&second, "", "a second YAML document starts here", "write one document only")
	} else if !errors.Is(err, io.EOF) {
		r.syntax(err)
	}

	root := resolve(doc.Content[0])
	if root.Kind == yaml.ScalarNode && root.Value == "" {
		return nil
	}
	if culprit := bomb(root); culprit != nil {
		r.at(culprit, "", fmt.Sprintf("the aliases stand for more than %d values", maxExpanded), "write the values out")
	}
	return root
}

// syntax reports an error of the YAML parser, which tells the line at best.
// Its text is not passed on where it would repeat what the user wrote: that may
// be a secret that starts with `*`.
func (r *reader) syntax(err error) {
	const quoteIt = "put text with special characters in quotes"
	what := strings.TrimPrefix(err.Error(), "yaml: ")

	if rest, ok := strings.CutPrefix(what, "unknown anchor '"); ok {
		name, _, _ := strings.Cut(rest, "' referenced")
		line, column := r.position("*" + name)
		r.problem(line, column, "", "an alias that no anchor defines", "put text that starts with * in quotes")
		return
	}
	line := 1
	if rest, ok := strings.CutPrefix(what, "line "); ok {
		number, text, _ := strings.Cut(rest, ": ")
		if n, err := strconv.Atoi(number); err == nil {
			line, what = n, text
		}
	}
	line = min(line, len(r.lines))
	if strings.Contains(what, "cannot start any token") || strings.Contains(what, "tab character") {
		// The parser names the line where the value began.
		for i := max(line-2, 0); i < len(r.lines); i++ {
			if column := tabIndent(r.lines[i]); column > 0 {
				r.problem(i+1, column, "", "a tab in the indentation", "indent with spaces")
				return
			}
		}
	}
	text := r.lines[line-1]
	column := utf8.RuneCount(text) - utf8.RuneCount(bytes.TrimLeft(text, " \t")) + 1
	r.problem(line, column, "", "this is not YAML: "+what, "correct it; "+quoteIt)
}

// position is where a text stands first.
func (r *reader) position(text string) (line, column int) {
	for i, l := range r.lines {
		if before, _, ok := bytes.Cut(l, []byte(text)); ok {
			return i + 1, utf8.RuneCount(before) + 1
		}
	}
	return 1, 1
}

// tabs refuses tabs between the lines of the block. This parser takes some of
// them as space; the one of cloud-init takes none.
func (r *reader) tabs(first, last int) {
	for i := first - 1; i < min(last, len(r.lines)); i++ {
		code, _, _ := bytes.Cut(r.lines[i], []byte("#"))
		if at := bytes.IndexByte(code, '\t'); at >= 0 {
			r.problem(i+1, utf8.RuneCount(code[:at])+1, blockKey, "a tab", "use spaces")
		}
	}
}

func tabIndent(line []byte) (column int) {
	indent := line[:len(line)-len(bytes.TrimLeft(line, " \t"))]
	return bytes.IndexByte(indent, '\t') + 1
}

// find returns the block and its last line, nil if there is none where it may
// stand. What looks like a block in the wrong place is a problem.
func (r *reader) find(root *yaml.Node, data []byte, places place) (block *yaml.Node, last int) {
	if root.Kind != yaml.MappingNode {
		r.at(root, "", "the file is "+describe(root), "write keys with values, `"+blockKey+":` among them")
		return nil, 0
	}
	last = len(r.lines)
	top := map[string]*yaml.Node{}
	var ours, almost *yaml.Node
	for key, value := range pairs(root) {
		if block != nil && last == len(r.lines) {
			last = max(key.Line-1, block.Line)
		}
		switch {
		case key.Value == blockKey && block != nil:
			r.at(key, blockKey, "the key is there twice", "merge the two into one")
		case key.Value == blockKey:
			block = placed(value, key)
		case isMisspelt(key.Value):
			almost = key
		case isOurs(key.Value):
			ours = key
		}
		top[key.Value] = key
	}

	isCloudConfig := bytes.HasPrefix(data, []byte("#cloud-config"))
	switch {
	case block != nil:
		return block, last
	case ours != nil && places&asWhole != 0 && !isCloudConfig:
		return root, len(r.lines)
	case almost != nil:
		r.at(almost, "", "unknown key "+quoteKey(almost.Value), "did you mean `"+blockKey+"`?")
	case isCloudConfig && top["version"] != nil && top["peers"] != nil:
		// Together they are ours; a cloud-config may have one of them for others.
		r.at(top["peers"], "", "version and peers stand at the top of a cloud-config", "indent the block below `"+blockKey+":`")
	}
	return nil, 0
}

// isMisspelt says whether `xivo` was probably meant: one letter off, or the same
// letters in another order.
func isMisspelt(key string) bool {
	letters := func(s string) string { return string(slices.Sorted(slices.Values([]byte(s)))) }
	key = strings.ToLower(key)
	return len(key) >= len(blockKey) && (levenshtein.Distance(key, blockKey, nil) <= 1 || letters(key) == letters(blockKey))
}

// writtenFile returns the write_files entry that puts its content into ConfigFile,
// nil if there is none.
func writtenFile(root *yaml.Node) map[string]*yaml.Node {
	for key, files := range pairs(root) {
		if key.Value != "write_files" || files.Kind != yaml.SequenceNode {
			continue
		}
		for _, file := range files.Content {
			entry := map[string]*yaml.Node{}
			for key, value := range pairs(resolve(file)) {
				entry[key.Value] = value
			}
			if path := entry["path"]; path != nil && path.Value == ConfigFile && entry["content"] != nil {
				return entry
			}
		}
	}
	return nil
}

// checkPermissions refuses a write_files entry after which Load would refuse the
// file: cloud-init makes it for all to read where it is not told otherwise.
func (r *reader) checkPermissions(file map[string]*yaml.Node) {
	const do = `write permissions: "0600"`
	permissions := file["permissions"]
	if permissions == nil {
		r.at(file["path"], "write_files", "others could read the secret in "+ConfigFile, do)
		return
	}
	// A number without a zero before it is a decimal one for cloud-init.
	mode, err := strconv.ParseUint(strings.Replace(permissions.Value, "0o", "0", 1), 8, 32)
	decimal := permissions.ShortTag() == "!!int" && !strings.HasPrefix(permissions.Value, "0")
	if err != nil || decimal || mode&0o077 != 0 {
		r.at(permissions, "write_files", "others could read the secret in "+ConfigFile, do)
	}
}

// embedded parses the document in a write_files entry. Positions are those of
// the outer file where the content is a literal block (`|`), else of its start.
func (r *reader) embedded(content *yaml.Node) (*Config, error) {
	c, err := parse([]byte(content.Value), r.file, asWhole)
	var bad *InvalidError
	switch {
	case err == nil && len(r.problems) > 0:
		return nil, invalid(r.problems)
	case errors.Is(err, ErrNoDocument):
		r.at(content, "write_files", "what is to be written to "+ConfigFile+" is no document", "write the keys of the block, in plain text without `encoding`")
		return nil, invalid(r.problems)
	case errors.As(err, &bad):
		for i := range bad.Problems {
			p := &bad.Problems[i]
			if content.Style&yaml.LiteralStyle == 0 {
				p.Line, p.Column = content.Line, content.Column
				continue
			}
			p.Column += r.indent(content.Line, content.Value)
			p.Line += content.Line
		}
		return nil, invalid(append(r.problems, bad.Problems...))
	}
	return c, err
}

// indent is the indentation of a literal block that starts after a line.
func (r *reader) indent(line int, value string) int {
	for i, text := range strings.Split(value, "\n") {
		if strings.TrimSpace(text) != "" && line+i < len(r.lines) {
			return max(bytes.Index(r.lines[line+i], []byte(text)), 0)
		}
	}
	return 0
}

// resolve follows an alias. What it leads to is never an alias itself.
func resolve(n *yaml.Node) *yaml.Node {
	if n.Kind == yaml.AliasNode {
		return n.Alias
	}
	return n
}

// placed returns a value that has a position: an empty one stands nowhere, but
// its key does.
func placed(value, key *yaml.Node) *yaml.Node {
	if !isNull(value) {
		return value
	}
	return &yaml.Node{Kind: value.Kind, Tag: value.Tag, Line: key.Line, Column: key.Column}
}

// pairs ranges over a mapping's keys and values, aliases followed. Anything
// but a mapping has none.
func pairs(n *yaml.Node) func(yield func(key, value *yaml.Node) bool) {
	return func(yield func(key, value *yaml.Node) bool) {
		if n.Kind != yaml.MappingNode {
			return
		}
		for i := 0; i+1 < len(n.Content); i += 2 {
			if !yield(resolve(n.Content[i]), resolve(n.Content[i+1])) {
				return
			}
		}
	}
}

// bomb returns the first alias with which the values exceed maxExpanded, which
// an anchor that contains itself always does; nil if there is none.
func bomb(root *yaml.Node) (culprit *yaml.Node) {
	const inside = -1
	sizes := map[*yaml.Node]int{}
	var size func(n *yaml.Node) int
	size = func(n *yaml.Node) int {
		if known, ok := sizes[n]; ok {
			if known == inside {
				return maxExpanded + 1
			}
			return known
		}
		sizes[n] = inside
		total := 1
		if n.Kind == yaml.AliasNode {
			total = size(n.Alias)
		}
		for _, child := range n.Content {
			total = min(total+size(child), maxExpanded+1)
			if total > maxExpanded && culprit == nil && child.Kind == yaml.AliasNode {
				culprit = child
			}
		}
		sizes[n] = total
		return total
	}
	size(root)
	return culprit
}
