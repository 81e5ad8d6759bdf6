package overlay_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/overlay"
)

// runStrange is a neighbour without the secret: it sends what it can think of to the
// port in both families, and prints how many bytes it got back.
func runStrange() error {
	got := 0
	junk := strings.Repeat("x", 60_000)
	for _, host := range strings.Split(os.Getenv("OVERLAY_AT"), ",") {
		at := net.JoinHostPort(host, strconv.Itoa(overlay.Port))
		for round := range 15 {
			var open []net.Conn
			for i, text := range []string{junk, "\x00\x30" + junk[:48], "GET / HTTP/1.0\r\n\r\n", "\x16\x03\x01\x02\x00\x01", "\x00\x30short", junk, junk, junk} {
				c, err := net.Dial("tcp", at)
				if err != nil {
					return fmt.Errorf("round %d, %d: %w", round, i, err)
				}
				c.SetDeadline(time.Now().Add(time.Minute)) // for hangs
				go io.WriteString(c, text)
				open = append(open, c)
			}
			for i, c := range open {
				if round > 0 && (i == 3 || i == 4) {
					c.Close() // of those that stop half way, one waits for the end of its time
					continue
				}
				n, _ := io.Copy(io.Discard, c)
				got += int(n)
				c.Close()
			}
		}
		u, err := net.Dial("udp", at)
		if err != nil {
			return err
		}
		// The four kinds of WireGuard's messages in their lengths, and none.
		for kind, size := range map[byte]int{1: 148, 2: 92, 3: 64, 4: 96, 5: 1200, 0: 1} {
			message := make([]byte, size)
			message[0] = kind
			for range 50 {
				u.Write(message)
			}
		}
		u.SetReadDeadline(time.Now().Add(time.Second)) // what comes, comes by then
		n, _ := u.Read(make([]byte, 2000))
		got += n
	}
	fmt.Println(got)
	return nil
}

// resident is how many bytes of memory a process has.
func resident(t *testing.T, p *process) int {
	t.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", p.cmd.Process.Pid))
	check(t, err)
	pages, err := strconv.Atoi(strings.Fields(string(raw))[1])
	check(t, err)
	return pages * os.Getpagesize()
}

func TestAStrangerGetsNoByteInEitherFamilyAndTakesNoMemory(t *testing.T) {
	l := newLAN(t)
	a := l.newNode(t, "a", "192.0.2.1")
	b := l.newNode(t, "b", "192.0.2.2", "192.0.2.1")
	stranger := newMachine(t)
	l.plug(t, stranger, "192.0.2.66/24")
	for m, address := range map[*machine]string{a: "fd00:9::1/64", stranger: "fd00:9::66/64"} {
		m.run(t, "ip", "-6", "addr", "add", address, "dev", "eth0", "nodad")
	}
	a.boot(t)
	until(t, "a listens", func() bool {
		return strings.Contains(a.run(t, "sh", "-c", "cat /proc/net/tcp6 /proc/net/tcp"), fmt.Sprintf(":%04X ", overlay.Port))
	})

	var used []int
	for range 2 { // the first time, all that is kept for use again comes into being
		strange := stranger.self(t, "strange", "OVERLAY_AT=192.0.2.1,fd00:9::1")
		if got := strange.line(t); got != "0" {
			t.Errorf("a stranger got %s bytes", got)
		}
		used = append(used, resident(t, a.node))
	}
	if grown := used[1] - used[0]; grown > 8<<20 || used[1] > 100<<20 {
		t.Errorf("240 connections of a stranger took %d KiB, of %d", grown>>10, used[1]>>10)
	}
	st := a.status(t)
	if len(st.Peers) != 0 || len(st.Alarms) != 0 || st.Strangers < 100 {
		t.Errorf("a has %d peers, %q, and counted %d strangers", len(st.Peers), st.Alarms, st.Strangers)
	}
	b.boot(t)
	joined(t, a, b)
}

func TestTheDeviceNeverMovesAnAddressToAnotherKey(t *testing.T) {
	m := newMachine(t)
	p := m.self(t, "device")
	if got := p.line(t); got != "ok" {
		t.Error(got)
	}
}

// runDevice is the test, in a machine of its own.
func runDevice() error {
	ctx := context.Background()
	own, err := overlay.Draw(uuid.New(), overlay.DefaultRange)
	if err != nil {
		return err
	}
	if err := overlay.Addressed(own).Apply(ctx); err != nil {
		return err
	}
	key := overlay.NewKey()
	d, err := overlay.OpenDevice(ctx, overlay.DeviceConfig{Root: rootOf(theSecret), Key: key, Address: own, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	defer d.Close()
	first := overlay.Peer{Key: overlay.NewKey().Public(), Address: own.Address.Next(), Endpoints: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:9")}}
	if err := d.Set(first); err != nil {
		return err
	}
	before := uapi()
	for name, p := range map[string]overlay.Peer{
		"the address of another peer": {Key: overlay.NewKey().Public(), Address: first.Address},
		"the address of this node":    {Key: overlay.NewKey().Public(), Address: own.Address},
		"the key of this node":        {Key: key.Public(), Address: first.Address.Next()},
		"an address out of range":     {Key: overlay.NewKey().Public(), Address: netip.MustParseAddr("192.0.2.1")},
		"a known key elsewhere":       {Key: first.Key, Address: first.Address.Next()},
	} {
		if err := d.Set(p); err == nil {
			fmt.Printf("%s was given to %v\n", name, p.Key)
			return nil
		}
	}
	allowed := func(s string) (out []string) {
		for line := range strings.Lines(s) {
			if strings.HasPrefix(line, "allowed_ip") || strings.HasPrefix(line, "public_key") {
				out = append(out, line)
			}
		}
		return out
	}
	if after := uapi(); fmt.Sprint(allowed(after)) != fmt.Sprint(allowed(before)) || len(allowed(after)) != 2 {
		text, _ := json.Marshal(allowed(after))
		fmt.Printf("the device has %s\n", text)
		return nil
	}
	// The address is free again when its peer is gone.
	d.Remove(first.Key)
	if err := d.Set(overlay.Peer{Key: overlay.NewKey().Public(), Address: first.Address}); err != nil {
		return err
	}
	fmt.Println("ok")
	return nil
}

func TestAPeerThatHadNoAddressForAMomentIsReachedAtItsNextOne(t *testing.T) {
	m := newMachine(t)
	p := m.self(t, "moving")
	if got := p.line(t); got != "192.0.2.2:9484" {
		t.Errorf("packets go to %s", got)
	}
}

// runMoving tells a device of a peer that loses its address and gets another, and prints
// where packets to it go then.
func runMoving() error {
	ctx := context.Background()
	own, err := overlay.Draw(uuid.New(), overlay.DefaultRange)
	if err != nil {
		return err
	}
	if err := overlay.Addressed(own).Apply(ctx); err != nil {
		return err
	}
	d, err := overlay.OpenDevice(ctx, overlay.DeviceConfig{Root: rootOf(theSecret), Key: overlay.NewKey(), Address: own, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	defer d.Close()
	peer := overlay.Peer{Key: overlay.NewKey().Public(), Address: own.Address.Next()}
	for _, ends := range [][]netip.AddrPort{{netip.MustParseAddrPort("192.0.2.1:9484")}, nil, {netip.MustParseAddrPort("192.0.2.2:9484")}} {
		peer.Endpoints = ends
		if err := d.Set(peer); err != nil {
			return err
		}
	}
	fmt.Println(d.States()[peer.Key].Endpoint)
	return nil
}
