package kernels

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// modules are what the network needs, where the kernel does not have it built in. Their
// order does not matter: the guest tries until all are in that go.
var modules = []string{
	"tun", "veth", "ipv6", "x_tables", "ip_tables", "iptable_filter", "ip6_tables", "ip6table_filter",
	"xt_tcpudp", "xt_owner", "ipt_REJECT", "ip6t_REJECT", "nf_reject_ipv4", "nf_reject_ipv6",
}

// left are what no program of a guest reads.
var left = regexp.MustCompile(`^(boot|etc|var|usr/share|usr/lib/[^/]+/(gconv|perl.*)|usr/lib/(locale|perl.*|tmpfiles.d|systemd)|lib/systemd|lib/udev)$`)

// machine writes into a folder what a guest's root is made of: ip and iptables of the
// release, the modules of its kernel, and these programs at the root by name.
func (r release) machine(unpacked, dir string, programs map[string]string) error {
	tools := filepath.Join(unpacked, "tools")
	err := filepath.WalkDir(tools, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(tools, name)
		if err != nil {
			return err
		}
		if d.IsDir() && left.MatchString(rel) {
			return fs.SkipDir
		}
		return put(name, filepath.Join(dir, rel), d.Type())
	})
	if err != nil {
		return err
	}
	for _, d := range []string{"dev", "proc", "sys", "run", "tmp", "etc", "root", "var/lib", "modules"} {
		err = errors.Join(err, os.MkdirAll(filepath.Join(dir, d), 0o755))
	}
	err = errors.Join(err,
		os.Symlink("/run", filepath.Join(dir, "var/run")),
		os.WriteFile(filepath.Join(dir, "etc/passwd"), []byte("root:x:0:0::/root:/bin/sh\nconsul:x:1000:1000::/:/bin/false\n"), 0o644),
	)
	for to, from := range programs {
		err = errors.Join(err, put(from, filepath.Join(dir, to), 0))
	}
	// update-alternatives did not run.
	if _, e := os.Stat(filepath.Join(dir, "usr/sbin/xtables-legacy-multi")); e == nil {
		for _, family := range []string{"iptables", "ip6tables"} {
			for _, command := range []string{family, family + "-restore"} {
				err = errors.Join(err, os.Symlink("xtables-legacy-multi", filepath.Join(dir, "usr/sbin", command)))
			}
		}
	}
	if err != nil {
		return err
	}
	return filepath.WalkDir(filepath.Join(unpacked, "kernel/lib/modules"), func(name string, d fs.DirEntry, err error) error {
		if module, ok := strings.CutSuffix(d.Name(), ".ko"); err == nil && ok && slices.Contains(modules, module) {
			err = put(name, filepath.Join(dir, "modules", d.Name()), d.Type())
		}
		return err
	})
}

// vmlinuz is the release's kernel.
func vmlinuz(unpacked string) (string, error) {
	found, err := filepath.Glob(filepath.Join(unpacked, "kernel/boot/vmlinuz-*"))
	if err == nil && len(found) != 1 {
		err = fmt.Errorf("%s has %d kernels", unpacked, len(found))
	}
	if err != nil {
		return "", err
	}
	return found[0], nil
}

// put copies a file, a folder or a link.
func put(from, to string, kind fs.FileMode) error {
	switch {
	case kind.IsDir():
		return os.MkdirAll(to, 0o755)
	case kind&fs.ModeSymlink != 0:
		target, err := os.Readlink(from)
		if err != nil {
			return err
		}
		return os.Symlink(target, to)
	case kind.IsRegular():
		in, err := os.Open(from)
		if err != nil {
			return err
		}
		defer in.Close()
		out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
		if err != nil {
			return err
		}
		_, err = io.Copy(out, in)
		return errors.Join(err, out.Close())
	}
	return nil
}

// pack writes a folder as an initramfs: a cpio archive of the kind "newc".
func pack(dir, to string) error {
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	w := bufio.NewWriterSize(out, 1<<20)
	number, written := 0, 0
	pad := func() {
		for ; written%4 != 0; written++ {
			w.WriteByte(0)
		}
	}
	entry := func(name string, mode uint32, content string) {
		number++
		header := fmt.Sprintf("070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%s\x00",
			number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name)+1, 0, name)
		w.WriteString(header)
		written += len(header)
		pad()
		w.WriteString(content)
		written += len(content)
		pad()
	}
	err = filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil || name == dir {
			return err
		}
		rel, err := filepath.Rel(dir, name)
		if err != nil {
			return err
		}
		switch {
		case d.IsDir():
			entry(rel, 0o40755, "")
		case d.Type()&fs.ModeSymlink != 0:
			target, err := os.Readlink(name)
			if err != nil {
				return err
			}
			entry(rel, 0o120777, target)
		default:
			content, err := os.ReadFile(name)
			if err != nil {
				return err
			}
			entry(rel, 0o100755, string(content))
		}
		return nil
	})
	entry("TRAILER!!!", 0, "")
	return errors.Join(err, w.Flush(), out.Close())
}
