package consul

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/engine"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/files"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/secret"
)

const (
	masterTokenFile = platform.ConsulDataDir + "/master_token"
	daemonTokenFile = platform.ConsulDataDir + "/default_xivo_consul_token.yml"
)

// TokenFiles is the ACL master token in the three files of XiVO's package:
// master_token, config.json (acl_master_token) and
// default_xivo_consul_token.yml, which XiVO's daemons read through links. All
// else in them, their owners and their modes stay. They are read at the next
// start of Consul and of the daemons. A file that is missing, or has no place
// for a token, is an error: the package made all three.
// The folders are Consul's user's own: what is no regular file there is an error
// as well.
func TokenFiles(p *platform.Platform, token secret.Secret) engine.Resource {
	return tokenFiles{p, token}
}

// MasterToken is the one that XiVO's package made, or that TokenFiles put there.
func MasterToken(p *platform.Platform) (secret.Secret, error) {
	data, err := files.ReadFile(p.Path(masterTokenFile))
	if err != nil {
		return "", fmt.Errorf("consul: read the master token: %w", err)
	}
	start, end, err := matching(masterToken)(data)
	if err != nil {
		return "", fmt.Errorf("consul: read the master token: %s: %w", masterTokenFile, err)
	}
	return secret.Secret(data[start:end]), nil
}

type tokenFiles struct {
	p     *platform.Platform
	token secret.Secret
}

// The whole file, without the newline that it may end with.
var masterToken = regexp.MustCompile(`^\s*(\S+)\s*$`)

// The value of the one key `token`, without quotes and comment.
var daemonToken = regexp.MustCompile(`(?m)^[ \t]*token[ \t]*:[ \t]*["']?([^\s"'#]+)["']?[ \t]*(?:#.*)?$`)

// places are the files, and where in each the token stands.
var places = []struct {
	name string
	find func(data []byte) (start, end int, err error)
}{
	{masterTokenFile, matching(masterToken)},
	{packageFile, func(data []byte) (int, int, error) { return stringValue(data, "acl_master_token") }},
	{daemonTokenFile, matching(daemonToken)},
}

// Diff names the files that hold another token.
func (t tokenFiles) Diff(context.Context) ([]string, error) {
	var diff []string
	err := t.each(func(name string, have, want []byte) error {
		if !bytes.Equal(have, want) {
			diff = append(diff, name+": another token")
		}
		return nil
	})
	return diff, err
}

// Apply puts the token into those files.
func (t tokenFiles) Apply(context.Context) error {
	return t.each(func(name string, have, want []byte) error {
		if bytes.Equal(have, want) {
			return nil
		}
		file := t.p.Path(name)
		attr, err := files.Kept(file, 0o600)
		if err != nil {
			return err
		}
		return files.WriteFile(file, want, attr)
	})
}

// The token goes into three syntaxes, and is a UUID in all of them.
var plainToken = regexp.MustCompile(`^[0-9A-Za-z-]+$`)

// each calls do with what every file holds and what it should hold.
func (t tokenFiles) each(do func(name string, have, want []byte) error) error {
	if !plainToken.MatchString(t.token.Reveal()) {
		return errors.New("consul: the master token is empty or not made of letters, digits and dashes")
	}
	for _, place := range places {
		data, err := files.ReadFile(t.p.Path(place.name))
		if err != nil {
			return fmt.Errorf("consul: put the master token: %w; `dpkg-reconfigure consul` makes XiVO's files", err)
		}
		start, end, err := place.find(data)
		if err != nil {
			return fmt.Errorf("consul: put the master token: %s: %w; `dpkg-reconfigure consul` makes XiVO's files", place.name, err)
		}
		want := slices.Concat(data[:start], []byte(t.token.Reveal()), data[end:])
		if err := do(place.name, data, want); err != nil {
			return fmt.Errorf("consul: put the master token: %w", err)
		}
	}
	return nil
}

func matching(re *regexp.Regexp) func([]byte) (int, int, error) {
	return func(data []byte) (int, int, error) {
		found := re.FindAllSubmatchIndex(data, -1)
		if len(found) != 1 {
			return 0, 0, fmt.Errorf("%d tokens found, expected one", len(found))
		}
		return found[0][2], found[0][3], nil
	}
}

// stringValue finds the text of a string value of the outermost object, without
// its quotes. The file is not written anew from its parsed form: XiVO's start
// scripts read it line by line.
func stringValue(data []byte, key string) (start, end int, err error) {
	if _, err := decodeObject(data); err != nil {
		return 0, 0, err
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.Token() // the opening brace; the whole was decoded above
	for d.More() {
		name, _ := d.Token()
		var value json.RawMessage
		if err := d.Decode(&value); err != nil {
			return 0, 0, errors.New("not valid JSON")
		}
		if name != key {
			continue
		}
		if value[0] != '"' {
			return 0, 0, fmt.Errorf("%s is not a string", key)
		}
		end = int(d.InputOffset()) - 1
		return end - len(value) + 2, end, nil
	}
	return 0, 0, fmt.Errorf("no %s", key)
}
