package standin

import "embed"

//go:embed units/*.service
var units embed.FS

// Units are the systemd units of the daemons, by file name.
func Units() map[string]string {
	entries, err := units.ReadDir("units")
	if err != nil {
		panic(err) // embedded: cannot be
	}
	all := map[string]string{}
	for _, e := range entries {
		text, err := units.ReadFile("units/" + e.Name())
		if err != nil {
			panic(err)
		}
		all[e.Name()] = string(text)
	}
	return all
}
