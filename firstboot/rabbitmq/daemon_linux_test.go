package rabbitmq

import (
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

// /etc/rabbitmq is the broker's user's own.
func TestWhatTheBrokersUserPutsInPlaceOfAFileIsRefused(t *testing.T) {
	const user = 61234
	for _, c := range []struct {
		told  string
		plant func(file, secret string) error
	}{
		{"symbolic link", func(file, secret string) error { return os.Symlink(secret, file) }},
		{"FIFO", func(file, _ string) error { return syscall.Mkfifo(file, 0o666) }},
	} {
		t.Run(c.told, func(t *testing.T) {
			p := rootWith(t, map[string]string{"/secret": "root's"})
			if err := c.plant(p.Path(pluginsFile), p.Path("/secret")); err != nil {
				t.Fatal(err)
			}
			if os.Geteuid() == 0 {
				if err := os.Lchown(p.Path(pluginsFile), user, user); err != nil {
					t.Fatal(err)
				}
			}
			plugins := Plugins(p)
			done := make(chan [2]error, 1)
			go func() {
				_, err := plugins.Diff(t.Context())
				done <- [2]error{err, plugins.Apply(t.Context())}
			}()
			select {
			case errs := <-done:
				for _, err := range errs {
					if err == nil || !strings.Contains(err.Error(), c.told) {
						t.Errorf("%v", err)
					}
				}
			case <-time.After(20 * time.Second):
				t.Fatal("it hangs")
			}
			if raw, err := os.ReadFile(p.Path("/secret")); err != nil || string(raw) != "root's" {
				t.Errorf("%q, %v", raw, err)
			}
		})
	}
}
