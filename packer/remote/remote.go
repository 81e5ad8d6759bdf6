// Package remote runs commands in the machine that a build provisions, as root,
// over whatever connection the builder has. The provisioners share it.
package remote

import (
	"bytes"
	"context"
	"fmt"
	"strings"

	packersdk "github.com/hashicorp/packer-plugin-sdk/packer"

	"github.com/xivo-mesh/packer-plugin-xivo/packer/shell"
)

// Machine is the machine that is provisioned.
type Machine struct {
	UI           packersdk.Ui
	Communicator packersdk.Communicator
	// Sudo: the connection is not root's, but may become root with `sudo -n`.
	Sudo bool
}

// ExitError is the error of a command that ended with another status than 0.
type ExitError struct {
	Command string
	Status  int
	Stderr  string // without the white space around it; "" when it was shown as it came
}

// Error names the command, its status and its standard error.
func (e *ExitError) Error() string {
	text := fmt.Sprintf("%s: exit status %d", e.Command, e.Status)
	if e.Stderr != "" {
		text += ": " + e.Stderr
	}
	return text
}

// Run runs a command, as root, and shows what it prints. Its standard input is
// empty, even where the connection has a terminal, so that it cannot wait for an
// answer. The error is an *ExitError when the command ran to its end.
func (m *Machine) Run(ctx context.Context, argv ...string) error {
	cmd := &packersdk.RemoteCmd{Command: m.commandLine(argv) + " </dev/null"}
	if err := cmd.RunWithUi(ctx, m.Communicator, m.UI); err != nil {
		return failed(ctx, cmd, err)
	}
	return check(cmd, "")
}

// Output runs a command, as root, and returns its standard output. The error is an
// *ExitError when the command ran to its end. When ctx ends first, Output returns
// the cause of that and the command may go on: not every communicator can end one.
func (m *Machine) Output(ctx context.Context, argv ...string) (string, error) {
	var stdout, stderr bytes.Buffer
	cmd := &packersdk.RemoteCmd{Command: m.commandLine(argv), Stdout: &stdout, Stderr: &stderr}
	if err := m.Communicator.Start(ctx, cmd); err != nil {
		return "", failed(ctx, cmd, err)
	}
	exited := make(chan struct{})
	go func() {
		cmd.Wait()
		close(exited)
	}()
	select {
	case <-exited:
	case <-ctx.Done():
		return "", failed(ctx, cmd, ctx.Err())
	}
	return stdout.String(), check(cmd, strings.TrimSpace(stderr.String()))
}

// Read returns a file's content, or false when there is no such file. Carriage
// returns at the ends of lines are removed. The machine answers with a word rather
// than an exit status, which a refusal of sudo has as well.
func (m *Machine) Read(ctx context.Context, path string) (string, bool, error) {
	answer, err := m.Output(ctx, "sh", "-c", `test -e "$1" && echo there || echo absent`, "sh", path)
	if err != nil {
		return "", false, err
	}
	switch strings.TrimSpace(answer) {
	case "there":
	case "absent":
		return "", false, nil
	default:
		return "", false, fmt.Errorf("whether there is a %s: unexpected answer %q", path, answer)
	}
	content, err := m.Output(ctx, "cat", path)
	if err != nil {
		return "", false, err
	}
	// A connection with a terminal adds carriage returns.
	return strings.ReplaceAll(content, "\r\n", "\n"), true, nil
}

// ReadWord returns a file's content without the white space around it, or false
// when there is no such file. An empty file is an error.
func (m *Machine) ReadWord(ctx context.Context, path string) (string, bool, error) {
	content, there, err := m.Read(ctx, path)
	word := strings.TrimSpace(content)
	if there && word == "" {
		return "", false, fmt.Errorf("%s is empty", path)
	}
	return word, there, err
}

// Write replaces a file's content in place; owner and mode stay. A new file is
// root's, 0644. The content is an argument of a command: it must be short, and no
// secret.
func (m *Machine) Write(ctx context.Context, path, content string) error {
	_, err := m.Output(ctx, "sh", "-c", `umask 022 && printf %s "$1" >"$2"`, "sh", content, path)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

// Remove removes files; those that are not there are no error.
func (m *Machine) Remove(ctx context.Context, paths ...string) error {
	_, err := m.Output(ctx, append([]string{"rm", "-f"}, paths...)...)
	return err
}

func (m *Machine) commandLine(argv []string) string {
	if m.Sudo {
		argv = append([]string{"sudo", "-n"}, argv...)
	}
	return shell.Quote(argv...)
}

// failed is the error of a command that could not be run to its end.
func failed(ctx context.Context, cmd *packersdk.RemoteCmd, err error) error {
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return fmt.Errorf("run %s: %w", cmd.Command, err)
}

func check(cmd *packersdk.RemoteCmd, said string) error {
	switch status := cmd.ExitStatus(); status {
	case 0:
		return nil
	case packersdk.CmdDisconnect:
		return fmt.Errorf("%s: the connection was lost", cmd.Command)
	default:
		return &ExitError{cmd.Command, status, said}
	}
}
