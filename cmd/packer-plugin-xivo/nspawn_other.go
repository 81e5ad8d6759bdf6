//go:build !linux

package main

import "github.com/hashicorp/packer-plugin-sdk/plugin"

func registerNspawn(*plugin.Set) {}
