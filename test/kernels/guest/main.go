// Command guest is the whole user space of a machine of test/kernels: what boots it,
// what is tried on it, and the nodes that it is tried with. It prints a line for each
// thing that it tried, PASS or FAIL, and DONE after the last one.
package main

import (
	"errors"
	"fmt"
	"os"
)

func main() {
	args := os.Args[1:]
	if os.Getpid() == 1 && len(args) == 0 {
		args = []string{"boot"}
	}
	var err error
	switch {
	case len(args) == 1 && args[0] == "boot":
		err = boot()
	case len(args) == 2 && args[0] == "as":
		err = behave(args[1])
	case len(args) == 1 && args[0] == "try":
		try()
	case len(args) == 1 && args[0] == "host":
		err = serveHost()
	case len(args) == 1 && args[0] == "service":
		err = runService()
	default:
		err = errors.New("usage: guest boot|as KERNEL|try|host|service")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "guest:", err)
		os.Exit(1)
	}
}
