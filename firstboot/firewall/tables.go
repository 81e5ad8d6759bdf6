package firewall

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"os/user"
	"slices"
	"strings"
	"time"
)

// formerChain is that of versions which named members in it.
const formerChain = "XIVO-MESH"

// hooks has, of each of our chains, the built-in chain that jumps to it.
var hooks = map[string]string{In: "INPUT", Out: "OUTPUT", Forward: "FORWARD", openDoors: "", formerChain: "INPUT"}

// chains is Static in one family.
type chains struct {
	want   static
	tables *tables
}

// Diff compares chains and jumps. A family that this machine does not have differs
// in nothing.
func (c chains) Diff(ctx context.Context) ([]string, error) {
	have, err := c.tables.read(ctx)
	if c.tables.tolerates(err) {
		_, err := c.want.rules(c.tables.ipv6, true)
		return nil, err
	}
	if err != nil {
		return nil, err
	}
	_, refused := have.chains[openDoors]
	want, err := c.want.rules(c.tables.ipv6, !refused)
	if err != nil {
		return nil, err
	}

	var diff []string
	tell := func(format string, args ...any) {
		diff = append(diff, c.tables.name()+": "+fmt.Sprintf(format, args...))
	}
	for _, w := range want {
		rules, there := have.chains[w.name]
		if !there {
			tell("the chain %s is missing", w.name)
			continue
		}
		differs := false
		for _, r := range w.rules {
			if !slices.Contains(rules, r) {
				tell("the rule is missing: -A %s %s", w.name, r)
				differs = true
			}
		}
		// Not told: somebody else wrote them.
		if n := len(slices.DeleteFunc(slices.Clone(rules), func(r string) bool { return slices.Contains(w.rules, r) })); n > 0 {
			tell("%s has rules that are not wanted: %d", w.name, n)
			differs = true
		}
		if !differs && !slices.Equal(rules, w.rules) {
			tell("the rules of %s are in another order, or doubled", w.name)
		}
		if n := have.jumps[w.name]; n != 1 {
			tell("%s jumps to %s %d times, should once", w.hook, w.name, n)
		}
	}
	if _, there := have.chains[formerChain]; there {
		tell("the chain %s of an earlier version is there", formerChain)
	}
	return diff, nil
}

// Apply sets all of the family at once. Where that is refused, and goes without the
// local doors, it is so set: the kernel does not know users.
func (c chains) Apply(ctx context.Context) error {
	have, err := c.tables.read(ctx)
	if c.tables.tolerates(err) {
		return nil
	}
	if err != nil {
		return err
	}
	set := func(doors bool) error {
		want, err := c.want.rules(c.tables.ipv6, doors)
		if err != nil {
			return err
		}
		return c.tables.restore(ctx, have.script(want, doors))
	}
	err = set(true)
	if _, answered := errors.AsType[*exec.ExitError](err); answered && ctx.Err() == nil && !locked(err) {
		if set(false) == nil {
			return nil
		}
	}
	if err != nil {
		return fmt.Errorf("firewall: set the chains of the mesh: %w", err)
	}
	return nil
}

// script is what iptables-restore makes of this state the one that is wanted.
func (have state) script(want []hookChain, doors bool) string {
	var b strings.Builder
	fmt.Fprintln(&b, "*filter")
	for _, w := range want {
		// With --noflush, naming a chain of one's own empties that chain only.
		fmt.Fprintf(&b, ":%s - [0:0]\n", w.name)
	}
	if !doors {
		fmt.Fprintf(&b, ":%s - [0:0]\n", openDoors)
	}
	for _, w := range want {
		for _, r := range w.rules {
			fmt.Fprintf(&b, "-A %s %s\n", w.name, r)
		}
		for range have.jumps[w.name] - 1 {
			fmt.Fprintf(&b, "-D %s -j %s\n", w.hook, w.name)
		}
		if have.jumps[w.name] == 0 {
			// First, so that no rule that accepts comes before it.
			fmt.Fprintf(&b, "-I %s 1 -j %s\n", w.hook, w.name)
		}
	}
	have.remove(&b, formerChain)
	if doors {
		have.remove(&b, openDoors)
	}
	fmt.Fprintln(&b, "COMMIT")
	return b.String()
}

// remove writes what removes a chain that is there.
func (have state) remove(b *strings.Builder, name string) {
	if _, there := have.chains[name]; !there {
		return
	}
	for range have.jumps[name] {
		fmt.Fprintf(b, "-D %s -j %s\n", hooks[name], name)
	}
	fmt.Fprintf(b, "-F %s\n-X %s\n", name, name)
}

// absent is Absent in one family.
type absent struct{ tables *tables }

func (a absent) read(ctx context.Context) (state, error) {
	have, err := a.tables.read(ctx)
	var missing *unavailable
	if errors.As(err, &missing) && (a.tables.ipv6 || missing.notInstalled) {
		return state{}, nil // and so nothing of ours was set
	}
	return have, err
}

// Diff names the chains that are there.
func (a absent) Diff(ctx context.Context) ([]string, error) {
	have, err := a.read(ctx)
	if err != nil {
		return nil, err
	}
	var diff []string
	for _, name := range slices.Sorted(maps.Keys(have.chains)) {
		diff = append(diff, fmt.Sprintf("%s: the chain %s is there", a.tables.name(), name))
	}
	return diff, nil
}

// Apply removes them, with the jumps to them.
func (a absent) Apply(ctx context.Context) error {
	have, err := a.read(ctx)
	if err != nil || len(have.chains) == 0 {
		return err
	}
	var b strings.Builder
	fmt.Fprintln(&b, "*filter")
	for _, name := range slices.Sorted(maps.Keys(have.chains)) {
		have.remove(&b, name)
	}
	fmt.Fprintln(&b, "COMMIT")
	if err := a.tables.restore(ctx, b.String()); err != nil {
		return fmt.Errorf("firewall: remove the chains of the mesh: %w", err)
	}
	return nil
}

// tables is one family's command.
type tables struct {
	ipv6 bool
	// impatient commands know no -w, as before iptables 1.4.20, and
	// iptables-restore before 1.6.2.
	impatient map[string]bool
}

func (t *tables) name() string {
	if t.ipv6 {
		return "ip6tables"
	}
	return "iptables"
}

// state is what the kernel has of ours.
type state struct {
	chains map[string][]string // rules by chain, as hookChain has them
	jumps  map[string]int      // from the hook to the chain
}

// unavailable is a family that this machine cannot filter.
type unavailable struct {
	why          string
	gap          string // what of it is open then; "" is nothing
	notInstalled bool
}

func (u *unavailable) Error() string { return u.why }

// tolerates says whether the error is that this machine cannot filter IPv6: the rest
// is set nevertheless.
func (t *tables) tolerates(err error) bool {
	_, is := errors.AsType[*unavailable](err)
	return is && t.ipv6
}

// tableMissing is the exit code of iptables where the kernel has no such table.
const tableMissing = 3

// read reads the kernel's state.
func (t *tables) read(ctx context.Context) (state, error) {
	if t.ipv6 {
		// The file is there where the kernel knows IPv6, addresses or not.
		if _, err := os.Stat("/proc/net/if_inet6"); errors.Is(err, fs.ErrNotExist) {
			return state{}, &unavailable{why: "firewall: the kernel has no IPv6"}
		}
	}
	out, err := t.run(ctx, "", t.name(), "-S")
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && t.ipv6 && exit.ExitCode() == tableMissing {
		err = &unavailable{why: err.Error(), gap: "the kernel cannot filter IPv6: over it, everybody reaches the ports of the mesh that listen there"}
	}
	if err != nil {
		return state{}, fmt.Errorf("firewall: read the rules: %w", err)
	}
	// Every table has its built-in chains: no line is no answer.
	if !strings.Contains(out, "-P INPUT ") {
		return state{}, fmt.Errorf("firewall: read the rules: %s -S told nothing of the chain INPUT", t.name())
	}

	return printed(out), nil
}

// printed is the state that `iptables -S` printed.
func printed(out string) state {
	have := state{map[string][]string{}, map[string]int{}}
	for line := range strings.Lines(out) {
		f := strings.Fields(line) // old versions end lines with a space
		if len(f) < 2 {
			continue
		}
		// Old versions name users, and ours have numbers.
		if i := slices.Index(f, "--uid-owner"); i >= 0 && i+1 < len(f) {
			if u, err := user.Lookup(f[i+1]); err == nil {
				f[i+1] = u.Uid
			}
		}
		_, ours := hooks[f[1]]
		switch {
		case f[0] == "-N" && ours:
			have.chains[f[1]] = []string{}
		case f[0] == "-A" && ours:
			have.chains[f[1]] = append(have.chains[f[1]], strings.Join(f[2:], " "))
		case f[0] == "-A" && len(f) == 4 && f[2] == "-j" && hooks[f[3]] == f[1]:
			have.jumps[f[3]]++
		}
	}
	return have
}

const (
	// lockWait is how long another program may hold the lock on the rules.
	lockWait = 5 * time.Second
	// attempts is how often a change is tried. Old versions take no lock, and fail
	// without a word when another program changed the rules between.
	attempts = 3
	pause    = 100 * time.Millisecond
)

// restore gives a script to iptables-restore.
func (t *tables) restore(ctx context.Context, script string) error {
	var err error
	for i := range attempts {
		if i > 0 && !wait(ctx) {
			break
		}
		if _, err = t.run(ctx, script, t.name()+"-restore", "--noflush"); err == nil || locked(err) {
			break
		}
	}
	return err
}

// wait pauses, unless ctx ends.
func wait(ctx context.Context) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(pause):
		return true
	}
}

// run runs a command of the family, and waits lockWait for the lock.
func (t *tables) run(ctx context.Context, stdin, name string, args ...string) (string, error) {
	path, err := lookUp(name)
	if err != nil {
		missing := &unavailable{notInstalled: true}
		missing.why = fmt.Sprintf("%s is not installed: run `apt-get install iptables`, or set firewall.enabled to false", name)
		missing.gap = "ip6tables is not installed: over IPv6, everybody reaches the ports of the mesh that listen there; run `apt-get install iptables`"
		return "", missing
	}
	limited, cancel := context.WithTimeout(ctx, lockWait)
	defer cancel()
	for {
		out, err := t.once(limited, stdin, name, path, args)
		switch {
		case err == nil:
			return out, nil
		case locked(err) && wait(limited):
		case limited.Err() != nil && ctx.Err() == nil:
			return "", fmt.Errorf("%w for %s; try again when it is done: %w", errKept, lockWait, err)
		default:
			return "", err
		}
	}
}

// errKept is that a command waited for the lock in vain.
var errKept = errors.New("another program kept the lock on the rules")

// once runs a command, with -w if it knows that.
func (t *tables) once(ctx context.Context, stdin, name, path string, args []string) (string, error) {
	given := args
	if !t.impatient[name] {
		given = append([]string{"-w"}, args...)
	}
	cmd := exec.CommandContext(ctx, path, given...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	cmd.Stdin = strings.NewReader(stdin)
	cmd.WaitDelay = 5 * time.Second
	var out, said strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &said
	err := cmd.Run()
	if err == nil {
		return out.String(), nil
	}
	err = fmt.Errorf("%s: %w: %s", name, err, strings.Join(strings.Fields(said.String()), " "))
	if !t.impatient[name] && strings.Contains(said.String(), " option") {
		if t.impatient == nil {
			t.impatient = map[string]bool{}
		}
		t.impatient[name] = true
		return t.once(ctx, stdin, name, path, args)
	}
	return "", err
}

// locked says whether a command failed since another program changes the rules.
func locked(err error) bool {
	return err != nil && (errors.Is(err, errKept) || strings.Contains(err.Error(), "xtables lock") || strings.Contains(err.Error(), "temporarily unavailable"))
}

// lookUp finds a command where iptables is, also with a PATH of a user.
func lookUp(name string) (string, error) {
	path, err := exec.LookPath(name)
	for _, dir := range []string{"/usr/sbin/", "/sbin/"} {
		if err != nil {
			path, err = exec.LookPath(dir + name)
		}
	}
	return path, err
}
