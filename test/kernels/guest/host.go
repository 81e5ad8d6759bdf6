package main

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"net/rpc"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/engine"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/firewall"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/overlay"
)

// hang is how long anything may take in an emulated machine on a busy host.
const hang = 3 * time.Minute

// Node is what the service of a node is started with.
type Node struct {
	Dir     string
	Root    []byte
	Address overlay.Address
	Host    string
	Peers   []string
}

// Nothing is for calls without an argument or an answer.
type Nothing struct{}

// Host is a computer: a network namespace, with a folder /run of its own, and who does
// there what he is asked for.
type Host struct {
	node    Node
	service *exec.Cmd
	to      net.Conn
}

// host is how others ask it.
type host struct {
	name string
	*rpc.Client
	cmd *exec.Cmd
}

func newHost(name string) (*host, error) {
	cmd := exec.Command("/proc/self/exe", "host")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	cmd.Stderr = os.Stdout
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("make a network namespace: %w", err)
	}
	return &host{name, rpc.NewClient(wire{out, in}), cmd}, nil
}

// wire is what two processes talk through.
type wire struct {
	io.Reader
	io.WriteCloser
}

// ask calls a method. What it does there has shorter deadlines.
func ask[A any](h *host, method string, args any) (answer A, err error) {
	call := h.Go("Host."+method, args, &answer, make(chan *rpc.Call, 1))
	select {
	case <-call.Done:
		if call.Error != nil {
			return answer, fmt.Errorf("%s: %s: %w", h.name, method, call.Error)
		}
		return answer, nil
	case <-time.After(10 * hang):
		return answer, fmt.Errorf("%s: %s: no answer for %s", h.name, method, 10*hang)
	}
}

// run runs commands there, a line each.
func (h *host) run(format string, args ...any) error {
	for line := range strings.Lines(fmt.Sprintf(format, args...)) {
		if _, err := ask[string](h, "Run", strings.Fields(line)); err != nil {
			return err
		}
	}
	return nil
}

func serveHost() error {
	err := errors.Join(
		unix.Mount("none", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
		unix.Mount("tmpfs", "/run", "tmpfs", 0, ""),
	)
	if err != nil {
		return err
	}
	if err := rpc.Register(&Host{}); err != nil {
		return err
	}
	rpc.ServeConn(wire{os.Stdin, os.Stdout})
	return nil
}

// Run runs a command.
func (*Host) Run(argv []string, out *string) error {
	text, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
	*out = string(text)
	if err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, text)
	}
	return nil
}

// set applies a resource twice, and looks after each time whether it is so.
func set(r engine.Resource) error {
	for range 2 {
		if err := r.Apply(context.Background()); err != nil {
			return err
		}
		if diff, err := r.Diff(context.Background()); err != nil || len(diff) > 0 {
			return fmt.Errorf("after it was set: %q, %v", diff, err)
		}
	}
	return nil
}

// Address gives the computer its overlay address.
func (*Host) Address(a overlay.Address, _ *Nothing) error { return set(overlay.Addressed(a)) }

// mesh is the network that the chains guard.
func mesh(a overlay.Address) firewall.Network {
	return firewall.Network{Interface: overlay.Interface, Range: a.Range}
}

// Guard sets the firewall, and tells what it cannot guard.
func (*Host) Guard(a overlay.Address, gaps *[]string) error {
	err := set(firewall.Static(mesh(a), firewall.Doors{Allow: []string{"192.0.2.0/24"}, ConsulUser: "consul"}))
	if err != nil {
		return err
	}
	*gaps, err = firewall.Gaps(context.Background())
	return err
}

// Bare removes it.
func (*Host) Bare(Nothing, *Nothing) error { return set(firewall.Absent()) }

// Start starts the node's service, and waits for nothing.
func (h *Host) Start(n Node, _ *Nothing) error {
	h.node = n
	text, err := json.Marshal(n)
	if err != nil {
		return err
	}
	log, err := os.OpenFile("/run/overlay.log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	h.service = exec.Command("/proc/self/exe", "service")
	h.service.Env = append(os.Environ(), "NODE="+string(text))
	h.service.Stdout, h.service.Stderr = log, log
	h.service.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return h.service.Start()
}

// Kill ends the service as a crash does.
func (h *Host) Kill(Nothing, *Nothing) error {
	h.service.Process.Kill()
	h.service.Wait()
	return nil
}

// Status asks the service.
func (h *Host) Status(_ Nothing, s *overlay.Status) (err error) {
	*s, err = overlay.Remote{Socket: socket}.Status(context.Background())
	return err
}

// Kept is what the service would know of the others after a crash.
func (h *Host) Kept(_ Nothing, text *string) error {
	raw, err := os.ReadFile(filepath.Join(h.node.Dir, overlay.StateFile))
	*text = string(raw)
	return err
}

// Log is what the service said last.
func (*Host) Log(_ Nothing, text *string) error {
	raw, err := os.ReadFile("/run/overlay.log")
	*text = string(raw[max(0, len(raw)-4000):])
	return err
}

// Memory is what the service holds of it, in KiB.
func (h *Host) Memory(_ Nothing, kib *int) error {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", h.service.Process.Pid))
	for line := range strings.Lines(string(text)) {
		fmt.Sscanf(line, "VmRSS: %d kB", kib)
	}
	return err
}

// Serve answers what is sent to an address with what arrived, hashed.
func (*Host) Serve(at string, _ *Nothing) error {
	ln, err := net.Listen("tcp4", at)
	if err != nil {
		return err
	}
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				for {
					var n int64
					if binary.Read(c, binary.BigEndian, &n) != nil {
						return
					}
					sum := sha256.New()
					if _, err := io.CopyN(sum, c, n); err != nil {
						return
					}
					c.Write(sum.Sum(nil))
				}
			}()
		}
	}()
	return nil
}

// Open opens the connection that Send uses.
func (h *Host) Open(to string, _ *Nothing) error {
	c, err := net.DialTimeout("tcp4", to, hang)
	if err != nil {
		return err
	}
	h.to = c
	if os.Getenv("VIRTUAL") == "" {
		return nil
	}
	// WireGuard has 7 MB of socket buffer, which an emulated processor reads in a
	// minute, and gives up a handshake that waits in it for five seconds.
	return c.(*net.TCPConn).SetWriteBuffer(128 << 10)
}

// Send sends so many random bytes, and returns when all are there as they were sent. It
// may take as long as it goes on.
func (h *Host) Send(n int64, took *time.Duration) error {
	start := time.Now()
	if err := binary.Write(h.to, binary.BigEndian, n); err != nil {
		return err
	}
	sum := sha256.New()
	noise := rand.NewChaCha8([32]byte{byte(n)})
	const part = 1e6
	for sent := int64(0); sent < n; sent += part {
		h.to.SetDeadline(time.Now().Add(hang))
		if _, err := io.CopyN(io.MultiWriter(h.to, sum), noise, min(part, n-sent)); err != nil {
			return fmt.Errorf("after %d of %d bytes: %w", sent, n, err)
		}
		if sent > 0 && sent%10e6 == 0 {
			fmt.Fprintf(os.Stderr, "%dMB sent after %s\n", sent/1e6, time.Since(start).Round(time.Millisecond))
		}
	}
	h.to.SetDeadline(time.Now().Add(hang))
	got := make([]byte, sha256.Size)
	if _, err := io.ReadFull(h.to, got); err != nil {
		return err
	}
	if want := sum.Sum(nil); string(got) != string(want) {
		return fmt.Errorf("%d bytes arrived as others than were sent", n)
	}
	*took = time.Since(start)
	return nil
}

// Knock says whether a TCP connection can be made.
func (*Host) Knock(to string, opened *bool) error {
	c, err := net.DialTimeout("tcp4", to, 3*time.Second)
	if err == nil {
		c.Close()
	}
	*opened = err == nil
	return nil
}

const socket = "/run/overlay/control.sock"

// runService is what `xivo-firstboot overlay` runs, for a node that the trial made up.
func runService() error {
	var n Node
	if err := json.Unmarshal([]byte(os.Getenv("NODE")), &n); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if err := overlay.KeyPair(n.Dir).Apply(ctx); err != nil {
		return err
	}
	key, err := overlay.ReadKey(n.Dir)
	if err != nil {
		return err
	}
	s, err := overlay.New(overlay.Config{
		Dir: n.Dir, Root: overlay.Root(n.Root), Key: key, Address: n.Address, Mode: overlay.ModeOverlay,
		UUID: n.Address.UUID, Host: n.Host, Version: "15.19", Boot: bootID(), Registered: 1, Peers: n.Peers,
		Log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	if err != nil {
		return err
	}
	ended := make(chan error, 2)
	go func() { ended <- s.Control(ctx, socket) }()
	go func() { ended <- s.Run(ctx) }()
	return cmp.Or(<-ended, errors.New("the service ended"))
}

func bootID() string {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(string(id))
}

// newNode draws who a node is.
func newNode(name string, root []byte, peers ...string) (Node, error) {
	dir, err := os.MkdirTemp("", "node")
	if err != nil {
		return Node{}, err
	}
	a, err := overlay.Draw(uuid.New(), overlay.DefaultRange)
	return Node{filepath.Join(dir, "mesh"), root, a, name, peers}, err
}

func (n Node) at(port int) string {
	return netip.AddrPortFrom(n.Address.Address, uint16(port)).String()
}
