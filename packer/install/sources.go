package install

import (
	"fmt"
	"net/url"
	"strings"
)

// Where Debian keeps the releases that its mirrors have dropped.
const (
	archiveURL         = "http://archive.debian.org/debian"
	archiveSecurityURL = "http://archive.debian.org/debian-security"
)

// archiveSources returns a sources.list with every line that names a host of
// debian.org pointed at archive.debian.org. What that does not have, the
// suites of updates that were merged into the release, is commented out. All
// other lines stay as they are: apt.postgresql.org or a mirror of one's own has
// its own way of keeping old releases.
func archiveSources(list string) string {
	lines := strings.SplitAfter(list, "\n")
	for i, line := range lines {
		text, ending := strings.CutSuffix(line, "\n")
		lines[i] = archiveLine(text)
		if ending {
			lines[i] += "\n"
		}
	}
	return strings.Join(lines, "")
}

// archiveLine does that for a line: type [options] URL suite components.
func archiveLine(line string) string {
	fields := strings.Fields(line)
	if len(fields) == 0 || fields[0] != "deb" && fields[0] != "deb-src" {
		return line
	}
	at := 1
	if len(fields) > at && strings.HasPrefix(fields[at], "[") {
		for at < len(fields) && !strings.HasSuffix(fields[at], "]") {
			at++
		}
		at++
	}
	if at+1 >= len(fields) || !droppedHost(fields[at]) {
		return line
	}

	suite := fields[at+1]
	switch {
	case strings.HasSuffix(suite, "/updates"):
		fields[at] = archiveSecurityURL
	case strings.HasSuffix(suite, "-security"): // Debian 11 and later
		fields[at] = archiveSecurityURL
	case strings.HasSuffix(suite, "-updates"): // and -proposed-updates
		return fmt.Sprintf("# not on archive.debian.org: %s", strings.Join(fields, " "))
	default:
		fields[at] = archiveURL
	}
	return strings.Join(fields, " ")
}

// droppedHost tells whether a URL is one of Debian's mirrors. The archive
// itself and the snapshots keep everything.
func droppedHost(raw string) bool {
	u, err := url.Parse(raw)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" && u.Scheme != "ftp" {
		return false
	}
	switch host := u.Hostname(); host {
	case "archive.debian.org", "snapshot.debian.org":
		return false
	default:
		return strings.HasSuffix(host, ".debian.org")
	}
}
