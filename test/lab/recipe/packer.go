package recipe

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/xivo-mesh/packer-plugin-xivo/packer/nspawn/machine"
	"github.com/xivo-mesh/packer-plugin-xivo/test/lab/cache"
)

// Packer is a Packer with a home of its own: it has our plugin, and knows of
// nothing else on this machine.
type Packer struct {
	// Sandbox is where it runs; nil for the host.
	Sandbox *machine.Sandbox

	maker        *Maker
	binary, home string
}

// Packer returns one whose home is a folder that belongs to the caller.
func (m *Maker) Packer(ctx context.Context, home string) (*Packer, error) {
	binary, err := m.Tool(ctx, "packer")
	if err != nil {
		return nil, err
	}
	plugin, err := m.plugin(ctx)
	if err != nil {
		return nil, err
	}
	p := &Packer{maker: m, binary: binary, home: home}
	return p, p.Install(ctx, plugin, "github.com/xivo-mesh/xivo")
}

// plugin builds our Packer plugin, and returns its file.
func (m *Maker) plugin(ctx context.Context) (string, error) {
	err := m.run(ctx, "make", "--no-print-directory", "build")
	return filepath.Join(m.Repo, "dist/packer-plugin-xivo"), err
}

// bakeKey is the key of what our plugin, Packer and a template make of a source
// in the cache.
func (m *Maker) bakeKey(ctx context.Context, source, template string) (cache.Key, error) {
	packer, err := m.Tool(ctx, "packer")
	if err != nil {
		return cache.Key{}, err
	}
	plugin, err := m.plugin(ctx)
	if err != nil {
		return cache.Key{}, err
	}
	key := cache.NewKey(filepath.Base(filepath.Dir(packer)), filepath.Base(filepath.Dir(source)))
	for _, file := range []string{plugin, filepath.Join(m.Repo, template)} {
		if err := key.AddFile(file); err != nil {
			return cache.Key{}, err
		}
	}
	return key, nil
}

// Install installs a plugin.
func (p *Packer) Install(ctx context.Context, plugin, source string) error {
	return p.Run(ctx, "plugins", "install", "--path", plugin, source)
}

// Run runs Packer.
func (p *Packer) Run(ctx context.Context, args ...string) error {
	return p.run(ctx, nil, args)
}

// Output runs Packer, with more in its environment, and returns what it prints,
// which goes to no log.
func (p *Packer) Output(ctx context.Context, env []string, args ...string) (string, error) {
	quiet := *p
	maker := *p.maker
	var out strings.Builder
	maker.Log = &out
	quiet.maker = &maker
	err := quiet.run(ctx, env, args)
	return out.String(), err
}

func (p *Packer) run(ctx context.Context, env, args []string) error {
	cmd := p.maker.command(ctx, p.binary, args...)
	if p.Sandbox != nil {
		// Its end is the end of everything in it.
		cmd = p.Sandbox.Command(ctx, append([]string{p.binary}, args...)...)
		cmd.Dir = p.maker.Repo
	} else {
		// Packer takes a build down in good order when it is asked to, once, and
		// is two processes, of which a kill would reach one.
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
		cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
		cmd.WaitDelay = 2 * time.Minute
	}
	cmd.Env = append(os.Environ(),
		"PACKER_PLUGIN_PATH="+filepath.Join(p.home, "plugins"),
		"PACKER_CONFIG_DIR="+filepath.Join(p.home, "config"),
		"PACKER_CACHE_DIR="+filepath.Join(p.home, "cache"),
		"PACKER_NO_COLOR=1",
		"CHECKPOINT_DISABLE=1", // Packer looks for no newer version of itself
		"TMPDIR="+p.home,
	)
	cmd.Env = append(cmd.Env, env...)
	return p.maker.finish(cmd)
}

// template is what a user copies to bake with a builder.
func template(builder string) string {
	return "packer/templates/" + builder + "/xivo.pkr.hcl"
}

// bake bakes an image in a folder, from the template of a builder.
func (p *Packer) bake(ctx context.Context, builder, dir string, vars ...string) (Image, error) {
	made := imageIn(dir)
	args := append([]string{"build",
		"-var", "output_directory=" + filepath.Dir(made.QCOW2),
		"-var", "xivo_version=" + Version,
		"-var", "allow_configured=true", // its wizard was passed
		"-var", "values_file=" + made.Values,
	}, vars...)
	start := time.Now()
	if err := p.Run(ctx, append(args, filepath.Join(p.maker.Repo, template(builder)))...); err != nil {
		return Image{}, err
	}
	made.Took = time.Since(start)
	if _, err := os.Stat(made.Manifest); err != nil {
		return Image{}, fmt.Errorf("packer build succeeded without a seal manifest: %w", err)
	}
	return made, nil
}
