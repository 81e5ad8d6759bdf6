package sealing

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/disk"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/engine"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/node"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/postgres"
)

// patience is for an operation of which nobody knows more, longTime for one whose
// time goes with the size of the database or of the disk.
const (
	patience = brokerStart
	longTime = 3 * time.Hour
)

// database is Debian's service; its clusters are instances of another.
const (
	database = "postgresql"
	clusters = "postgresql@*.service"
)

// databaseStarted starts the PostgreSQL that a seal has stopped before.
func databaseStarted(ctx context.Context, n *node.Node) error {
	if !n.Platform.HasSystemd() {
		return nil // it is refused, and no seal has stopped it
	}
	runs, err := n.Platform.Init.Active(ctx, database)
	if err != nil || runs {
		return err
	}
	return n.Platform.Init.Start(ctx, database)
}

// withCluster opens a resource on the PostgreSQL that runs.
func withCluster(open func(postgres.Cluster) engine.Resource) func(context.Context, *node.Node) (engine.Resource, error) {
	return func(ctx context.Context, n *node.Node) (engine.Resource, error) {
		c, err := postgres.LocalCluster(ctx, func(ctx context.Context) error {
			n.Servers.Close()
			// The instances first: that of all is down as soon as it was told.
			return errors.Join(n.Platform.Init.Stop(ctx, clusters), n.Platform.Init.Stop(ctx, database))
		}, func(ctx context.Context) error { return n.Platform.Init.Start(ctx, database) })
		if err != nil {
			return nil, err
		}
		return open(c), nil
	}
}

// ownDisk says that this is a machine, and no folder that is sealed in a test.
func ownDisk(n *node.Node) engine.Skip {
	if n.Platform.Root != "/" {
		return "this is a folder, and no machine with a disk"
	}
	return ""
}

// ownKernel says that the disks are this machine's. A container's may be written more
// cheaply from outside: the builder xivo-nspawn gives back what is free.
func ownKernel(n *node.Node) engine.Skip {
	raw, err := os.ReadFile(n.Platform.Path("/run/systemd/container"))
	if err != nil {
		return ownDisk(n)
	}
	return engine.Skip("this is a container (" + strings.TrimSpace(string(raw)) + "), whose disk is in the hands of who runs it")
}

// onceEach is something that is done to each of several things whenever the seal is
// run. What they hold cannot be read back here: seal --prove does, from outside.
func onceEach[T any](list func() ([]T, error), told func(T) string, do func(context.Context, T) error) engine.Resource {
	done := false
	return engine.New(func(context.Context) ([]string, error) {
		all, err := list()
		if err != nil || done {
			return nil, err
		}
		var diff []string
		for _, one := range all {
			diff = append(diff, told(one))
		}
		return diff, nil
	}, func(ctx context.Context) error {
		all, err := list()
		if err != nil {
			return err
		}
		for _, one := range all {
			if err := do(ctx, one); err != nil {
				return err
			}
		}
		done = true
		return nil
	})
}

func swapEmptied(*node.Node) engine.Resource {
	return engine.New(func(context.Context) ([]string, error) {
		areas, err := disk.Swaps()
		var diff []string
		for _, area := range areas {
			diff = append(diff, "the swap area "+area+" is in use")
		}
		return diff, err
	}, func(ctx context.Context) error {
		areas, err := disk.Swaps()
		if err != nil {
			return err
		}
		for _, area := range areas {
			if _, err := platform.Run(ctx, "swapoff", area); err != nil {
				return err
			}
			if err := disk.ZeroSwap(ctx, area); err != nil {
				return err
			}
		}
		return nil
	})
}

func journalsOverwritten(*node.Node) engine.Resource {
	withJournal := func() (with []disk.FileSystem, err error) {
		all, err := disk.FileSystems()
		for _, f := range all {
			size, sizeErr := f.JournalSize()
			err = errors.Join(err, sizeErr)
			if size > 0 {
				with = append(with, f)
			}
		}
		return with, err
	}
	return onceEach(withJournal, func(f disk.FileSystem) string { return "the journal of " + f.Mount },
		func(ctx context.Context, f disk.FileSystem) error { return f.OverwriteJournal(ctx) })
}

// tellEvery is how often a disk that takes long is told of.
const tellEvery = 10 * time.Second

func freeSpaceZeroed(n *node.Node) engine.Resource {
	return onceEach(disk.FileSystems, func(f disk.FileSystem) string { return "the free space of " + f.Mount },
		func(ctx context.Context, f disk.FileSystem) error {
			told := time.Now()
			return f.ZeroFree(ctx, func(written int64) {
				if time.Since(told) >= tellEvery {
					told = time.Now()
					n.Log.Info("writing zeros over what is free", "of", f.Mount, "written", fmt.Sprintf("%d MiB", written>>20))
				}
			})
		})
}
