package overlay

import (
	"bufio"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/ipc"
	"golang.zx2c4.com/wireguard/tun"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
)

// keepalive is how often a packet goes to every peer, in seconds: more often than
// NATs forget, which they may after 30.
const keepalive = 25

// Peer is another member as the device knows it.
type Peer struct {
	Key     Key
	Address netip.Addr
	// Endpoints are where it may be reached, the first one tried first. A packet of
	// the peer itself tells better.
	Endpoints []netip.AddrPort
}

// PeerState is how the device gets on with a peer.
type PeerState struct {
	// Endpoint is where packets to it go; the zero value where none is known.
	Endpoint netip.AddrPort
	// Handshake is when the last one was; the zero value before the first.
	Handshake      time.Time
	Received, Sent uint64 // bytes
	Address        netip.Addr
}

// Device is the WireGuard device of this node, in this process: it ends with it.
type Device struct {
	root Root
	key  PrivateKey
	own  Address
	dev  *device.Device
	uapi net.Listener // nil where there is none

	mu    sync.Mutex
	peers map[Key]*known
}

// known is a peer that was set, and which of its endpoints is tried.
type known struct {
	Peer
	tried int
	// told is the time of the last handshake as WireGuard has it, by a clock that may be
	// set meanwhile, and at when it was first seen, by one that is not.
	told, at time.Time
}

// DeviceConfig is what a device is made of.
type DeviceConfig struct {
	Root    Root
	Key     PrivateKey
	Address Address
	// Port is the UDP port; 0 is Port.
	Port int
	Log  *slog.Logger
}

// OpenDevice makes the interface, which has no address, and the route to the range.
// The overlay address must be on the machine already; see Addressed. `wg show` works
// where /run can be written. An error says what to do.
func OpenDevice(ctx context.Context, c DeviceConfig) (*Device, error) {
	if c.Port == 0 {
		c.Port = Port
	}
	t, err := openTUN(ctx)
	if err != nil {
		return nil, err
	}
	log := &device.Logger{
		Verbosef: device.DiscardLogf,
		Errorf:   func(format string, args ...any) { c.Log.Debug("wireguard: " + fmt.Sprintf(format, args...)) },
	}
	d := &Device{root: c.Root, key: c.Key, own: c.Address, peers: map[Key]*known{}}
	d.dev = device.NewDevice(t, conn.NewDefaultBind(), log)
	err = d.dev.IpcSet(fmt.Sprintf("private_key=%s\nlisten_port=%d\n", hex.EncodeToString(c.Key[:]), c.Port))
	if err == nil {
		err = d.dev.Up()
	}
	if err != nil {
		d.dev.Close()
		return nil, fmt.Errorf("overlay: open UDP port %d: %w; see with `ss -lnup` what has it", c.Port, err)
	}

	// Nothing of ours is on IPv6; a kernel without it has no such file.
	os.WriteFile("/proc/sys/net/ipv6/conf/"+Interface+"/disable_ipv6", []byte("1"), 0o644)
	for _, args := range [][]string{
		{"link", "set", "dev", Interface, "up"},
		{"route", "replace", c.Address.Range.Masked().String(), "dev", Interface, "src", c.Address.Address.String()},
	} {
		if _, err := ip(ctx, args...); err != nil {
			d.dev.Close()
			return nil, fmt.Errorf("overlay: set up %s: %w", Interface, err)
		}
	}
	if err := d.listen(); err != nil {
		c.Log.Warn("overlay: `wg show` will not work", "err", err)
	}
	return d, nil
}

func openTUN(ctx context.Context) (tun.Device, error) {
	if _, err := os.Stat("/dev/net/tun"); errors.Is(err, fs.ErrNotExist) {
		platform.Run(ctx, "modprobe", "tun") // what is missing after it is told below
	}
	t, err := tun.CreateTUN(Interface, MTU)
	if err != nil {
		return nil, fmt.Errorf("overlay: make the interface %s: %w; it needs /dev/net/tun (`modprobe tun`) and root, and no other process may have it; where a machine cannot have it, set `network.mode` to direct", Interface, err)
	}
	return t, nil
}

// listen opens the socket that `wg` asks.
func (d *Device) listen() error {
	file, err := ipc.UAPIOpen(Interface)
	if err != nil {
		return err
	}
	defer file.Close()
	if d.uapi, err = ipc.UAPIListen(Interface, file); err != nil {
		return err
	}
	go func() {
		for {
			c, err := d.uapi.Accept()
			if err != nil {
				return
			}
			go d.dev.IpcHandle(c)
		}
	}()
	return nil
}

// Close ends the interface and all that goes through it.
func (d *Device) Close() {
	if d.uapi != nil {
		d.uapi.Close()
	}
	d.dev.Close()
}

// Done is closed when the device ended, by itself too.
func (d *Device) Done() <-chan struct{} { return d.dev.Wait() }

// Set adds a peer, or changes its endpoints: where packets go stays as it is as long
// as a handshake is not older than silence. A peer that tells of none, as one does
// between two addresses, is looked for where it was. A peer outside the range, and one
// with an address that this node or another peer has, is an error and changes nothing:
// WireGuard would give the address to the last one that claims it.
func (d *Device) Set(p Peer) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if p.Key == d.key.Public() || p.Address == d.own.Address {
		return fmt.Errorf("overlay: the peer %s has the key or the address of this node", p.Address)
	}
	if !d.own.Range.Contains(p.Address) {
		return fmt.Errorf("overlay: the peer's address %s is outside %s", p.Address, d.own.Range)
	}
	for key, other := range d.peers {
		if other.Address == p.Address && key != p.Key {
			return fmt.Errorf("overlay: the address %s is that of the peer %s, and not given to %s", p.Address, key, p.Key)
		}
	}
	was, ok := d.peers[p.Key]
	if !ok {
		return d.add(&known{Peer: p})
	}
	if was.Address != p.Address {
		return fmt.Errorf("overlay: the peer %s is at %s, and not moved to %s", p.Key, was.Address, p.Address)
	}
	if len(p.Endpoints) == 0 || slices.Equal(was.Endpoints, p.Endpoints) {
		return nil
	}
	// It moved away from where packets go, and says so before it could send one.
	state := d.states()[p.Key]
	moved := slices.Contains(was.Endpoints, state.Endpoint) && !slices.Contains(p.Endpoints, state.Endpoint)
	was.Endpoints, was.tried = p.Endpoints, 0
	if moved || !state.Endpoint.IsValid() {
		return d.direct(p.Key, p.Endpoints[0])
	}
	return nil
}

// add configures a peer of which the device knows nothing.
func (d *Device) add(k *known) error {
	psk := d.root.pairKey(d.key.Public(), k.Key)
	var b strings.Builder
	fmt.Fprintf(&b, "public_key=%s\npreshared_key=%s\n", hex.EncodeToString(k.Key[:]), hex.EncodeToString(psk[:]))
	if len(k.Endpoints) > 0 {
		fmt.Fprintf(&b, "endpoint=%s\n", k.Endpoints[k.tried%len(k.Endpoints)])
	}
	fmt.Fprintf(&b, "allowed_ip=%s/32\npersistent_keepalive_interval=%d\n", k.Address, keepalive)
	if err := d.dev.IpcSet(b.String()); err != nil {
		return fmt.Errorf("overlay: set the peer %s: %w", k.Address, err)
	}
	d.peers[k.Key] = k
	return nil
}

// direct sends packets to the peer there from now on, the first one at once.
func (d *Device) direct(key Key, to netip.AddrPort) error {
	if err := d.dev.IpcSet(fmt.Sprintf("public_key=%s\nupdate_only=true\nendpoint=%s\n", hex.EncodeToString(key[:]), to)); err != nil {
		return fmt.Errorf("overlay: send to %s: %w", to, err)
	}
	if p := d.dev.LookupPeer(device.NoisePublicKey(key)); p != nil {
		p.SendKeepalive()
	}
	return nil
}

// Remove ends the tunnel to a peer, and forgets it.
func (d *Device) Remove(key Key) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.dev.RemovePeer(device.NoisePublicKey(key))
	delete(d.peers, key)
}

// Renew removes a peer and adds it again, with packets to it going there. WireGuard
// remembers the time of a peer's last handshake, and refuses all before it: a peer
// whose clock went back is let in only by who forgot.
func (d *Device) Renew(key Key, to netip.AddrPort) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	k, ok := d.peers[key]
	if !ok {
		return nil
	}
	d.dev.RemovePeer(device.NoisePublicKey(key))
	delete(d.peers, key)
	if to.IsValid() {
		k = &known{Peer: Peer{k.Key, k.Address, append([]netip.AddrPort{to}, without(k.Endpoints, to)...)}}
	}
	return d.add(k)
}

// Direct sends packets to a peer there: a place where it was just heard.
func (d *Device) Direct(key Key, to netip.AddrPort) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, ok := d.peers[key]; !ok {
		return nil
	}
	return d.direct(key, to)
}

// TryNext sends packets to the next endpoint of each peer that has been silent for
// so long.
func (d *Device) TryNext(silence time.Duration, now time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for key, s := range d.states() {
		k, ok := d.peers[key]
		if !ok || len(k.Endpoints) == 0 || now.Sub(s.Handshake) < silence {
			continue
		}
		k.tried++
		if to := k.Endpoints[k.tried%len(k.Endpoints)]; to != s.Endpoint {
			d.direct(key, to)
		}
	}
}

// Peers are the keys of those that were set.
func (d *Device) Peers() []Key {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Collect(maps.Keys(d.peers))
}

// SendKeepalives sends a packet to every peer at once, so that each learns where this
// node is now.
func (d *Device) SendKeepalives() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for key, s := range d.states() {
		if s.Endpoint.IsValid() {
			// Forgets the address that packets were sent from, which may be gone.
			d.direct(key, s.Endpoint)
		}
	}
	d.dev.SendKeepalivesToPeersWithCurrentKeypair()
}

// States is how the device gets on with each peer.
func (d *Device) States() map[Key]PeerState {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.states()
}

func (d *Device) states() map[Key]PeerState {
	text, err := d.dev.IpcGet()
	if err != nil {
		return nil // only when the device is closed
	}
	out := map[Key]PeerState{}
	var key Key
	var s PeerState
	var sec, nsec int64
	for lines := bufio.NewScanner(strings.NewReader(text)); lines.Scan(); {
		name, value, _ := strings.Cut(lines.Text(), "=")
		number, _ := strconv.ParseInt(value, 10, 64)
		switch name {
		case "public_key":
			hex.Decode(key[:], []byte(value))
			s = PeerState{}
		case "endpoint":
			s.Endpoint, _ = netip.ParseAddrPort(value)
		case "last_handshake_time_sec":
			sec = number
		case "last_handshake_time_nsec":
			if nsec = number; sec != 0 || nsec != 0 {
				s.Handshake = time.Unix(sec, nsec)
			}
		case "tx_bytes":
			s.Sent = uint64(number)
		case "rx_bytes":
			s.Received = uint64(number)
		case "allowed_ip":
			if p, err := netip.ParsePrefix(value); err == nil {
				s.Address = p.Addr()
			}
		}
		if key != (Key{}) {
			out[key] = s
		}
	}
	for key, s := range out {
		k, ok := d.peers[key]
		if !ok || s.Handshake.IsZero() {
			continue
		}
		if !k.told.Equal(s.Handshake) {
			k.told, k.at = s.Handshake, time.Now()
		}
		s.Handshake = k.at
		out[key] = s
	}
	return out
}

func without[T comparable](all []T, one T) []T {
	return slices.DeleteFunc(slices.Clone(all), func(x T) bool { return x == one })
}
