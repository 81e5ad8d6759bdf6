package nspawn

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/hashicorp/packer-plugin-sdk/multistep"
)

// stepUnmount gives free blocks back to the disk file, so that deleted files
// neither cost space nor stay readable in the image, and unmounts the root.
//
// Uses: stateSandbox.
type stepUnmount struct{ config *Config }

func (s *stepUnmount) Run(ctx context.Context, state multistep.StateBag) multistep.StepAction {
	sandbox := sandboxOf(state)
	// What was freed last can be given back when that is on the disk.
	if err := sandbox.Run(ctx, "sync", "--file-system", rootDir); err != nil {
		return halt(state, err)
	}
	if err := sandbox.Run(ctx, "fstrim", rootDir); err != nil {
		return halt(state, fmt.Errorf("what was deleted stays readable in the image, since its blocks cannot be given back (output_directory must be on a file system that makes holes, such as ext4 or xfs): %w", err))
	}
	if err := sandbox.Run(ctx, "umount", rootDir); err != nil {
		return halt(state, err)
	}
	if err := s.waitUnused(ctx, state); err != nil {
		return halt(state, err)
	}
	return multistep.ActionContinue
}

func (s *stepUnmount) Cleanup(multistep.StateBag) {}

// waitUnused returns when the loop device is gone. umount succeeds also where
// another mount of the same disk, or the last process of a machine, still keeps
// the file system open and the file unfinished.
func (s *stepUnmount) waitUnused(ctx context.Context, state multistep.StateBag) error {
	const patience = 30 * time.Second
	ctx, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("it is still in use after %s", patience))
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		out, err := sandboxOf(state).Command(ctx, "losetup", "--associated", s.config.workPath()).Output()
		if err == nil && strings.TrimSpace(string(out)) == "" {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("unmount the disk: %w: %s", context.Cause(ctx), strings.TrimSpace(string(out)))
		}
	}
}
