package nspawn

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"

	packersdk "github.com/hashicorp/packer-plugin-sdk/packer"
)

// communicator runs commands and copies files by entering the machine's
// namespaces: no ssh, no key, no network.
type communicator struct {
	machine interface {
		// Command runs argv in the machine.
		Command(ctx context.Context, argv ...string) *exec.Cmd
		// Boot changes when the machine goes down.
		Boot() string
	}
	// environment is what the user's commands get besides the machine's.
	environment []string
}

var _ packersdk.Communicator = (*communicator)(nil)

// Start runs a shell command line. One that ends because the machine goes down
// is what Packer knows as a disconnect: a reboot, where that was expected.
func (c *communicator) Start(ctx context.Context, remote *packersdk.RemoteCmd) error {
	boot := c.machine.Boot()
	cmd := c.machine.Command(ctx, "sh", "-c", remote.Command)
	cmd.Env = append(cmd.Env, c.environment...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = remote.Stdin, remote.Stdout, remote.Stderr
	if err := cmd.Start(); err != nil {
		return err
	}
	go func() {
		// The state says it all; an error beyond it is of a pipe that a process
		// in the background still holds.
		cmd.Wait()
		status := cmd.ProcessState.ExitCode()
		if status != 0 && c.machine.Boot() != boot {
			status = packersdk.CmdDisconnect
		}
		remote.SetExited(status)
	}()
	return nil
}

// Upload writes a file, with the mode of fi where given. A path that ends in a
// slash is a folder, which fi names the file in.
func (c *communicator) Upload(dst string, content io.Reader, fi *os.FileInfo) error {
	mode := ""
	if fi != nil && *fi != nil {
		mode = fmt.Sprintf("%04o", (*fi).Mode().Perm())
		if strings.HasSuffix(dst, "/") {
			dst = path.Join(dst, (*fi).Name())
		}
	}
	cmd := c.machine.Command(context.Background(), "sh", "-c", `cat >"$1" && { [ -z "$2" ] || chmod "$2" "$1"; }`, "sh", dst, mode)
	cmd.Stdin = content
	return run(cmd, "upload to "+dst)
}

// Download reads a file.
func (c *communicator) Download(src string, to io.Writer) error {
	cmd := c.machine.Command(context.Background(), "cat", "--", src)
	cmd.Stdout = to
	return run(cmd, "download "+src)
}

// UploadDir copies a folder into dst, or its content when src ends in a slash.
func (c *communicator) UploadDir(dst, src string, exclude []string) error {
	pack := exec.Command("tar", packArgs(src, exclude)...)
	unpack := c.machine.Command(context.Background(), "sh", "-c", `mkdir -p -- "$1" && exec tar -C "$1" --no-same-owner -xf -`, "sh", dst)
	return pipe(pack, unpack, fmt.Sprintf("upload %s to %s", src, dst))
}

// DownloadDir copies a folder of the machine into dst, or its content when src
// ends in a slash.
func (c *communicator) DownloadDir(src, dst string, exclude []string) error {
	if err := os.MkdirAll(dst, 0o755); err != nil {
		return err
	}
	pack := c.machine.Command(context.Background(), append([]string{"tar"}, packArgs(src, exclude)...)...)
	unpack := exec.Command("tar", "-C", dst, "--no-same-owner", "-xf", "-")
	return pipe(pack, unpack, fmt.Sprintf("download %s to %s", src, dst))
}

// packArgs are tar's arguments that write a folder to standard output.
func packArgs(src string, exclude []string) []string {
	args := []string{"-cf", "-"}
	for _, pattern := range exclude {
		args = append(args, "--exclude="+pattern)
	}
	if strings.HasSuffix(src, "/") {
		return append(args, "-C", src, "--", ".")
	}
	return append(args, "-C", filepath.Dir(src), "--", filepath.Base(src))
}

// pipe runs two commands, the output of the first being the input of the second.
func pipe(from, to *exec.Cmd, what string) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	from.Stdout, to.Stdin = w, r
	var fromSaid, toSaid bytes.Buffer
	from.Stderr, to.Stderr = &fromSaid, &toSaid
	err = errors.Join(from.Start(), to.Start())
	w.Close()
	r.Close()
	for _, cmd := range []*exec.Cmd{from, to} {
		if cmd.Process != nil {
			err = errors.Join(err, cmd.Wait())
		}
	}
	if err != nil {
		return fmt.Errorf("%s: %w: %s", what, err, strings.TrimSpace(fromSaid.String()+toSaid.String()))
	}
	return nil
}

func run(cmd *exec.Cmd, what string) error {
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w: %s", what, err, strings.TrimSpace(said.String()))
	}
	return nil
}
