package main

import (
	"fmt"
	"os"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// facade is what a kernel had for programs, as far as a filter can show it. System calls
// and options were only ever added at the end, so the last one says which there are.
type facade struct {
	amd64, i386      uint32 // the last system call
	socket, tcp, udp uint32 // the last options
	netlink          uint32
	noReusePort      bool
	unknownProtocol  unix.Errno
}

// facades are those of Debian's kernels.
var facades = map[string]facade{
	"3.2":  {amd64: 311, i386: 348, socket: 40, tcp: 18, udp: 100, netlink: 5, noReusePort: true, unknownProtocol: unix.EPROTONOSUPPORT},
	"3.16": {amd64: 316, i386: 353, socket: 48, tcp: 25, udp: 102, netlink: 7, unknownProtocol: unix.EPROTONOSUPPORT},
	"4.9":  {amd64: 331, i386: 382, socket: 53, tcp: 29, udp: 102, netlink: 10, unknownProtocol: unix.EINVAL},
}

// behave runs the trial with the rest of this kernel taken away: what that one did not
// have fails as it failed there. That holds for all that it starts, too.
func behave(kernel string) error {
	f, ok := facades[kernel]
	if !ok {
		return fmt.Errorf("no filter for the kernel %q", kernel)
	}
	runtime.LockOSThread()
	const uname26 = 0x0020000 // says 2.6.x
	if _, _, errno := unix.Syscall(unix.SYS_PERSONALITY, uname26, 0, 0); errno != 0 {
		return fmt.Errorf("personality: %w", errno)
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	program, err := syscall.BytePtrFromString("/proc/self/exe")
	if err != nil {
		return err
	}
	args, err := syscall.SlicePtrFromStrings([]string{"guest", "try"})
	if err != nil {
		return err
	}
	env, err := syscall.SlicePtrFromStrings(append(os.Environ(), "KERNEL="+kernel))
	if err != nil {
		return err
	}
	filter := f.filter()
	load := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	// From one to the other nothing of Go's runtime may run in this process: it has
	// found out what the unfiltered kernel can.
	_, _, errno := syscall.RawSyscall(unix.SYS_PRCTL, unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&load)))
	if errno == 0 {
		_, _, errno = syscall.RawSyscall(unix.SYS_EXECVE, uintptr(unsafe.Pointer(program)), uintptr(unsafe.Pointer(&args[0])), uintptr(unsafe.Pointer(&env[0])))
	}
	return fmt.Errorf("filter system calls: %w", errno)
}

// condition compares a word of what the filter sees: the number, or an argument.
type condition struct {
	at, op, value uint32
}

// Where these are in struct seccomp_data.
const (
	number       = 0
	architecture = 4
)

func arg(i uint32) uint32 { return 16 + 8*i } // the lower half

const (
	is   = unix.BPF_JEQ
	over = unix.BPF_JGT
	has  = unix.BPF_JSET
)

func (f facade) filter() []unix.SockFilter {
	var all []unix.SockFilter
	// refuse makes calls fail for which all of this is so.
	refuse := func(errno unix.Errno, when ...condition) {
		end := 2*len(when) + 1
		var rule []unix.SockFilter
		for i, c := range when {
			toEnd := uint8(end - 2*i - 2)
			rule = append(rule,
				unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: c.at},
				unix.SockFilter{Code: uint16(unix.BPF_JMP | c.op | unix.BPF_K), Jf: toEnd, K: c.value},
			)
		}
		all = append(append(all, rule...), unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(errno)})
	}
	for _, m := range []struct {
		audit, last, socket, setsockopt, getsockopt, ioctl, waitid, clone uint32
	}{
		{unix.AUDIT_ARCH_X86_64, f.amd64, 41, 54, 55, 16, 247, 56},
		// Its options go through socketcall, where no filter sees them.
		{unix.AUDIT_ARCH_I386, f.i386, 359, 366, 365, 54, 284, 120},
	} {
		here := condition{architecture, is, m.audit}
		refuse(unix.ENOSYS, here, condition{number, over, m.last})
		refuse(f.unknownProtocol, here, condition{number, is, m.socket}, condition{arg(2), over, 255})
		for _, call := range []uint32{m.setsockopt, m.getsockopt} {
			for level, last := range map[uint32]uint32{
				unix.SOL_SOCKET: f.socket, unix.SOL_TCP: f.tcp, unix.SOL_UDP: f.udp, unix.SOL_NETLINK: f.netlink,
			} {
				refuse(unix.ENOPROTOOPT, here, condition{number, is, call}, condition{arg(1), is, level}, condition{arg(2), over, last})
			}
			if f.noReusePort {
				refuse(unix.ENOPROTOOPT, here, condition{number, is, call}, condition{arg(1), is, unix.SOL_SOCKET}, condition{arg(2), is, unix.SO_REUSEPORT})
			}
		}
		// Checksums, TSO for both families, ECN and UFO were there; USO came with 6.2.
		refuse(unix.EINVAL, here, condition{number, is, m.ioctl}, condition{arg(1), is, unix.TUNSETOFFLOAD}, condition{arg(2), over, 0x1f})
		// Old kernels ignored CLONE_PIDFD. Who asks for it without looking first is told.
		refuse(unix.EINVAL, here, condition{number, is, m.waitid}, condition{arg(0), is, unix.P_PIDFD})
		refuse(unix.EINVAL, here, condition{number, is, m.clone}, condition{arg(0), has, unix.CLONE_PIDFD})
	}
	return append(all, unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW})
}
