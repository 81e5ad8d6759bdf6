package install

import (
	"strings"
	"testing"
	"time"
)

func TestReleaseOf(t *testing.T) {
	for version, want := range map[string]release{
		"14.18":      {productXiVO, 7},
		"15.02":      {productXiVO, 7}, // less than 15.19 by number
		"15.19":      {productXiVO, 7},
		"15.19.1":    {productXiVO, 8}, // as the script has it
		"15.20":      {productXiVO, 8},
		"16.03":      {productXiVO, 8},
		"16.15":      {productXiVO, 8},
		"16.16":      {productWazo, 8},
		"17.17":      {productWazo, 8},
		"18.01":      {productWazo, 9},
		"19.09":      {productWazo, 9},
		"2017.03":    {productXiVO, 8}, // no Wazo, although it is later than 19.09
		"2018.02.00": {productXiVO, 8},
		"2018.13":    {productXiVO, 8},
		"2018.13.00": {productXiVO, 9},
		"2018.16.00": {productXiVO, 9},
		"2020.09":    {productXiVO, 9},
		"2020.09.00": {productXiVO, 10},
		"2022.03.01": {productXiVO, 10},
		"2022.04.00": {productXiVO, 11},
		"2024.04.02": {productXiVO, 11},
		"2024.05":    {productXiVO, 12},
		"2025.10.03": {productXiVO, 12},
	} {
		if got, err := releaseOf(version); err != nil || got != want {
			t.Errorf("%s: got %s on %s (%v), want %s on %s", version, got.product.name, got.debian, err, want.product.name, want.debian)
		}
	}

	for version, want := range map[string]string{
		"14.17":          "from 14.18 on",
		"9.20":           "not the version of a XiVO",
		"15.2":           "not the version of a XiVO",
		"19.10":          "Wazo from 16.16 to 19.09",
		"22.05":          "Wazo from 16.16 to 19.09",
		"xivo-16.03":     `leave out the prefix: "16.03"`,
		"orion":          "not the version of a XiVO",
		"2025.10-latest": "not the version of a XiVO",
		"16.03 -d":       "not the version of a XiVO",
		"16.03;reboot":   "not the version of a XiVO",
		"16.03\n":        "not the version of a XiVO",
	} {
		if got, err := releaseOf(version); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, %v, want %q", version, got, err, want)
		}
	}
}

func TestPrepareCompletes(t *testing.T) {
	for version, want := range map[string]struct {
		mirror, script string
		archive        bool
	}{
		"15.19":      {"http://mirror.xivo.solutions", "/xivo_install.sh", true},
		"18.03":      {"http://mirror.wazo.community", "/fai/xivo-migration/wazo_install.sh", true},
		"2021.07.00": {"http://mirror.xivo.solutions", "/xivo_install.sh", true},
		"2022.05.00": {"http://mirror.xivo.solutions", "/xivo_install.sh", false},
	} {
		var c Config
		if err := c.Prepare(settings{"xivo_version": version}); err != nil {
			t.Errorf("%s: %v", version, err)
			continue
		}
		if c.Mirror != want.mirror || c.ScriptPath != want.script || c.fromArchive() != want.archive || c.AptRetries != 3 || c.Timeout != 2*time.Hour {
			t.Errorf("%s: got %s %s archive %t retries %d timeout %s", version, c.Mirror, c.ScriptPath, c.fromArchive(), c.AptRetries, c.Timeout)
		}
		for _, wish := range []bool{true, false} {
			var c Config
			if err := c.Prepare(settings{"xivo_version": version, "archive": wish}); err != nil || c.fromArchive() != wish {
				t.Errorf("%s: archive = %t gives %t, %v", version, wish, c.fromArchive(), err)
			}
		}
	}
}

func TestPrepareRefuses(t *testing.T) {
	for _, tc := range []struct {
		settings settings
		err      string
	}{
		{settings{"xivo_version": ""}, "xivo_version is required"},
		{settings{"xivo_version": "orion"}, `xivo_version: "orion" is not`},
		{settings{"mirror": "ftp://mirror.example"}, "mirror: must be"},
		{settings{"mirror": "http://user:hunter2@mirror.example"}, "mirror: must be"},
		{settings{"mirror": "http://mirror.example/a|b"}, "mirror: must be"},
		{settings{"mirror": "http://mirror.example/&"}, "mirror: must be"},
		{settings{"mirror": "http://mirror.example\n"}, "mirror: must be"},
		{settings{"script_path": "xivo_install.sh"}, "script_path"},
		{settings{"script_path": "/x y"}, "script_path"},
		{settings{"apt_retries": -1}, "apt_retries must not be negative"},
		{settings{"timeout": "-1s"}, "timeout must not be negative"},
		{settings{"timeout": "soon"}, "timeout"},
		{settings{"archive": "perhaps"}, "archive"},
		{settings{"version": "16.03"}, "version"},
	} {
		var c Config
		err := c.Prepare(settings{"xivo_version": "16.03"}, tc.settings)
		if err == nil || !strings.Contains(err.Error(), tc.err) {
			t.Errorf("%v: got %v, want %q", tc.settings, err, tc.err)
		} else if strings.Contains(err.Error(), "hunter2") {
			t.Errorf("the error shows a password: %v", err)
		}
	}
}

func TestArchiveSources(t *testing.T) {
	for line, want := range map[string]string{
		"":                                "",
		"# deb cdrom:[Debian] / ":         "# deb cdrom:[Debian] / ",
		"deb cdrom:[Debian]/ wheezy main": "deb cdrom:[Debian]/ wheezy main",
		"deb http://deb.debian.org/debian buster main":                          "deb http://archive.debian.org/debian buster main",
		"deb-src  http://ftp.fr.debian.org/debian/\twheezy main contrib":        "deb-src http://archive.debian.org/debian wheezy main contrib",
		"deb [arch=i386 trusted=yes] http://http.debian.org/debian jessie main": "deb [arch=i386 trusted=yes] http://archive.debian.org/debian jessie main",
		"deb [ arch=i386 ] http://httpredir.debian.org/debian jessie main":      "deb [ arch=i386 ] http://archive.debian.org/debian jessie main",
		"deb http://security.debian.org/ wheezy/updates main":                   "deb http://archive.debian.org/debian-security wheezy/updates main",
		"deb http://deb.debian.org/debian-security bullseye-security main":      "deb http://archive.debian.org/debian-security bullseye-security main",
		"deb http://deb.debian.org/debian stretch-backports main":               "deb http://archive.debian.org/debian stretch-backports main",
		"deb http://deb.debian.org/debian stretch-updates main":                 "# not on archive.debian.org: deb http://deb.debian.org/debian stretch-updates main",
		"deb http://deb.debian.org/debian jessie-proposed-updates main":         "# not on archive.debian.org: deb http://deb.debian.org/debian jessie-proposed-updates main",
		"deb http://archive.debian.org/debian/ wheezy main":                     "deb http://archive.debian.org/debian/ wheezy main",
		"deb http://snapshot.debian.org/archive/debian/20160101 wheezy main":    "deb http://snapshot.debian.org/archive/debian/20160101 wheezy main",
		"deb http://debian.example.org/debian wheezy main":                      "deb http://debian.example.org/debian wheezy main",
		"deb http://apt.postgresql.org/pub/repos/apt stretch-pgdg main":         "deb http://apt.postgresql.org/pub/repos/apt stretch-pgdg main",
		"deb [arch=i386":                   "deb [arch=i386",
		"deb http://deb.debian.org/debian": "deb http://deb.debian.org/debian",
	} {
		for _, ending := range []string{"", "\n", "\n\n# end\n"} {
			if got := archiveSources(line + ending); got != want+ending {
				t.Errorf("%q:\ngot  %q\nwant %q", line+ending, got, want+ending)
			}
			if again := archiveSources(want + ending); again != want+ending {
				t.Errorf("a second time: %q", again)
			}
		}
	}
}
