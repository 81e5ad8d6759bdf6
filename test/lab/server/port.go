package server

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"syscall"
	"testing"
)

// FreePort is a TCP and UDP port of every local address that nobody has, and
// that no other call gives out while the test runs, in this process or another.
// It lies below the ports that the kernel gives to outgoing connections
// (32768 and up): one of those may take a port between the look and the use.
func FreePort(t testing.TB) int {
	t.Helper()
	for range 100 {
		port := 20000 + rand.IntN(12000)
		// An abstract socket is one process's only, and ends with it.
		claim, err := net.Listen("unix", fmt.Sprintf("@packer-plugin-xivo/port/%d", port))
		if errors.Is(err, syscall.EADDRINUSE) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { claim.Close() })
		place, err := net.Listen("tcp4", fmt.Sprint(":", port))
		if err != nil {
			continue
		}
		place.Close()
		return port
	}
	t.Fatal("no port is free between 20000 and 32000")
	return 0
}
