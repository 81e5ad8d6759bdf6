package limit_test

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/limit"
)

func TestWhatIsTooLongIsAnErrorAndNoPartOfIt(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	for text, fits := range map[string]bool{"": true, "1234567": true, "12345678": true, "123456789": false, strings.Repeat("x", 1000): false} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		for what, read := range map[string]func() ([]byte, error){
			"a reader": func() ([]byte, error) { return limit.Read(strings.NewReader(text), 8) },
			"a file":   func() ([]byte, error) { return limit.ReadFile(file, 8) },
			"an answer": func() ([]byte, error) {
				r := limit.Response(&http.Response{StatusCode: 200, Body: io.NopCloser(strings.NewReader(text))}, 8)
				return io.ReadAll(r.Body)
			},
		} {
			got, err := read()
			if fits && (err != nil || string(got) != text) || !fits && !errors.Is(err, limit.ErrTooLong) {
				t.Errorf("%s of %d bytes: %q, %v", what, len(text), got, err)
			}
		}
	}
	if _, err := limit.ReadFile("/dev/zero", 8); !errors.Is(err, limit.ErrTooLong) {
		t.Errorf("what never ends: %v", err)
	}
}

// The beginning of a list that is whole for a decoder must not count as the list.
func TestAnAnswerThatIsCutOffIsNoAnswer(t *testing.T) {
	text := `["a"` + strings.Repeat(`,"b"`, 100) + `]`
	for n := range len(text) {
		var list []string
		r := limit.Response(&http.Response{StatusCode: 200, Body: io.NopCloser(strings.NewReader(text))}, int64(n))
		if err := json.NewDecoder(r.Body).Decode(&list); !errors.Is(err, limit.ErrTooLong) {
			t.Fatalf("after %d of %d bytes: %d items, %v", n, len(text), len(list), err)
		}
	}
}

func TestOfARefusalTheBeginningIsEnough(t *testing.T) {
	r := limit.Response(&http.Response{StatusCode: 500, Body: io.NopCloser(strings.NewReader(strings.Repeat("no", 10_000)))}, 8)
	got, err := io.ReadAll(r.Body)
	if err != nil || len(got) != limit.Refusal {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}
