package remains_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/remains"
)

const (
	xivoUUID  = "5d2e7a14-43f0-4d7e-9c57-1f2a3b4c5d6e"
	machineID = "2b8f1c0e6a0a4f0e9b573f6f6e0c8a11"
	gossipKey = "hlb5aFiS4blpKqyKBMJ27A=="
	cookie    = "NKQXPLDWRMTZUVHYBSGA"
	service   = "correct-horse-battery"
)

func bytesOf(t *testing.T, digits string) string {
	t.Helper()
	raw, err := hex.DecodeString(strings.ReplaceAll(digits, "-", ""))
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

func prove(t *testing.T, image string, v remains.Values) remains.Proof {
	t.Helper()
	proof, err := remains.Prove(t.Context(), image, v, nil)
	if err != nil {
		t.Fatal(err)
	}
	return proof
}

// image is a disk with this text on it.
func image(t *testing.T, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "disk.raw")
	content := make([]byte, 1<<20)
	copy(content[777_777:], text)
	if err := os.WriteFile(name, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestAValueIsFoundHoweverItIsWritten(t *testing.T) {
	var v remains.Values
	v.Add("the XiVO UUID", xivoUUID)
	v.Add("the machine id", machineID)
	v.Add("the gossip key", gossipKey)
	v.Add("the Erlang cookie", cookie)
	v.Add("a service's key", service)

	gossip, _ := base64.StdEncoding.DecodeString(gossipKey)
	in64 := func(text string) string { return base64.StdEncoding.EncodeToString([]byte(text)) }
	for _, c := range []struct{ name, text, want string }{
		{"nothing", "", ""},
		{"another UUID", "5d2e7a14-43f0-4d7e-9c57-1f2a3b4c5d6f", ""},
		{"half of the UUID", xivoUUID[:18], ""},
		{"a UUID", "uuid=" + xivoUUID, "the XiVO UUID, as text"},
		{"in capitals", strings.ToUpper(xivoUUID), "the XiVO UUID, as text in capitals"},
		{"without dashes", strings.ReplaceAll(xivoUUID, "-", ""), "the XiVO UUID, as text without dashes"},
		{"as PostgreSQL stores one", bytesOf(t, xivoUUID), "the XiVO UUID, as 16 bytes"},
		{"as DMI has it", bytesOf(t, "147a2e5d-f043-7e4d-9c57-1f2a3b4c5d6e"), "the XiVO UUID, as 16 bytes in DMI's order"},
		{"the machine id", machineID, "the machine id, as text"},
		{"the machine id in a journal's header", bytesOf(t, machineID), "the machine id, as 16 bytes"},
		{"the machine id as a UUID", "2b8f1c0e-6a0a-4f0e-9b57-3f6f6e0c8a11", "the machine id, as text"},
		{"the key of Consul's keyring", `["` + gossipKey + `"]`, "the gossip key, as text"},
		{"the key as bytes", string(gossip), "the gossip key, as bytes"},
		{"the cookie", cookie, "the Erlang cookie, as text"},
		{"a key of an account", service, "a service's key, as text"},
		{"in what was written in base64", in64("ooo" + xivoUUID + "o"), "the XiVO UUID, in base64"},
		{"in what was written in base64, a byte later", in64("oooo" + xivoUUID + "oo"), "the XiVO UUID, in base64"},
		{"in what was written in base64, two bytes later", in64("ooooo" + service + "ooo"), "a service's key, in base64"},
	} {
		t.Run(c.name, func(t *testing.T) {
			proof := prove(t, image(t, c.text), v)
			var got []string
			for _, f := range proof.Found {
				got = append(got, f.Name+", "+f.How)
				if f.At < 777_777 || f.At > 777_877 {
					t.Errorf("%s at byte %d", f.Name, f.At)
				}
			}
			if c.want == "" && got != nil || c.want != "" && (len(got) == 0 || got[0] != c.want) {
				t.Errorf("found %q, want %q", got, c.want)
			}
			for _, value := range []string{xivoUUID, machineID, gossipKey, cookie, service} {
				if strings.Contains(fmt.Sprintf("%v %+v", proof.Found, v), value) {
					t.Errorf("a value is told: %v", proof.Found)
				}
			}
		})
	}
}

func TestAPrivateKeyIsFoundAndItsCertificateIsNot(t *testing.T) {
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	certificate := x509.MarshalPKCS1PublicKey(&rsaKey.PublicKey)
	key := func(der []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: der}))
	}
	der := x509.MarshalPKCS1PrivateKey(rsaKey)
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ecDER, err := x509.MarshalECPrivateKey(ec)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, key, text string
		want            bool
	}{
		{"the key's file", key(der), key(der), true},
		{"the end of the file", key(der), key(der)[1000:], true},
		{"its bytes", key(der), string(der), true},
		{"its certificate", key(der), string(certificate) + base64.StdEncoding.EncodeToString(certificate), false},
		{"a short key's file", key(ecDER), key(ecDER), true},
	} {
		t.Run(c.name, func(t *testing.T) {
			var v remains.Values
			v.Add("the TLS key", c.key)
			if found := prove(t, image(t, c.text), v).Found; len(found) > 0 != c.want {
				t.Errorf("found %v", found)
			}
		})
	}
}

func TestManyPlacesAreOneLine(t *testing.T) {
	var v remains.Values
	v.Add("the Erlang cookie", cookie)
	found := prove(t, image(t, strings.Repeat(cookie+" ", 9)), v).Found
	if len(found) != 1 || found[0].String() != "the Erlang cookie, as text, at byte 777777, and at 8 places more" {
		t.Errorf("found %v", found)
	}
}

func TestAnImageIsSearchedAndItsFileToo(t *testing.T) {
	if _, err := exec.LookPath("qemu-img"); err != nil {
		t.Skip("needs qemu-img")
	}
	var v remains.Values
	v.Add("the Erlang cookie", cookie)
	name := filepath.Join(t.TempDir(), "image.qcow2")
	if out, err := exec.Command("qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", image(t, cookie), name).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if found := prove(t, name, v).Found; len(found) != 1 || found[0].At != 777_777 || found[0].In != "" {
		t.Errorf("in a compressed image: %v", found)
	}
	// As in a cluster that the image has no more.
	clean := filepath.Join(t.TempDir(), "clean.qcow2")
	if out, err := exec.Command("qemu-img", "create", "-f", "qcow2", clean, "1M").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	f, err := os.OpenFile(clean, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(cookie); err != nil {
		t.Fatal(err)
	}
	f.Close()
	if found := prove(t, clean, v).Found; len(found) != 1 || found[0].In != clean {
		t.Errorf("in what the image kept: %v", found)
	}
}

func TestAFileOfValues(t *testing.T) {
	var v remains.Values
	v.Add("the XiVO UUID", xivoUUID+"\n")
	v.Add("the same again", xivoUUID)
	v.Add("nothing", " \n")
	v.Add("too short", "abc")
	raw, err := v.Encode()
	if err != nil {
		t.Fatal(err)
	}
	read, err := remains.Decode(bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"the XiVO UUID", "too short"}, read.Names()); diff != "" {
		t.Error(diff)
	}
	proof := prove(t, image(t, xivoUUID), read)
	if len(proof.Found) != 1 {
		t.Errorf("found %v", proof.Found)
	}
	if diff := cmp.Diff([]string{"too short"}, proof.Short); diff != "" {
		t.Errorf("not searched for (-want +got):\n%s", diff)
	}
	for name, text := range map[string]string{
		"nothing":          "",
		"no value":         `{"format": 1, "values": []}`,
		"an empty value":   `{"format": 1, "values": [{"name": "it", "value": ""}]}`,
		"a later format":   `{"format": 2, "values": [{"name": "it", "value": "` + cookie + `"}]}`,
		"half of the file": string(raw[:len(raw)-9]),
	} {
		if _, err := remains.Decode(strings.NewReader(text)); err == nil || strings.Contains(err.Error(), cookie) || strings.Contains(err.Error(), xivoUUID) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestValuesAreNeverWrittenToADisk(t *testing.T) {
	var v remains.Values
	v.Add("the Erlang cookie", cookie)
	name := filepath.Join(t.TempDir(), "values")
	if err := v.Write(name); err == nil || !strings.Contains(err.Error(), "below /run") {
		t.Errorf("%v", err)
	}
	if _, err := os.Stat(name); err == nil {
		t.Error("it was written")
	}
}

func TestASealThatFollowsOneThatWasCutOffKeepsItsValues(t *testing.T) {
	if remains.InMemory("/dev/shm/values") != nil {
		t.Skip("needs a tmpfs at /dev/shm")
	}
	dir, err := os.MkdirTemp("/dev/shm", "remains-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	name := filepath.Join(dir, "values")
	var first, second remains.Values
	first.Add("the XiVO UUID", xivoUUID)
	first.Add("the Erlang cookie", cookie)
	second.Add("the Erlang cookie", cookie)
	second.Add("the gossip key", gossipKey)
	for _, v := range []remains.Values{first, second} {
		if err := v.Write(name); err != nil {
			t.Fatal(err)
		}
	}
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	read, err := remains.Decode(f)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"the XiVO UUID", "the Erlang cookie", "the gossip key"}, read.Names()); diff != "" {
		t.Error(diff)
	}
	if st, err := f.Stat(); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
	if err := os.WriteFile(name, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := second.Write(name); err == nil {
		t.Error("a damaged file was replaced")
	}
}
