package remains

import (
	"context"
	"fmt"
	"os"
	"slices"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/disk"
)

// Found is a value that a disk still holds.
type Found struct {
	// Name is that of the value, which is not told.
	Name string
	// How it is written there.
	How string
	// In is "" for the disk itself, and else the file that holds it: an image may
	// have kept what the disk in it has no longer.
	In string
	// At is its first place, in bytes from the beginning, and Places is how many
	// there are.
	At     int64
	Places int
}

func (f Found) String() string {
	text := fmt.Sprintf("%s, %s, at byte %d", f.Name, f.How, f.At)
	if f.In != "" {
		text += " of the file " + f.In
	}
	if f.Places > 1 {
		text += fmt.Sprintf(", and at %d places more", f.Places-1)
	}
	return text
}

// Proof is what a search did and found.
type Proof struct {
	Found []Found
	// Read is what was read of the disk.
	Read disk.Read
	// Short are the names of values that are too short to be searched for.
	Short []string
}

// Prove searches a disk for the values: a device, or an image of one in a file. Of an
// image that is not raw, the file is searched, too. Progress may be nil.
func Prove(ctx context.Context, name string, v Values, progress func(disk.Read)) (Proof, error) {
	format, err := disk.Format(name)
	if err != nil {
		return Proof{}, err
	}
	var proof Proof
	if format != "raw" {
		file, err := os.Open(name)
		if err != nil {
			return Proof{}, err
		}
		defer file.Close()
		if proof, err = Search(ctx, file, v, nil); err != nil {
			return Proof{}, err
		}
		for i := range proof.Found {
			proof.Found[i].In = name
		}
	}
	raw, err := disk.Raw(ctx, name, format)
	if err != nil {
		return Proof{}, err
	}
	defer raw.Close()
	within, err := Search(ctx, raw, v, progress)
	within.Found = append(proof.Found, within.Found...)
	return within, err
}

// Search searches an open file for the values.
func Search(ctx context.Context, f *os.File, v Values, progress func(disk.Read)) (Proof, error) {
	forms, short := v.forms()
	proof := Proof{Short: short}
	var raw [][]byte
	for _, form := range forms {
		raw = append(raw, form.bytes)
	}
	patterns, err := disk.NewPatterns(raw)
	if err != nil {
		return proof, err
	}
	of := map[int]int{} // a form's place in Found
	proof.Read, err = disk.Search(ctx, f, patterns, func(h disk.Hit) {
		i, known := of[h.Pattern]
		if !known {
			i = len(proof.Found)
			of[h.Pattern] = i
			form := forms[h.Pattern]
			proof.Found = append(proof.Found, Found{Name: v.all[form.of].name, How: form.how, At: h.At})
		}
		proof.Found[i].Places++
	}, progress)
	slices.SortStableFunc(proof.Found, func(a, b Found) int { return int(min(max(a.At-b.At, -1), 1)) })
	return proof, err
}
