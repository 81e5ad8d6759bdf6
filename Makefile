# Everything that is built lands in dist/ or in the cache,
# $XDG_CACHE_HOME/packer-plugin-xivo or ~/.cache/packer-plugin-xivo.

VERSION = $(shell sed -n '/= version.NewPluginVersion/{s/[^"]*"\([^"]*\)", "\([^"]*\)".*/\1-\2/;s/-$$//;p;}' packer/version/version.go)
ARCH := $(shell go env GOARCH)
# What the plugin carries xivo-firstboot for: the machines of XiVO, and this one.
MACHINES := $(sort amd64 386 $(ARCH))

export GOTOOLCHAIN := local
GO_BUILD := CGO_ENABLED=0 go build -trimpath -buildvcs=false
FIRSTBOOT_LDFLAGS := -s -w -X main.version=$(VERSION)
# Built and then run, not `go run`: a killed make takes it along.
LAB = go build -o dist/lab ./test/lab/cmd/lab && exec dist/lab

.DEFAULT_GOAL := help
.PHONY: help build test test-crash test-vm demo shell bench bench-bake dist lint fmt generate clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

build: ## the plugin and xivo-firstboot, for this machine, into dist/
	@rm -rf packer/embedded/linux_*
	for arch in $(MACHINES); do \
		GOOS=linux GOARCH=$$arch $(GO_BUILD) -ldflags '$(FIRSTBOOT_LDFLAGS)' -o packer/embedded/linux_$$arch/xivo-firstboot ./cmd/xivo-firstboot || exit; \
	done
	$(GO_BUILD) -ldflags '-s -w' -o dist/packer-plugin-xivo ./cmd/packer-plugin-xivo
	@cp packer/embedded/linux_$(ARCH)/xivo-firstboot dist/

test: ## all tests, on real machines too (root; installs what it needs)
	@$(LAB) test

test-crash: ## kill a first boot 200 times and more, at every step, and lose nothing
	@$(LAB) crash

ACCELERATOR ?=
test-vm: ## bake in a virtual machine, boot clones, clone a node (ACCELERATOR=tcg: do not try KVM)
	@XIVO_ACCELERATOR=$(ACCELERATOR) && export XIVO_ACCELERATOR && $(LAB) vm

demo: ## bake an image, clone three machines, watch them join (KEEP=1: and keep them running)
	@go build -o dist/demo ./test/e2e/demo && exec dist/demo $(if $(KEEP),-keep)

NODE ?= 1
shell: ## a shell in machine NODE=n of a demo that KEEP=1 keeps running
	@$(LAB) shell $(NODE)

bench: ## the benchmarks
	go test -run '^$$' -bench . -benchmem ./...

bench-bake: ## time and size of one image, baked under nspawn and in a virtual machine
	@$(LAB) bench-bake

dist: ## what is released, into dist/release: plugin archives, Debian packages, checksums
	@go build -o dist/dist ./cmd/dist && exec dist/dist

lint: ## go vet, and nothing unformatted
	go vet ./...
	@unformatted=$$(gofmt -l .); if [ -n "$$unformatted" ]; then echo "not formatted: $$unformatted; run make fmt" >&2; exit 1; fi

fmt: ## format the sources
	gofmt -w .

generate: ## what is generated from the sources
	go generate ./...

clean: ## remove what was built here; the cache stays
	rm -rf dist packer/embedded/linux_*
