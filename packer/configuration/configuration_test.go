package configuration_test

import (
	"errors"
	"io/fs"
	"strings"
	"testing"

	packersdk "github.com/hashicorp/packer-plugin-sdk/packer"

	"github.com/xivo-mesh/packer-plugin-xivo/packer/configuration"
)

func TestProblemsAreToldTogether(t *testing.T) {
	var p configuration.Problems
	if err := p.Err(); err != nil {
		t.Fatalf("without a problem: %v", err)
	}
	p.Addf("first: %w", fs.ErrNotExist)
	p.Addf("node[%d]: second", 1)
	err := p.Err()
	var all *packersdk.MultiError
	if !errors.As(err, &all) || len(all.Errors) != 2 || !errors.Is(all.Errors[0], fs.ErrNotExist) {
		t.Fatalf("got %#v", err)
	}
	if first, second := strings.Index(err.Error(), "first"), strings.Index(err.Error(), "node[1]: second"); first < 0 || second < first {
		t.Errorf("got %q", err)
	}
}
