package rabbitmq_test

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/rabbitmq"
	"github.com/xivo-mesh/packer-plugin-xivo/test/lab/server"
)

func TestNothingOfAnUpstreamStaysInTheBrokersFiles(t *testing.T) {
	const secret, kept = "a-password-that-was-in-an-uri", "an-account-of-somebodys"
	b := server.RabbitMQ(t, "127.0.0.7")
	// As on a server: a broker that was stopped in good order and started again.
	b.Start(t, fmt.Sprintf(`[{rabbitmq_management, [{listener, [{ip, "127.0.0.7"}, {port, %d}]}]}].`, b.Management), "rabbitmq_management", "rabbitmq_federation")
	api := fmt.Sprintf("http://127.0.0.7:%d", b.Management)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	if err := rabbitmq.Dial(rabbitmq.URL(api)).Wait(ctx); err != nil {
		t.Fatal(err)
	}
	ask := func(method, path, body string) {
		t.Helper()
		req, err := http.NewRequest(method, api+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.SetBasicAuth("guest", "guest")
		req.Header.Set("Content-Type", "application/json")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode >= 300 {
			t.Fatalf("%s %s: %s", method, path, resp.Status)
		}
	}
	tools := b.Tools(t)
	script, err := os.ReadFile(filepath.Join(tools, "rabbitmq-plugins"))
	if err != nil {
		t.Fatal(err)
	}
	ctl := filepath.Join(tools, "rabbitmqctl")
	if err := os.WriteFile(ctl, bytes.ReplaceAll(script, []byte("bin/rabbitmq-plugins"), []byte("bin/rabbitmqctl")), 0o755); err != nil {
		t.Fatal(err)
	}
	eval := func(ctx context.Context, expression string) (string, error) {
		cmd := exec.CommandContext(ctx, ctl, "-q", "eval", expression)
		var said bytes.Buffer
		cmd.Stderr = &said
		out, err := cmd.Output()
		if err != nil {
			return "", fmt.Errorf("%w: %s%s", err, &said, out)
		}
		return strings.TrimSpace(string(out)), nil
	}
	holding := func() (found []string) {
		t.Helper()
		err := filepath.WalkDir(filepath.Join(b.Root, "mnesia"), func(name string, e fs.DirEntry, err error) error {
			if err != nil || !e.Type().IsRegular() {
				return err
			}
			raw, err := os.ReadFile(name)
			if bytes.Contains(raw, []byte(secret)) {
				found = append(found, filepath.Base(name))
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return found
	}

	ask("PUT", "/api/users/"+kept, `{"password": "x", "tags": ""}`)
	const upstream = "/api/parameters/federation-upstream/%2F/xivomesh"
	ask("PUT", upstream, `{"value": {"uri": "amqp://mesh:`+secret+`@10.0.0.9"}}`)
	if _, err := eval(t.Context(), "mnesia:dump_log()."); err != nil {
		t.Fatal(err)
	}
	ask("DELETE", upstream, "")
	if holding() == nil {
		t.Fatal("its files do not hold it before, so this proves nothing")
	}
	r := rabbitmq.Rewritten(filepath.Join(b.Root, "mnesia"), eval)
	if diff, err := r.Diff(t.Context()); err != nil || len(diff) != 1 {
		t.Fatalf("%q, %v", diff, err)
	}
	if err := r.Apply(t.Context()); err != nil {
		t.Fatal(err)
	}
	if diff, err := r.Diff(t.Context()); err != nil || diff != nil {
		t.Errorf("after: %q, %v", diff, err)
	}
	if left := holding(); left != nil {
		t.Errorf("the password is in %q", left)
	}

	// The broker starts on what is left, with all that it had.
	if out, err := eval(t.Context(), "rabbit:stop()."); err != nil {
		t.Fatal(out, err)
	}
	b.Restart(t)
	if err := rabbitmq.Dial(rabbitmq.URL(api)).Wait(ctx); err != nil {
		t.Fatal(err)
	}
	ask("GET", "/api/users/"+kept, "")
}
