package identity

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/engine"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/files"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/limit"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
)

const (
	// certificateYears is how long XiVO's own certificates are valid.
	certificateYears = 10
	keyBits          = 2048
	// daemonsGroup reads the key: nginx's group, of which consul is a member.
	daemonsGroup = "www-data"
)

// Certificate is the key and certificate with which XiVO's daemons serve HTTPS
// on this server. Where both are there, whoever made them, they stay. Otherwise
// both are made: self-signed, for localhost (every daemon verifies localhost
// against this file), the host name and these addresses, or without any those of the
// interfaces, valid for ten years, as XiVO's own. Each address that is given is there as
// a name, too: Python 2.7 looks for it there. The key is read by root and the group
// www-data.
func Certificate(p *platform.Platform, addresses ...string) engine.Resource {
	return keyPair{p, addresses}
}

type keyPair struct {
	platform  *platform.Platform
	addresses []string
}

// Diff names what is missing.
func (k keyPair) Diff(context.Context) ([]string, error) {
	var diff []string
	for _, name := range []string{platform.CertificateKey, platform.CertificateFile} {
		if !exists(k.platform.Path(name)) {
			diff = append(diff, name+" is missing")
		}
	}
	return diff, nil
}

// Apply makes the pair if either is missing. The certificate is written last,
// so a pair that was cut short is made again.
func (k keyPair) Apply(ctx context.Context) error {
	if diff, err := k.Diff(ctx); err != nil || len(diff) == 0 {
		return err
	}
	if err := k.make(); err != nil {
		return fmt.Errorf("identity: make the certificate %s: %w", platform.CertificateFile, err)
	}
	return nil
}

func (k keyPair) make() error {
	gid, err := k.group(daemonsGroup)
	if err != nil {
		return err
	}
	ips, names := addresses(), []string(nil)
	if len(k.addresses) > 0 {
		ips, names = []net.IP{net.IPv4(127, 0, 0, 1)}, k.addresses
		for _, a := range k.addresses {
			ips = append(ips, net.ParseIP(a))
		}
	}
	key, cert, err := newPair(append([]string{k.hostname()}, names...), ips)
	if err != nil {
		return err
	}

	keyFile, certFile := k.platform.Path(platform.CertificateKey), k.platform.Path(platform.CertificateFile)
	if err := os.MkdirAll(filepath.Dir(keyFile), 0o755); err != nil {
		return err
	}
	// Both, as either may be a link that leads nowhere any more.
	for _, name := range []string{certFile, keyFile} {
		if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err := files.WriteFile(keyFile, key, files.Attr{Mode: 0o640, UID: 0, GID: gid}); err != nil {
		return err
	}
	return files.WriteFile(certFile, cert, files.Attr{Mode: 0o644, UID: 0, GID: gid})
}

// newPair makes a key and its certificate, each in PEM.
func newPair(names []string, addrs []net.IP) (key, cert []byte, err error) {
	private, err := rsa.GenerateKey(rand.Reader, keyBits)
	if err != nil {
		return nil, nil, err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return nil, nil, err
	}
	certDER, err := selfSigned(private, names, addrs)
	if err != nil {
		return nil, nil, err
	}
	return block("PRIVATE KEY", keyDER), block("CERTIFICATE", certDER), nil
}

func selfSigned(key *rsa.PrivateKey, names []string, addrs []net.IP) ([]byte, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	// A clone's clock may be behind until NTP has set it.
	now := time.Now().UTC().Add(-24 * time.Hour)
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: "*"},
		NotBefore:    now,
		NotAfter:     now.AddDate(certificateYears, 0, 1),
		DNSNames:     []string{"localhost"},
		IPAddresses:  addrs,
		// Its readers use it as their CA file.
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment | x509.KeyUsageCertSign,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, name := range names {
		if name != "" && name != "localhost" {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	return x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
}

func block(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

// hostname prefers what the server's file says: it may be newer than the
// kernel's.
func (k keyPair) hostname() string {
	if raw, err := limit.ReadFile(k.platform.Path(hostnameFile), limit.File); err == nil {
		return strings.TrimSpace(string(raw))
	}
	host, _ := os.Hostname()
	return host
}

// addresses returns loopback and the IPv4 addresses of the interfaces.
func addresses() []net.IP {
	ips := []net.IP{net.IPv4(127, 0, 0, 1)}
	found, err := net.InterfaceAddrs()
	if err != nil {
		return ips
	}
	for _, a := range found {
		if n, ok := a.(*net.IPNet); ok && n.IP.To4() != nil && n.IP.IsGlobalUnicast() {
			ips = append(ips, n.IP)
		}
	}
	return ips
}

// group looks a group up in the server's file: a static binary has no NSS, and
// the root may be another.
func (k keyPair) group(name string) (gid int, err error) {
	f, err := os.Open(k.platform.Path("/etc/group"))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if fields := strings.Split(lines.Text(), ":"); len(fields) >= 3 && fields[0] == name {
			return strconv.Atoi(fields[2])
		}
	}
	if err := lines.Err(); err != nil {
		return 0, err
	}
	return 0, fmt.Errorf("there is no group %s, which XiVO's daemons need to read the key", name)
}

func exists(name string) bool {
	_, err := os.Stat(name)
	return err == nil
}
